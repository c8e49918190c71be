"""Distillation on pruned data where it can be computed: a student and a teacher that are ridge regressions."""
