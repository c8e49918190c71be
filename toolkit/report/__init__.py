"""Numbers for people: tables, and differences with their uncertainty."""
