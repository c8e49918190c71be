"""Cutting a bundle: the chosen rows' images, byte for byte, and their targets."""
