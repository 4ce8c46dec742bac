"""Compiled kernels: the same integers as the torch forms, in fewer passes over memory.

They are used where they can be (numba is there, the tensors lie in the processor's memory) and never change a result:
every one of them has a torch form that the tests compare it with. ``PQI_NATIVE=off`` leaves them out.

Compiling takes seconds the first time; the machine code is kept next to the source (or in ``NUMBA_CACHE_DIR``) and
loaded from there afterwards. Whoever cannot wait in the middle of its work rehearses it first, as every role does.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Iterator
from functools import cache
from types import ModuleType

log = logging.getLogger("pqi.native")
_switched_on = [os.environ.get("PQI_NATIVE", "on") != "off"]


@cache
def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"protocols.native.{name}")
    except ImportError:
        return None
    except RuntimeError as error:  # numba finds no folder to keep machine code in
        log.warning("compiled kernels are left out (set NUMBA_CACHE_DIR to a folder that may be written to): %s", error)
        return None


def bits() -> ModuleType | None:
    """Kernels over bit planes, or None where they cannot be used."""
    return _module("planar") if _switched_on[0] else None


def clamps() -> ModuleType | None:
    """Kernels of a quick clamp, or None where they cannot be used."""
    return _module("quickclamp") if _switched_on[0] else None


def gates() -> ModuleType | None:
    """The interpreter of programs over bit planes, or None where it cannot be used."""
    return _module("interpret") if _switched_on[0] else None


def products() -> ModuleType | None:
    """Kernels of ring products, or None where they or the processor's units are not there."""
    made = _module("multiply") if _switched_on[0] else None
    return made if made is not None and made.SUPPORTED else None


def streams() -> ModuleType | None:
    """The kernel of many key streams, or None where it or the processor's rounds of AES are not there."""
    made = _module("masking") if _switched_on[0] else None
    return made if made is not None and made.SUPPORTED else None


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    """Only the torch forms, while this context lasts; for the tests that compare both."""
    before = _switched_on[0]
    _switched_on[0] = False
    try:
        yield
    finally:
        _switched_on[0] = before
