"""Import of what only networks under encryption have a form for: squares, and activations that become squares."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from pqi.graph.aten_linear import mul
from pqi.graph.floating import Smooth, Square
from pqi.graph.importing import Call, Handler, Value, refuse


def _multiply(call: Call) -> Value:
    """x * x; any other product as usual."""
    x, y = call["self"], call["other"]
    if isinstance(x, Value) and x == y and "mul" in str(call.node.target):
        return call.emit(Square(), x)
    product: Value = mul(call)
    return product


def _square(call: Call) -> Value:
    return call.emit(Square(), call.tensor("self"))


def _power(call: Call) -> Value:
    """x ** 2, and powers of two of it."""
    exponent = call.constant("exponent")
    if exponent is None or exponent.numel() != 1 or float(exponent) not in (1.0, 2.0, 4.0, 8.0):
        refuse("only the powers 2, 4 and 8 of a value are supported: squares of squares")
    x = call.tensor("self")
    for _ in range(int(exponent).bit_length() - 1):
        x = call.emit(Square(), x)
    return x


def _smooth(name: str, function: Callable[..., Tensor], *settings: str) -> Handler:
    def handler(call: Call) -> Value:
        given = {key: call[key] for key in settings if call[key] is not None}
        return call.emit(Smooth(name, partial(function, **given)), call.tensor("self"))

    return handler


POLYNOMIAL: dict[str, Handler] = {
    "mul": _multiply,
    "square": _square,
    "pow": _power,
    "sigmoid": _smooth("sigmoid", torch.sigmoid),
    "tanh": _smooth("tanh", torch.tanh),
    "gelu": _smooth("gelu", functional.gelu, "approximate"),
    "silu": _smooth("silu", functional.silu),
    "mish": _smooth("mish", functional.mish),
    "softplus": _smooth("softplus", functional.softplus, "beta", "threshold"),
    "elu": _smooth("elu", functional.elu, "alpha"),
    "leaky_relu": _smooth("leaky_relu", functional.leaky_relu, "negative_slope"),
    "hardswish": _smooth("hardswish", functional.hardswish),
    "hardsigmoid": _smooth("hardsigmoid", functional.hardsigmoid),
    "abs": _smooth("abs", torch.abs),
}
"""Handlers for :func:`pqi.graph.capture.capture`, by the name of the ATen operator."""
