"""What a command does where nothing else is asked for.

Each is written here once: options of the command line and parameters of the Python functions take it from here.
"""

from __future__ import annotations

WORKSPACE = "kdtool-work"
DATASET = "fashion-mnist"
SEED = 0

# of what computes
DEVICE = PRECISION = SOURCE = "auto"
CHECKPOINT_MINUTES = 10.0

# of what is trained
TEACHER_ARCH, STUDENT_ARCH = "resnet20", "resnet8"
WIDTH = 16
RECIPE = "fast"
DYNAMICS, SEEDS = True, 1

# of a cache
ENCODING = "auto"
VERIFY, SAMPLES = True, 256

# of a subset
METHOD = "random"
BALANCE, MIN_PER_CLASS = True, 1

# of a student
LOSS, ALPHA, TEMPERATURE, MATCH = "kd", 1.0, 4.0, "exact"

# of what is looked at
SPLIT = "test"
SCORE, SHOWN_SAMPLES = "el2n", 24
SHOWN_VIEWS, SHOWN_ROWS = "8", 8
