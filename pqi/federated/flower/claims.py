"""Every stage of a run is answered once by a node, even if two processes try at the same time.

Flower starts a process for each message and hands it a copy of the node's saved state, so two messages that arrive
together are handled from the same state. Two vectors under one mask, or two different sets of shares handed out for one
run, would show what the mask hides. So an answer begins by creating a file whose name is the node and the stage, in the
session's folder: the operating system lets exactly one process create it. The files are empty; a session's folder is
removed a day after its last answer, when no message of it can be alive any more.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from protocols.errors import Misuse, PeerMisbehaved

KEPT_SECONDS = 24 * 3600


def default_folder() -> Path:
    """A folder of this user's own in the system's temporary one."""
    return Path(tempfile.gettempdir()) / f"pqi-claims-{os.getuid()}"


def claim(folder: Path | None, node: int, session: bytes, stage: str) -> None:
    """Takes (node, session, stage) for this process; raises :class:`PeerMisbehaved` if it was taken before."""
    place = folder if folder is not None else default_folder()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        raise Misuse(f"{place} belongs to another user; give the mod a folder of this node's own: claims=...")
    own = place / session.hex()
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
        _sweep(place)
    name = hashlib.sha256(f"{node}|{stage}".encode()).hexdigest()
    try:
        os.close(os.open(own / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise PeerMisbehaved(f"stage {stage!r} of this run was answered before; it is answered once") from None


def _sweep(place: Path) -> None:
    oldest = time.time() - KEPT_SECONDS
    for path in place.iterdir():
        with suppress(FileNotFoundError):  # another process may be sweeping too
            if path.stat().st_mtime < oldest:
                shutil.rmtree(path, ignore_errors=True)
