"""Keep freed memory in the process, so that NumPy does not fetch it anew at every step."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h


def keep_memory(mebibytes: int = 1024) -> bool:
    """Ask glibc to keep freed memory for reuse; returns whether it agreed.

    glibc gives arrays above a threshold (128 KiB at first) back to the kernel when they are freed,
    and the next array pays for fresh pages. This raises the threshold to its largest value, 32 MiB,
    and lets up to `mebibytes` of freed memory stay. It acts on the whole process and cannot be
    undone; the process stays as large as it once was. How much it gains depends on the sizes of the
    arrays: see lessons/results/speed.md. On other systems, and with other C libraries, it does
    nothing and returns False.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    size = min(mebibytes * 2**20, 2**31 - 1)
    # glibc caps the mmap threshold at 32 MiB on 64-bit systems, and refuses what is above
    return bool(mallopt(_M_MMAP_THRESHOLD, min(size, 2**25)) and mallopt(_M_TRIM_THRESHOLD, size))
