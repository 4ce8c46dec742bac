"""How a role's process keeps its memory.

A query takes and frees tens of megabytes in pieces of the same sizes as the query before. Handing them back to the
system each time and having fresh pages zeroed costs as much time as the arithmetic on them. A role's process therefore
keeps what it has freed: its size stays at its peak, which is what a server's memory is measured by anyway.
"""

from __future__ import annotations

import ctypes
import logging
import sys

log = logging.getLogger("pqi.session")
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of mallopt, in GNU's malloc.h
_NEVER = (1 << 31) - 1
_LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Ask the C library to keep freed memory for this process; False where it offers no such thing."""
    if sys.platform != "linux":
        return False
    try:
        ask = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    # One arena: memory freed by one thread serves the next. All three or the others would undo it.
    done = all(ask(ctypes.c_int(what), ctypes.c_int(value)) for what, value in _WISHES)
    log.debug("freed memory is kept: %s", done)
    return done


_WISHES = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _NEVER), (_ARENA_MAX, 1))
