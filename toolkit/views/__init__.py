"""Augmentation as data: a view is a fully determined transform of one image, named by an integer."""
