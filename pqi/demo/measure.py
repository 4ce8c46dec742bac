"""Clocks, memory, and the machine that the figures are of."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RUNS = 3
_PACKAGES = ("torch", "numpy", "cryptography", "safetensors", "scikit-learn", "tenseal", "phe", "gmpy2")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Tensor work with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fastest(work: Callable[[], object], runs: int = RUNS) -> float:
    """Seconds of the fastest of some runs with one thread and with all, after one to warm up.

    For small tensors one thread is faster, on a busy machine by far: what privacy costs is told against the better.
    """
    best = float("inf")
    for count in sorted({1, torch.get_num_threads()}):
        with threads(count):
            work()
            for _ in range(runs):
                started = time.perf_counter()
                work()
                best = min(best, time.perf_counter() - started)
    return best


def versions() -> dict[str, str]:
    """Of this package, Python, and what the figures depend on."""
    import pqi

    found = {"pqi": pqi.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts: dict[str, Any] = {"processor": _processor(), "cores": cores, "system": platform.platform()}
    with suppress(ValueError, OSError, AttributeError):
        facts["memory_mb"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e6)
    return facts


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()
