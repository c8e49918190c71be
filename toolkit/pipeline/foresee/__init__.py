"""--dry-run: what a command would make, and what that takes. Nothing is written but in a temporary folder."""
