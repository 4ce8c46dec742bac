"""A second device without hardware: its tensors are computed by the processor, and what a GPU refuses is refused.

Tensors of it are a subclass around ordinary ones, so results can be compared exactly, and every mistake raises
:class:`Misplaced` where it is made: an operation on tensors of two devices; a value that moves between devices, or is
looked at by the host, outside ``protocols.devices``; an operation on integers that CUDA does not have; a shape that its
int8 matrix product refuses. PyTorch itself refuses ``.numpy()`` and ``.tolist()`` of such a tensor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ELSEWHERE = torch.device("fpga", 0)  # a kind of device that PyTorch knows by name and never has
_SHOWN = torch.device("meta")
_MOVERS = "protocols.devices"
_NOT_ON_INTEGERS = ("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "convolution", "_convolution")
aten = torch.ops.aten


class Misplaced(Exception):
    """What would fail, or be slow without being seen, on a GPU."""


class Far(Tensor):
    """A tensor of the other device."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=_SHOWN,
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    @property
    def device(self) -> torch.device:
        """What Python sees; below it the tensor is one without memory, so nothing can read it by its address."""
        return ELSEWHERE

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """While this context lasts, tensors can be made on :data:`ELSEWHERE`. operations: how many there were."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = _run(func, args, kwargs or {})
        self.operations += isinstance(result, Far)
        return result


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors: list[Tensor] = []
    near_args, near_kwargs = _near(args, tensors), {key: _near(x, tensors) for key, x in kwargs.items()}
    far = [x for x in tensors if isinstance(x, Far)]
    wanted = kwargs.get("device")
    to = ELSEWHERE if (far if wanted is None else wanted in (ELSEWHERE, _SHOWN)) else torch.device("cpu")
    if not far and to != ELSEWHERE:
        return func(*args, **kwargs)
    _refuse(func, tensors, far, to)
    if wanted is not None:
        near_kwargs["device"] = torch.device("cpu")
    result = _int_mm(*near_args) if func is aten._int_mm.default else func(*near_args, **near_kwargs)
    if func._schema.is_mutable:
        return args[0]
    return _far(result) if to == ELSEWHERE else result


def _near(x: Any, found: list[Tensor]) -> Any:
    """Arguments with the tensors inside, which are ``found``, as ordinary ones."""
    if isinstance(x, Tensor):
        found.append(x)
        return x.near if isinstance(x, Far) else x
    return [_near(each, found) for each in x] if isinstance(x, (list, tuple)) else x


def _far(x: Any) -> Any:
    if isinstance(x, (list, tuple)):
        return [_far(each) for each in x]
    return Far(x) if isinstance(x, Tensor) else x


def _refuse(func: Any, tensors: list[Tensor], far: list[Far], to: torch.device) -> None:
    name = func._schema.name.removeprefix("aten::")
    if name in ("_local_scalar_dense", "is_nonzero", "equal"):
        raise Misplaced(f"{name}: the host waits for a value of the device")
    moves = bool(tensors) and any(isinstance(x, Far) != (to == ELSEWHERE) for x in tensors)
    if moves and name == "_to_copy":
        if _MOVERS not in _callers():
            raise Misplaced(f"{name}: a value changes its device outside {_MOVERS}")
    elif moves or len(far) not in (0, len(tensors)):
        raise Misplaced(f"{name}: tensors of two devices, {[(str(x.device), tuple(x.shape)) for x in tensors]}")
    if name in _NOT_ON_INTEGERS and not tensors[0].is_floating_point():
        raise Misplaced(f"{name}: CUDA has it for floating point only, not for {tensors[0].dtype}")


def _callers() -> Iterator[str]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_globals.get("__name__", "")
        frame = frame.f_back  # type: ignore[assignment]


def _int_mm(a: Tensor, b: Tensor) -> Tensor:
    """The product under CUDA's rules (aten/src/ATen/native/cuda/Blas.cpp)."""
    (m, k), n = a.shape, b.shape[1]
    if m <= 16 or k % 8 or n % 8 or not k or not n:
        raise Misplaced(f"_int_mm of ({m}, {k}) by ({k}, {n}): CUDA takes m > 16, and k and n by the eight")
    if not (a.is_contiguous() and b.is_contiguous()):
        raise Misplaced("_int_mm of matrices that do not lie row by row")
    return a.to(torch.int32) @ b.to(torch.int32)
