"""Exact integer matrix products and convolutions, through signed-byte digits and the machine's int8 units.

An integer is cut into balanced base-256 digits, each in [-128, 127]; one product of digit matrices is a call of
``torch._int_mm`` (int8 x int8 -> int32). Values that span at most 256 integers need one digit after an offset, which
is what quantized activations are. Everything stays integer; the result is exact modulo 2^64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from protocols.ring import byte_product

# 2^16 products of magnitude at most 2^14 stay below 2^31: one int32 accumulation cannot overflow.
_MAX_INNER = 1 << 16


def signed_bytes(x: Tensor) -> tuple[list[Tensor], int]:
    """Digits d_0, d_1, ... (int8, x's shape) and an offset with x = offset + sum_j d_j 256^j mod 2^64."""
    if x.numel() == 0:
        return [x.to(torch.int8)], 0
    low, high = (int(v) for v in x.aminmax())
    if low >= -128 and high <= 127:
        return [x.to(torch.int8)], 0
    if high - low <= 255:
        return [(x - (low + 128)).to(torch.int8)], low + 128
    return signed_digits(x), 0


def signed_digits(x: Tensor) -> list[Tensor]:
    """As signed_bytes without an offset: for weights, and for values that span more than a byte."""
    low, high = (int(v) for v in x.aminmax()) if x.numel() else (0, 0)
    digits = [x.to(torch.int8)]  # the conversion keeps the low byte in two's complement: the balanced digit
    while (low < -128 or high > 127) and len(digits) < 8:
        x, low, high = (x - digits[-1]) >> 8, (low + 128) >> 8, (high + 128) >> 8
        digits.append(x.to(torch.int8))
    return digits


def digits_matmul(x_digits: Sequence[Tensor], w_digits: Sequence[Tensor]) -> Tensor:
    """Sum over digit pairs of 256^(i+j) x_i w_j^T, int64 [M, N] mod 2^64; pairs beyond 2^64 vanish."""
    (rows, inner), columns = x_digits[0].shape, w_digits[0].shape[0]
    total = torch.zeros(rows, columns, dtype=torch.int64)
    if 0 in (rows, inner, columns):
        return total
    for i, a in enumerate(x_digits):
        for j, b in enumerate(w_digits[: 8 - i]):
            for start in range(0, inner, _MAX_INNER):
                part = byte_product(a[:, start : start + _MAX_INNER], b[:, start : start + _MAX_INNER].t())
                part = part.to(torch.int64)
                total += part << (8 * (i + j)) if i + j else part
    return total


def int_matmul(x: Tensor, weight: Tensor, w_digits: Sequence[Tensor] | None = None) -> Tensor:
    """x [M, K] int64 times weight [N, K] int64 transposed: int64 [M, N], exact mod 2^64."""
    x_digits, offset = signed_bytes(x)
    out = digits_matmul(x_digits, signed_digits(weight) if w_digits is None else w_digits)
    return out + offset * weight.sum(1) if offset else out


def int_conv2d(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution (cross-correlation, as PyTorch's) without bias; x [N, C, H, W], weight [O, C/groups, kh, kw], int64.

    Returns int64 [N, O, H', W'], exact mod 2^64.
    """
    x = torch.nn.functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    out_hw = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(x.shape[2:], weight.shape[2:], stride, dilation, strict=True)
    ]
    if groups > 1 and weight.shape[1] <= 4:
        return _conv_by_taps(x, weight, stride, dilation, groups, out_hw)
    x_digits, offset = signed_bytes(x)
    per_in, per_out = weight.shape[1], weight.shape[0] // groups
    outs = []
    for g in range(groups):
        w = weight[g * per_out : (g + 1) * per_out].permute(0, 2, 3, 1).flatten(1)
        own = [digit[:, g * per_in : (g + 1) * per_in] for digit in x_digits]
        columns = [_columns(digit, weight.shape[2:], stride, dilation, out_hw) for digit in own]
        out = digits_matmul(columns, signed_digits(w))
        outs.append(out + offset * w.sum(1) if offset else out)
    flat = outs[0] if groups == 1 else torch.cat(outs, 1)
    return flat.view(x.shape[0], out_hw[0], out_hw[1], weight.shape[0]).permute(0, 3, 1, 2)


def _columns(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], out_hw: Sequence[int]
) -> Tensor:
    """im2col of a padded int8 tensor [N, C, H, W]: [N H' W', kh kw C]. Channels last, so that copies run in rows."""
    x = x.permute(0, 2, 3, 1).contiguous()
    n, _, _, c = x.shape
    sn, sh, sw, sc = x.stride()
    view = x.as_strided(
        (n, out_hw[0], out_hw[1], kernel[0], kernel[1], c),
        (sn, sh * stride[0], sw * stride[1], sh * dilation[0], sw * dilation[1], sc),
    )
    return view.reshape(n * out_hw[0] * out_hw[1], kernel[0] * kernel[1] * c)


def _conv_by_taps(
    x: Tensor, weight: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int, out_hw: Sequence[int]
) -> Tensor:
    """Convolution with few input channels per group (depthwise): one multiply-add per kernel position."""
    n, out_channels = x.shape[0], weight.shape[0]
    x = x.view(n, groups, weight.shape[1], *x.shape[2:])
    w = weight.view(groups, out_channels // groups, *weight.shape[1:])
    out = torch.zeros(n, groups, out_channels // groups, *out_hw, dtype=torch.int64)
    for i in range(weight.shape[1]):
        for a in range(weight.shape[2]):
            for b in range(weight.shape[3]):
                rows = slice(a * dilation[0], a * dilation[0] + (out_hw[0] - 1) * stride[0] + 1, stride[0])
                cols = slice(b * dilation[1], b * dilation[1] + (out_hw[1] - 1) * stride[1] + 1, stride[1])
                out += x[:, :, i : i + 1, rows, cols] * w[None, :, :, i, a, b, None, None]
    return out.view(n, out_channels, *out_hw)
