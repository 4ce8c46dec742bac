"""What every operator of the integer graph is: a frozen record with a shape rule, an exact meaning and a range rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from pqi.graph.errors import GraphError, RangeError

Shape = tuple[int, ...]
Bounds = tuple[Tensor, Tensor]
OpT = TypeVar("OpT", bound="Op")

# Of one value without its batch axis, of one padded value, and of one input's im2col: absurd shapes are refused before
# any memory is asked for.
MAX_ELEMENTS = 1 << 25
MAX_COLUMNS = 1 << 28
MAX_WEIGHT = (1 << 31) - 1
MAX_BIAS = 1 << 40
INT64_SAFE = 1 << 62


@dataclass(frozen=True, eq=False)
class Op(ABC):
    """One operator.

    ``evaluate`` is its living definition: exact on int64 values of shape (N, ...). The local operators (those that
    only add, move or drop values) keep any integer dtype and wrap silently, so that they also act on share words.
    """

    kind: ClassVar[str]
    inputs_needed: ClassVar[tuple[int, int | None]] = (1, 1)

    @abstractmethod
    def infer_shape(self, in_shapes: Sequence[Shape]) -> Shape:
        """Shape of the result without the batch axis; raises GraphError when the inputs do not fit."""

    @abstractmethod
    def evaluate(self, inputs: Sequence[Tensor]) -> Tensor:
        """The result on a batch; inputs and result have a leading batch axis, which may be 0."""

    def bounds(self, in_bounds: Sequence[Bounds]) -> Bounds:
        """Elementwise range of the result, given elementwise ranges (lo, hi) of shape (1, *shape).

        This rule is the one of a monotone operator: the ends go to the ends.
        """
        return self.evaluate([lo for lo, _ in in_bounds]), self.evaluate([hi for _, hi in in_bounds])

    def params(self) -> dict[str, Any]:
        """The fields that are not tensors, as JSON values."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if not self._is_tensor(f.name)}

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are tensors."""
        return {f.name: getattr(self, f.name) for f in fields(self) if self._is_tensor(f.name)}

    def _is_tensor(self, name: str) -> bool:
        return isinstance(getattr(self, name), Tensor)

    @classmethod
    def build(cls: type[OpT], params: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> OpT:
        """The operator from what ``params`` and ``tensors`` returned; unknown or missing fields are refused."""
        known = {f.name for f in fields(cls)}
        given = {**{k: _frozen(v) for k, v in params.items()}, **tensors}
        if set(given) != known or len(given) != len(params) + len(tensors):
            raise GraphError(f"{cls.kind}: fields {sorted(given)} given, {sorted(known)} needed")
        return cls(**given)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


def check_int(kind: str, field: str, value: object, low: int, high: int) -> None:
    """Refuse a field that is not an int in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise GraphError(f"{kind}.{field} is {value!r}: it must be an integer from {low} to {high}")


def check_ints(kind: str, field: str, value: object, length: int | None, low: int, high: int) -> None:
    """Refuse a field that is not a tuple of ints in [low, high], of the given length if one is given."""
    if not isinstance(value, tuple) or (length is not None and len(value) != length):
        wanted = "a tuple" if length is None else f"a tuple of {length}"
        raise GraphError(f"{kind}.{field} is {value!r}: it must be {wanted} integers")
    for item in value:
        check_int(kind, field, item, low, high)


def check_tensor(kind: str, field: str, value: object, ndim: int, limit: int) -> None:
    """Refuse a field that is not a non-empty int64 tensor of ndim axes with every magnitude at most ``limit``."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != ndim or value.numel() == 0:
        what = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise GraphError(f"{kind}.{field} is {what}: it must be a non-empty int64 tensor of {ndim} axes")
    low, high = (int(v) for v in value.aminmax())
    if low < -limit or high > limit:
        raise GraphError(f"{kind}.{field} has values from {low} to {high}: magnitudes up to {limit} are allowed")


def check_bias(kind: str, bias: Tensor, channels: int) -> None:
    """Refuse a bias that is not one int64 value per output channel."""
    check_tensor(kind, "bias", bias, 1, MAX_BIAS)
    if bias.shape[0] != channels:
        raise GraphError(f"{kind}.bias has {bias.shape[0]} values for {channels} output channels")


def single(kind: str, in_shapes: Sequence[Shape], axes: int | None = None) -> Shape:
    """The only input shape; refused unless there is exactly one, with the given number of axes."""
    if len(in_shapes) != 1:
        raise GraphError(f"{kind} takes one input, {len(in_shapes)} given")
    if axes is not None and len(in_shapes[0]) != axes:
        raise GraphError(f"{kind} takes a value of {axes} axes (without the batch axis), got shape {in_shapes[0]}")
    return in_shapes[0]


def linear_bounds(
    kind: str, weight: Tensor, bias: Tensor, bounds: Bounds, apply: Callable[[Tensor, Tensor], Tensor]
) -> Bounds:
    """Interval arithmetic of ``weight . x + bias``: positive weights take the same end, negative ones the other.

    ``apply(x, w)`` is the linear map without bias. Exact: refused as soon as int64 could not hold the result.
    """
    lo, hi = bounds
    magnitude = max(abs(int(lo.min())), abs(int(hi.max())), abs(int(lo.max())), abs(int(hi.min())))
    l1 = int(weight.abs().flatten(1).sum(1).max())
    reach = magnitude * l1 + int(bias.abs().max())
    if reach >= INT64_SAFE:
        raise RangeError(
            f"{kind}: inputs up to {magnitude} times weights of L1 norm {l1} reach 2^{reach.bit_length()}; "
            "no ring of 32 bits holds that. Use fewer weight or activation bits."
        )
    both = apply(torch.cat([lo, hi]), weight.clamp(min=0)) + apply(torch.cat([hi, lo]), weight.clamp(max=0))
    return both[:1], both[1:]
