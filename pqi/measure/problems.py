"""Subjects by name: real data, a network trained on them here, and its integer models. Seeded."""

from __future__ import annotations

from collections.abc import Callable
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
from pqi.graph.model import IntegerModel
from pqi.measure.errors import MeasureError
from pqi.measure.folder import DATA, mnist_images
from pqi.measure.nets import registry
from pqi.measure.networks import digits_cnn, digits_mlp, mnist_cnn
from pqi.measure.subject import Recipe, Subject
from pqi.quant.api import quantize
from pqi.quant.polynomial.api import to_polynomial

SEED = 0
MNIST_EPOCHS, MNIST_BATCH, MNIST_RATE = 12, 128, 5e-3
SQUARES: Any = {"epochs": 9, "weight_bits": 3, "input_bits": 2, "answer_bits": 48}  # two plain primes of BFV hold 48
Say = Callable[[str], None]
Maker = Callable[[Say, str], Subject]


def named(name: str, say: Say = lambda _: None, rings: str = "proven") -> Subject:
    """The subject of that name: data read, network trained and made integer. Raises MeasureError, DemoError."""
    if name not in NAMES:
        raise MeasureError(f"there is no network {name!r}; there are: {', '.join(NAMES)}")
    # Batches are so small that more threads would only wait for each other.
    with threads(1):
        return PROBLEMS[name](say, rings) if name in PROBLEMS else registry.subject(name, say, rings)


def _breast_cancer(say: Say, rings: str) -> Subject:
    data = load_cancer()
    say("training a logistic regression of 30 inputs")
    net = train_regression(data)
    made = _maker(net, data.train_x, 8)
    model = made(8, 8, rings)
    note = "Wisconsin breast cancer, 569 cases of 30 measurements, 143 of them held out; logistic regression"
    return Subject("breast-cancer", model, None, net, data.test_x, data.test_y, note, made)


def _digits(name: str, build: Callable[[], nn.Module]) -> Maker:
    def subject(say: Say, rings: str) -> Subject:
        data = load_digits()
        say("training on 1,347 digits of 8 x 8 pixels")
        net = train_network(build, data)
        made = _maker(net, data.train_x, 5)
        integer = made(8, 6, rings)
        say("training it again with squares for protocols under a key")
        polynomial = to_polynomial(net, data.train_x, data.train_y)
        note = "scikit-learn's digits, 450 images held out; squares in place of ReLU under a key"
        return Subject(name, integer, polynomial, net, data.test_x, data.test_y, note, made)

    return subject


def _mnist(say: Say, rings: str) -> Subject:
    x, y, test_x, test_y = mnist_images()
    say("training on 60,000 digits of 28 x 28 pixels")
    net = _trained(x, y)
    made = _maker(net, x[:2000], 4)
    integer = made(8, 6, rings)
    say("training it again with squares for protocols under a key")
    polynomial = to_polynomial(net, x, y, batch=MNIST_BATCH, augment=shifted, **SQUARES)
    note = "MNIST, 10,000 images held out; the shape of CryptoNets, squares in place of ReLU under a key"
    return Subject("mnist-cryptonet", integer, polynomial, net, test_x, test_y, note, made)


def _maker(net: nn.Module, x: NDArray[Any], input_bits: int) -> Recipe:
    """The network made integer with other bits or rings."""

    def made(weight_bits: int, activation_bits: int, rings: str) -> IntegerModel:
        return quantize(net, x, weight_bits, activation_bits, input_bits=input_bits, rings=rings)

    return made


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


PROBLEMS: dict[str, Maker] = {
    "breast-cancer": _breast_cancer,
    "digits-mlp": _digits("digits-mlp", digits_mlp),
    "digits-cnn": _digits("digits-cnn", digits_cnn),
    "mnist-cryptonet": _mnist,
}
NAMES = (*PROBLEMS, *registry.NETWORKS)

__all__ = ["DATA", "NAMES", "PROBLEMS", "mnist_cnn", "mnist_images", "named"]
