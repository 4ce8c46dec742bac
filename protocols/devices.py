"""Where tensors live, and the two crossings between a device and the bytes of the wire.

Parties and dealers compute on one device each. Bytes come from the wire and go to it through :func:`from_host` and
:func:`to_host`; what a role holds, and what is worked out on the processor, is put in place by :func:`place`. Nothing
outside this module moves values between devices. Which device a role has changes no byte that it sends.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protocols.errors import BadParameters

CPU = torch.device("cpu")


def find(name: str) -> torch.device:
    """The device called ``cpu``, ``cuda`` or ``cuda:N``. Raises BadParameters, which says what this machine has."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadParameters(f"device {name[:40]!r} is not among those that roles compute on: {_offered()}")
    if device.type == "cpu":
        return CPU
    if not torch.cuda.is_available():
        why = "finds no GPU" if torch.version.cuda else "was built without CUDA"
        raise BadParameters(
            f"device {name!r} is not there: PyTorch {torch.__version__} {why}. There is {_offered()}. Every role may "
            "have a device of its own: the answer is the same"
        )
    found = torch.device("cuda", device.index or 0)
    if found.index >= torch.cuda.device_count():
        raise BadParameters(f"device {name!r} is not there; there are {_offered()}")
    return found


def _offered() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])


def place(x: Tensor, device: torch.device) -> Tensor:
    """``x`` on ``device``: itself, where it is there already."""
    return x if x.device == device else x.to(device)


def to_host(x: Tensor) -> NDArray[np.uint8]:
    """Bytes ``x`` (uint8, any shape) for the wire. From a GPU they come through memory that it can write to itself."""
    if x.device.type == "cpu":
        return x.contiguous().numpy()
    if x.device.type == "cuda":
        return torch.empty(x.shape, dtype=torch.uint8, pin_memory=True).copy_(x).numpy()
    return place(x, CPU).contiguous().numpy()


def from_host(raw: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Bytes from the wire on ``device``; on the processor without a copy, so they must be writable there."""
    return place(torch.from_numpy(raw), device)
