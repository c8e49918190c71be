"""Training a student from a bundle: no teacher, no cache, no full data."""
