"""Commands run in this process, and real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from pqi.cli.app import app

COMMANDS = (
    "demo",
    "quantize",
    "polynomial",
    "tune",
    "inspect",
    "split",
    "keys",
    "serve",
    "deal",
    "status",
    "predict",
    "bench",
    "audit",
    "audit-protocol",
)


def pqi(*arguments: object) -> Result:
    """The command in this process, on a screen of 100 columns."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, [str(a) for a in arguments], prog_name="pqi")


def start(*arguments: object, folder: Path, **more: Any) -> subprocess.Popen[str]:
    """A real ``pqi``; its temporary files go below ``folder``."""
    return subprocess.Popen(
        [sys.executable, "-m", "pqi", *(str(a) for a in arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
        **more,
    )


@contextmanager
def ended(*processes: subprocess.Popen[str]) -> Iterator[None]:
    """Whatever a test finds, its processes end with it."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def wait_until(true: Callable[[], bool], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"in {seconds:g} s it did not come true that {what}")
        time.sleep(0.05)


def left_in(folder: Path) -> set[str]:
    """Names in a folder; torch itself makes an empty cache where temporary files go."""
    return {path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_")}


def processes_that_mention(text: str) -> list[int]:
    """Process ids with the text in their command line (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found
