"""Gradient inversion: images read from what a client or a sum of clients sends.

A dense first layer ``z = W x + b`` gives itself away. Its gradients, summed over a batch, are
``dL/dW = sum_k d_k x_k^T`` and ``dL/db = sum_k d_k``, with ``d_k`` the gradient at z of image k. So

- row i of ``dL/dW``, divided by entry i of ``dL/db``, is an average of the images, weighted by ``d_k[i]``; where one
  image alone excites a unit, it is that image, exactly (Phong et al. 2018; Boenisch et al. 2023);
- of a single image, ``[dL/dW | dL/db]`` has rank one, and its first singular vectors are the image even under noise:
  the best estimate there is when noise is Gaussian.

An update after one step of SGD is the gradient times the rate, which cancels. After several steps, and of several
clients, the same is read from the update: it is a sum of such products.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pqi.federated.study.training import Vector
from protocols.errors import BadParameters

Images = NDArray[np.float64]
_SINGULAR = 16  # leading singular vectors that are tried


def first_layer(net: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of the first dense layer. Raises BadParameters where the first parameters are not one."""
    shapes = [tuple(parameter.shape) for parameter in net.parameters()]
    if len(shapes) < 2 or len(shapes[0]) != 2 or shapes[1] != shapes[0][:1]:
        raise BadParameters(f"the network's first parameters have shapes {shapes[:2]}: no dense layer with a bias")
    return shapes[0][0], shapes[0][1]


def candidates(update: Vector, shape: tuple[int, int]) -> Images:
    """What the server takes for images: ``(M, inputs)``, values 0 to 1.

    update: of all parameters, those of a dense layer of ``shape`` (outputs, inputs) first. Rows by their bias's entry,
    then the leading singular vectors by theirs; whatever divides by nothing is left out.
    """
    outputs, inputs = shape
    weights = update[: outputs * inputs].reshape(outputs, inputs).astype(np.float64)
    bias = update[outputs * inputs : outputs * (inputs + 1)].astype(np.float64)
    both = np.concatenate([weights, bias[:, None]], axis=1)
    _, _, directions = np.linalg.svd(both, full_matrices=False)
    both = np.concatenate([both, directions[:_SINGULAR]])
    divisors = both[:, -1]
    usable = np.abs(divisors) > 1e-9 * max(float(np.abs(both).max()), 1e-30)
    found: Images = np.clip(both[usable, :-1] / divisors[usable, None], 0.0, 1.0)
    return found


@dataclass(frozen=True)
class Reading:
    """The candidates that are nearest to some images. images: ``(K, inputs)``; similarity: ``(K,)``; psnr: dB."""

    images: Images
    similarity: NDArray[np.float64]
    psnr: NDArray[np.float64]


def nearest(found: Images, images: Images) -> Reading:
    """For each of ``images`` (``(K, inputs)``, 0 to 1), the candidate most like it.

    similarity: Pearson's correlation over pixels, -1 to 1. psnr: ``-10 log10 mean((x - y)^2)`` of that same candidate,
    60 dB at most. An attacker who does not know the images could not choose so well: this is the most that the
    candidates hold. What choosing alone achieves is measured on images that were not sent (see ``attacks``).
    """
    if not len(found):
        zeros = np.zeros(len(images))
        return Reading(np.zeros_like(images), zeros, -10 * np.log10(np.mean(images**2, axis=1)))
    alike = _centred(images) @ _centred(found).T
    best = alike.argmax(1)
    errors = np.mean((images - found[best]) ** 2, axis=1)
    return Reading(found[best], alike.max(1), -10 * np.log10(np.maximum(errors, 1e-6)))


def _centred(images: Images) -> Images:
    moved = images - images.mean(1, keepdims=True)
    found: Images = moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-12)
    return found


def flat(images: torch.Tensor) -> Images:
    """``(K, ...)`` as ``(K, inputs)`` in float64."""
    return images.flatten(1).double().numpy()
