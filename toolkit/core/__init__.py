"""What every room may use: errors, atomic files, locks, hashing, progress, devices, recipes. Imports no other room."""
