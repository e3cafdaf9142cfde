"""Settings for every test: fast lessons, no screen, hypothesis without deadlines."""

import os

os.environ.setdefault("MINIDORA_FAST", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# The networks are small: two BLAS threads gain nothing, and on a busy machine wait for each other
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

try:
    from hypothesis import settings
except ImportError:  # a base install: the tests that need it skip, with the reason
    pass
else:
    # Shared machines stall, so no example has a deadline; derandomised, so CI repeats itself
    settings.register_profile("minidora", deadline=None, derandomize=True, max_examples=60)
    settings.load_profile("minidora")
