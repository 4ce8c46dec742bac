"""Import of operators with weights, of arithmetic with constants, and of activations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pqi.graph.floating import Clamp, FloatConv2d, FloatDense, Sign, Threshold
from pqi.graph.importing import Call, Comparison, Value, handles, refuse
from pqi.graph.ops import Add, Pad

Pair = tuple[int, int]


def pair(value: Any, default: int = 1) -> Pair:
    """An int or a list of one or two ints as a pair."""
    items = [default] if value is None or value == [] else list(value) if isinstance(value, (list, tuple)) else [value]
    if len(items) not in (1, 2) or not all(isinstance(i, int) for i in items):
        refuse(f"its argument {value!r} must be one or two fixed integers")
    return items[0], items[-1]


def _one(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.ones((), dtype=dtype)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@handles("conv2d", "convolution")
def conv2d(call: Call) -> Value:
    """Two-dimensional convolution with constant weights."""
    x, weight, bias = call.tensor("input"), call.constant("weight"), call.constant("bias")
    if weight is None or weight.ndim != 4 or call["transposed"] or len(call.shape(x)) != 3:
        refuse(
            "only two-dimensional convolutions that are not transposed are supported: reshape (N, C, L) to (N, C, 1, L)"
        )
    stride, dilation, kernel = pair(call["stride"]), pair(call["dilation"]), (weight.shape[2], weight.shape[3])
    padding: Any = call["padding"]
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(t % 2 for t in total):  # an even kernel pads one more after than before
            x = call.emit(Pad(((0, 0), *((t // 2, t - t // 2) for t in total))), x)
            padding = (0, 0)
        else:
            padding = (total[0] // 2, total[1] // 2)
    bias = torch.zeros(weight.shape[0], dtype=torch.float64) if bias is None else bias
    return call.emit(FloatConv2d(weight, bias, stride, pair(padding, 0), dilation, call["groups"] or 1), x)


def _dense(call: Call, x: Value, weight: Tensor | None, bias: Tensor | None) -> Value:
    if weight is None or weight.ndim != 2 or not call.shape(x):
        refuse("only products of a value with a constant two-dimensional weight are supported")
    if bias is not None and bias.shape not in ((), (1,), (weight.shape[0],), (1, weight.shape[0])):
        refuse(f"its bias of shape {tuple(bias.shape)} must hold one number per output feature")
    bias = _zero() if bias is None else bias
    return call.emit(FloatDense(weight, bias.reshape(-1).expand(weight.shape[0]).clone()), x)


@handles("linear")
def linear(call: Call) -> Value:
    """x W^T + b."""
    return _dense(call, call.tensor("input"), call.constant("weight"), call.constant("bias"))


@handles("matmul", "mm")
def matmul(call: Call) -> Value:
    """x @ W with a constant W on the right."""
    weight = call.constant("other") if "other" in call.args else call.constant("mat2")
    if weight is not None and weight.ndim != 2:
        refuse("only products of a value with a constant two-dimensional weight are supported")
    return _dense(call, call.tensor("self"), None if weight is None else weight.t().contiguous(), None)


@handles("addmm")
def addmm(call: Call) -> Value:
    """beta b + alpha x @ W."""
    weight, bias = call.constant("mat2"), call.constant("self")
    if weight is None or bias is None:
        refuse("its weight and bias must be constants")
    weight = weight.t().contiguous() * float(call["alpha"])
    return _dense(call, call.tensor("mat1"), weight, bias * float(call["beta"]))


@handles("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def batch_norm(call: Call) -> Any:
    """Evaluation-mode batch norm: one factor and one shift per channel."""
    mean, var = call.constant("running_mean"), call.constant("running_var")
    if call["training"] or mean is None or var is None:
        refuse("batch norm must use its running statistics: call net.eval() and keep track_running_stats=True")
    weight, bias = call.constant("weight"), call.constant("bias")
    factor = torch.rsqrt(var + float(call["eps"])) * (_one() if weight is None else weight)
    shift = (_zero() if bias is None else bias) - mean * factor
    x = call.tensor("input")
    if not call.shape(x) or call.shape(x)[0] != mean.shape[0]:
        refuse(f"its input must have {mean.shape[0]} channels on axis 1")
    spread = (-1,) + (1,) * (len(call.shape(x)) - 1)
    result = call.affine(x, factor.view(spread), shift.view(spread))
    return result if call.node.target is torch.ops.aten.batch_norm.default else [result]


def _sum(call: Call, x: Any, y: Any, factor: float) -> Value:
    """x + factor * y, with a constant on one side at most."""
    if isinstance(x, Value) and isinstance(y, Value):
        if call.shape(x) != call.shape(y):
            refuse(f"it adds values of shapes {call.shape(x)} and {call.shape(y)}: only equal shapes are supported")
        y = y if factor == 1 else call.affine(y, _one() * factor, _zero())
        return call.emit(Add(), x, y)
    if isinstance(x, Value):
        constant = call.constant("other")
        return call.affine(x, _one(), (_zero() if constant is None else constant) * factor)
    constant = call.constant("self")
    return call.affine(y, _one() * factor, _zero() if constant is None else constant)


@handles("add", "sub")
def add(call: Call) -> Value:
    """Residual addition, or addition of a constant."""
    alpha = 1.0 if call["alpha"] is None else float(call["alpha"])
    sign = (
        -1.0
        if call.node.target in (torch.ops.aten.sub.Tensor, torch.ops.aten.sub.Scalar, torch.ops.aten.sub_.Tensor)
        else 1.0
    )
    return _sum(call, call["self"], call["other"], alpha * sign)


@handles("rsub")
def rsub(call: Call) -> Value:
    """constant - alpha x."""
    constant, alpha = call.constant("other"), float(call["alpha"] or 1)
    return call.affine(call.tensor("self"), -_one() * alpha, _zero() if constant is None else constant)


@handles("neg")
def neg(call: Call) -> Value:
    """-x."""
    return call.affine(call.tensor("self"), -_one(), _zero())


@handles("mul", "div")
def mul(call: Call) -> Value:
    """Product or quotient with a constant."""
    divide = "div" in str(call.node.target)
    if divide and (call["rounding_mode"] is not None or not isinstance(call["self"], Value)):
        refuse("only division of a value by a constant, without rounding, is supported")
    x, constant = ("self", "other") if isinstance(call["self"], Value) else ("other", "self")
    if isinstance(call[constant], Value):
        refuse(
            "it multiplies two values that both depend on the input: only products with constants are supported "
            "(and x * x by pqi.to_polynomial, for protocols bfv and ckks)"
        )
    factor = call.constant(constant)
    if factor is None or (divide and bool((factor == 0).any())):
        refuse("it divides by zero")
    return call.affine(call.tensor(x), 1.0 / factor if divide else factor, _zero())


@handles("relu")
def relu(call: Call) -> Value:
    """max(x, 0)."""
    return call.emit(Clamp(0.0, math.inf), call.tensor("self"))


@handles("relu6")
def relu6(call: Call) -> Value:
    """min(max(x, 0), 6)."""
    return call.emit(Clamp(0.0, 6.0), call.tensor("self"))


@handles("hardtanh", "clamp", "clamp_min", "clamp_max")
def clamp(call: Call) -> Value:
    """min(max(x, lo), hi) with numbers lo <= hi."""
    ends = []
    for names, default in ((("min_val", "min"), -math.inf), (("max_val", "max"), math.inf)):
        given = [call.constant(n) for n in names if call[n] is not None]
        if given and given[0] is not None and given[0].numel() != 1:
            refuse("its limits must be one number each")
        ends.append(float(given[0]) if given and given[0] is not None else default)
    if not ends[0] < ends[1]:
        refuse(f"its lower limit {ends[0]} must be below its upper limit {ends[1]}")
    return call.emit(Clamp(ends[0], ends[1]), call.tensor("self"))


@handles("sign", "sgn")
def sign(call: Call) -> Value:
    """-1, 0 or 1."""
    return call.emit(Sign(), call.tensor("self"))


@handles("ge", "gt", "le", "lt")
def compare(call: Call) -> Comparison:
    """A comparison with a number; it becomes a value where torch.where or a cast reads it."""
    name = call.node.target._schema.name.split("::")[-1].rstrip("_")  # type: ignore[union-attr]
    level = call.constant("other")
    if level is None or level.numel() != 1:
        refuse("only comparisons of a value with one number are supported")
    # x > t is "strict"; x < t is the opposite of x >= t
    return Comparison(call.tensor("self"), float(level), name in ("gt", "le"), name in ("lt", "le"))


def threshold(call: Call, test: Comparison, when_true: float, when_false: float) -> Value:
    """The two-level step that a comparison selects; levels (1, -1) or (1, 0) in either order."""
    above, below = (when_false, when_true) if test.negated else (when_true, when_false)
    strict, factor = test.strict, 1.0
    if above < below:  # a falling step is a rising one of -x, where >= and > change places
        above, below, strict, factor = below, above, not strict, -1.0
    if (below, above) not in ((-1.0, 1.0), (0.0, 1.0)):
        refuse(f"it selects between {when_true:g} and {when_false:g}: use 1 and -1, or 1 and 0, and scale afterwards")
    x = test.of
    if factor != 1.0 or test.level:
        x = call.affine(x, _one() * factor, -_one() * factor * test.level)
    return call.emit(Threshold(strict, int(below), int(above)), x)


@handles("where")
def where(call: Call) -> Value:
    """torch.where(x >= t, a, b) with numbers a and b."""
    test, levels = call["condition"], [call.constant("self"), call.constant("other")]
    if not isinstance(test, Comparison) or any(v is None or (v != v.flatten()[0]).any() for v in levels):
        refuse(
            "only torch.where(x >= t, 1, -1) and its like are supported: a comparison with a number, and two numbers"
        )
    return threshold(call, test, *(float(v.flatten()[0]) for v in levels if v is not None))
