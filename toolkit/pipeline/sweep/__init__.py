"""kdtool sweep: what is asked for, made, resolved to runs and trained by a pool of processes, and its table."""
