"""Training a teacher, and the one pass that writes down what it knows."""
