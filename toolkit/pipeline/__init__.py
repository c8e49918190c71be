"""The wiring: one documented function per command. Each returns what it made as a plain dict and prints nothing."""
