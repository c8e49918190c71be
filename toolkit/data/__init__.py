"""Data sets by name, and packing them."""
