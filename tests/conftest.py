"""One thread a test process: several of them share the cores, and threads that wait for each other spin.

Traces are kept as long as a process runs. Looking through all of them for cycles, as often as Python does
by itself, takes a part of the time that grows with them.
"""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.set_threshold(50_000, 50, 100)
