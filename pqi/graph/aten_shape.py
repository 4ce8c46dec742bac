"""Import of pooling, of what moves values, and of what does nothing at inference."""

from __future__ import annotations

from typing import Any

import torch

from pqi.graph.aten_linear import pair, threshold
from pqi.graph.floating import AvgPool2d
from pqi.graph.importing import Call, Comparison, Value, handles, refuse
from pqi.graph.ops import Concat, MaxPool2d, Pad, Permute, Slice, SumPool2d

_END = 1 << 62


def _image(call: Call) -> tuple[Value, tuple[int, int]]:
    x = call.tensor("self")
    shape = call.shape(x)
    if len(shape) != 3:
        refuse(f"two-dimensional pooling takes (N, C, H, W), this value is (N, {', '.join(map(str, shape))})")
    return x, (shape[1], shape[2])


@handles("max_pool2d", "max_pool2d_with_indices")
def max_pool2d(call: Call) -> Any:
    """Maximum over windows; of the variant with indices only the maxima may be used."""
    x, _ = _image(call)
    kernel = pair(call["kernel_size"])
    stride = pair(call["stride"]) if call["stride"] else kernel
    op = MaxPool2d(kernel, stride, pair(call["padding"], 0), pair(call["dilation"]), bool(call["ceil_mode"]))
    result = call.emit(op, x)
    return result if isinstance(call.node.meta["val"], torch.Tensor) else [result]


@handles("avg_pool2d")
def avg_pool2d(call: Call) -> Value:
    """Average over windows: a sum, whose divisor goes into the scale."""
    x, size = _image(call)
    kernel = pair(call["kernel_size"])
    stride, padding = pair(call["stride"]) if call["stride"] else kernel, pair(call["padding"], 0)
    if any(padding) and not call["count_include_pad"]:
        refuse("padded averages must count the padding (count_include_pad=True): the divisor must be one number")
    op = SumPool2d(kernel, stride, padding)
    if call["ceil_mode"] and op.infer_shape([(1, *size)])[1:] != call.result_shape()[1:]:
        refuse("ceil_mode adds partial windows, whose divisor differs: use ceil_mode=False")
    divisor = call["divisor_override"] or kernel[0] * kernel[1]
    if divisor < 0:
        refuse("its divisor must be positive")
    return call.emit(AvgPool2d(op, divisor), x)


def _adaptive_windows(call: Call) -> tuple[Value, tuple[int, int]]:
    x, size = _image(call)
    wanted = call["output_size"]
    wanted = wanted if isinstance(wanted, (list, tuple)) else [wanted]
    out = [w if w is not None else n for w, n in zip([wanted[0], wanted[-1]], size, strict=True)]
    if any(n % w for n, w in zip(size, out, strict=True)):
        refuse(f"its output size {tuple(out)} must divide the input size {size}: windows of one size are needed")
    return x, (size[0] // out[0], size[1] // out[1])


@handles("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def adaptive_avg_pool2d(call: Call) -> Value:
    """Averages over equal windows."""
    x, kernel = _adaptive_windows(call)
    return call.emit(AvgPool2d(SumPool2d(kernel, kernel), kernel[0] * kernel[1]), x)


@handles("adaptive_max_pool2d")
def adaptive_max_pool2d(call: Call) -> Any:
    """Maxima over equal windows."""
    x, kernel = _adaptive_windows(call)
    return [call.emit(MaxPool2d(kernel, kernel), x)]


@handles("mean")
def mean(call: Call) -> Value:
    """The mean over one or both spatial axes."""
    x, size = _image(call)
    dims = call["dim"]
    axes = {call.axis(x, d) for d in (dims if isinstance(dims, (list, tuple)) else [dims] if dims is not None else [])}
    if not axes or not axes <= {1, 2}:
        refuse("only the mean over the spatial axes (2 and 3 of N, C, H, W) is supported")
    kernel = (size[0] if 1 in axes else 1, size[1] if 2 in axes else 1)
    return call.reshaped(call.emit(AvgPool2d(SumPool2d(kernel, kernel), kernel[0] * kernel[1]), x), call.result_shape())


@handles("cat", "concat", "concatenate")
def cat(call: Call) -> Value:
    """Concatenation of values along any axis but the batch's."""
    parts = call["tensors"]
    if not isinstance(parts, (list, tuple)) or not all(isinstance(p, Value) for p in parts):
        refuse("only values computed from the input can be concatenated")
    return call.emit(Concat(call.axis(parts[0], call["dim"])), *parts)


@handles("flatten", "view", "reshape", "_unsafe_view", "unsqueeze", "squeeze", "unflatten", "view_copy", "squeeze_copy")
def reshape(call: Call) -> Value:
    """Any change of shape that keeps the batch axis."""
    return call.reshaped(call.tensor("self"), call.result_shape())


@handles("permute", "transpose", "t", "swapaxes", "swapdims")
def permute(call: Call) -> Value:
    """Any order of the axes that keeps the batch axis first."""
    x = call.tensor("self")
    rank = len(call.shape(x)) + 1
    order = list(range(rank))
    if call["dims"] is not None:
        order = [d % rank for d in call["dims"]]
    else:
        given = [call[n] for n in ("dim0", "dim1", "axis0", "axis1") if call[n] is not None]
        first, second = (d % rank for d in given) if given else (0, 1)
        order[first], order[second] = order[second], order[first]
    if order[0] != 0:
        refuse("it moves the batch axis: keep axis 0 where it is")
    return call.emit(Permute(tuple(d - 1 for d in order[1:])), x)


@handles("pad", "constant_pad_nd")
def pad(call: Call) -> Value:
    """Padding with zeros."""
    x, amounts = call.tensor("self"), list(call["pad"])
    if call["mode"] not in (None, "constant") or call["value"] not in (None, 0, 0.0):
        refuse("only padding with the constant 0 is supported")
    rank = len(call.shape(x))
    if any(not isinstance(a, int) or a < 0 for a in amounts) or any(amounts[2 * rank :]):
        refuse("its amounts must not be negative (use a slice to crop) and must leave the batch axis alone")
    amounts = amounts[: 2 * rank] + [0] * (2 * rank - len(amounts))
    pairs = [(amounts[2 * i], amounts[2 * i + 1]) for i in range(rank)]
    return call.emit(Pad(tuple(reversed(pairs))), x) if any(amounts) else x


def _slice(call: Call, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    length = call.shape(x)[axis]
    if (start, stop, step) == (0, length, 1):
        return x
    if not 0 <= start < stop <= length:
        refuse(f"it keeps nothing of an axis of length {length}")
    return call.emit(Slice(axis, start, stop, step), x)


@handles("slice", "narrow")
def slice_(call: Call) -> Value:
    """x[..., start:stop:step, ...] on any axis but the batch's, of which everything must be kept."""
    x, dim = call.tensor("self"), call["dim"] or 0
    start, step = call["start"] or 0, call["step"] or 1
    stop = start + call["length"] if call["length"] is not None else _END if call["end"] is None else call["end"]
    if not all(isinstance(v, int) for v in (start, stop, step)):
        refuse("its limits must be fixed numbers")
    if dim % (len(call.shape(x)) + 1) == 0 and start == 0 and stop >= _END and step == 1:
        return x
    axis = call.axis(x, dim)
    length = call.shape(x)[axis]
    start, stop = (max(0, v + length) if v < 0 else min(v, length) for v in (start, stop))
    return _slice(call, x, axis, start, stop, step)


@handles("select")
def select(call: Call) -> Value:
    """One index of an axis."""
    x = call.tensor("self")
    axis, index = call.axis(x, call["dim"]), call["index"]
    index += call.shape(x)[axis] if index < 0 else 0
    return call.reshaped(_slice(call, x, axis, index, index + 1), call.result_shape())


@handles("chunk", "split", "split_with_sizes")
def split(call: Call) -> list[Value]:
    """Consecutive parts of an axis."""
    x = call.tensor("self")
    axis = call.axis(x, call["dim"] or 0)
    parts, start = [], 0
    for index in range(len(call.node.meta["val"])):
        length = call.result_shape(index)[axis]
        parts.append(_slice(call, x, axis, start, start + length))
        start += length
    return parts


@handles("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def dropout(call: Call) -> Value:
    """Nothing, at inference."""
    if call["train"]:
        refuse("dropout is active: call net.eval(), or pass training=self.training")
    return call.tensor("input")


@handles("contiguous", "clone", "detach", "alias", "lift_fresh_copy", "positive", "to", "_to_copy", "type_as", "expand")
def identity(call: Call) -> Value:
    """The same value; a cast of a comparison makes it the numbers 1 and 0."""
    x = call["self"]
    if isinstance(x, Comparison):
        return threshold(call, x, 1.0, 0.0)
    value = call.tensor("self")
    seen = call.node.meta.get("val")
    if isinstance(seen, torch.Tensor) and not (seen.is_floating_point() or call["dtype"] in (torch.int64, torch.int32)):
        refuse("it casts to a type that cannot hold the values: stay in floating point")
    if call.result_shape() != call.shape(value):
        refuse("it repeats values: only operators that keep the shape are supported here")
    return value


@handles("ones_like", "zeros_like", "full_like")
def filled(call: Call) -> torch.Tensor:
    """A constant, whatever the input's values: one number that broadcasts."""
    name = str(call.node.target)
    fill = 1.0 if "ones" in name else 0.0 if "zeros" in name else float(call["fill_value"])
    return torch.tensor(fill, dtype=torch.float64)
