"""Subjects by name: real data, a network trained on them here, and its integer models. Seeded."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (as everybody writes it)
from numpy.typing import NDArray
from torch import Tensor, nn

from pqi.demo.cancer import load_cancer
from pqi.demo.cancer import train as train_regression
from pqi.demo.digits import load_digits, train_network
from pqi.demo.measure import threads
from pqi.measure.errors import MeasureError
from pqi.measure.networks import digits_cnn, digits_mlp, mnist_cnn
from pqi.measure.subject import Subject
from pqi.quant.api import quantize
from pqi.quant.polynomial.api import to_polynomial

SEED = 0
MNIST_EPOCHS, MNIST_BATCH, MNIST_RATE = 12, 128, 5e-3
SQUARES: Any = {"epochs": 9, "weight_bits": 3, "input_bits": 2, "answer_bits": 48}  # two plain primes of BFV hold 48
DATA = "PQI_DATA"
Say = Callable[[str], None]


def named(name: str, say: Say = lambda _: None) -> Subject:
    """The subject of that name: data read, network trained and made integer. Raises MeasureError, DemoError."""
    if name not in PROBLEMS:
        raise MeasureError(f"there is no network {name!r}; there are: {', '.join(PROBLEMS)}")
    # Batches are so small that more threads would only wait for each other.
    with threads(1):
        return PROBLEMS[name](say)


def _breast_cancer(say: Say) -> Subject:
    data = load_cancer()
    say("training a logistic regression of 30 inputs")
    net = train_regression(data)
    model = quantize(net, data.train_x, 8, 8, input_bits=8)
    note = "Wisconsin breast cancer, 569 cases of 30 measurements, 143 of them held out; logistic regression"
    return Subject("breast-cancer", model, None, net, data.test_x, data.test_y, note)


def _digits(name: str, build: Callable[[], nn.Module]) -> Callable[[Say], Subject]:
    def subject(say: Say) -> Subject:
        data = load_digits()
        say("training on 1,347 digits of 8 x 8 pixels")
        net = train_network(build, data)
        integer = quantize(net, data.train_x, 8, 6, input_bits=5)
        say("training it again with squares for protocols under a key")
        polynomial = to_polynomial(net, data.train_x, data.train_y)
        note = "scikit-learn's digits, 450 images held out; squares in place of ReLU under a key"
        return Subject(name, integer, polynomial, net, data.test_x, data.test_y, note)

    return subject


def _mnist(say: Say) -> Subject:
    x, y, test_x, test_y = mnist_images()
    say("training on 60,000 digits of 28 x 28 pixels")
    net = _trained(x, y)
    integer = quantize(net, x[:2000], 8, 6, input_bits=4)
    say("training it again with squares for protocols under a key")
    polynomial = to_polynomial(net, x, y, batch=MNIST_BATCH, augment=shifted, **SQUARES)
    note = "MNIST, 10,000 images held out; the shape of CryptoNets, squares in place of ReLU under a key"
    return Subject("mnist-cryptonet", integer, polynomial, net, test_x, test_y, note)


def mnist_images() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """The four files of MNIST below the folder that PQI_DATA names: pixels 0 to 1 and labels, to train and to test."""
    folder = os.environ.get(DATA)
    if not folder:
        raise MeasureError(
            f"mnist-cryptonet needs MNIST's files: set {DATA} to a folder whose mnist/ holds "
            "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two of t10k"
        )
    x, y, test_x, test_y = (
        _idx(Path(folder) / "mnist" / f"{part}-{kind}-ubyte.gz")
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )
    return _pixels(x), y.astype(np.int64), _pixels(test_x), test_y.astype(np.int64)


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = images[:, None].astype(np.float32) / np.float32(255)
    return scaled


def _idx(path: Path) -> NDArray[np.uint8]:
    """An array in the format that MNIST came in: two zeros, the type, the number of sizes, the sizes, the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, struct.error, ValueError, IndexError) as error:
        raise MeasureError(f"{path} is not one of MNIST's files ({type(error).__name__}: {error})") from None


def _trained(images: NDArray[np.float32], labels: NDArray[np.int64]) -> nn.Module:
    """The network with ReLU, trained with Adam. The caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        net, x, y = mnist_cnn(), torch.from_numpy(images), torch.from_numpy(labels)
        steps = MNIST_EPOCHS * -(-len(x) // MNIST_BATCH)
        optimizer = torch.optim.Adam(net.parameters(), weight_decay=1e-5)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MNIST_RATE, total_steps=steps)
        generator = torch.Generator().manual_seed(SEED)
        for _ in range(MNIST_EPOCHS):
            for index in torch.split(torch.randperm(len(x)), MNIST_BATCH):
                optimizer.zero_grad()
                torch.autograd.backward(F.cross_entropy(net(shifted(x[index], generator)), y[index]))
                optimizer.step()
                schedule.step()
    return net.eval()


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image (N, 1, H, W) moved by up to one pixel along each axis, with black where nothing was."""
    size = images.shape[-1]
    wide = F.pad(images, (1, 1, 1, 1))[:, 0]
    down, across = torch.randint(0, 3, (2, len(images), 1), generator=generator) + torch.arange(size)
    return wide[torch.arange(len(images))[:, None, None], down[:, :, None], across[:, None, :]][:, None]


PROBLEMS: dict[str, Callable[[Say], Subject]] = {
    "breast-cancer": _breast_cancer,
    "digits-mlp": _digits("digits-mlp", digits_mlp),
    "digits-cnn": _digits("digits-cnn", digits_cnn),
    "mnist-cryptonet": _mnist,
}
NAMES = tuple(PROBLEMS)

__all__ = ["DATA", "NAMES", "PROBLEMS", "mnist_cnn", "mnist_images", "named"]
