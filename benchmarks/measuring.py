"""What the children measure themselves with."""

import resource
import sys

_PER_MEGABYTE = 1e6 if sys.platform == "darwin" else 1e6 / 1024  # what ru_maxrss counts


def cpu() -> float:
    """Give the CPU seconds that this process has used, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def peak_memory() -> float:
    """Give the most megabytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _PER_MEGABYTE
