"""Mutated models, folders, profiles and data, and what the command line makes of them: `python -m tests.fuzz --help`.

Whatever it is given, the program must answer: exit 0, 1 or 2, in seconds, in bounded memory, without a traceback or a folder
half-written; and what it converts must compute what its source does.
"""

import os
import sys
from pathlib import Path

for _variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):  # a process with one thread can be forked
    os.environ.setdefault(_variable, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `networks`, also without pytest
