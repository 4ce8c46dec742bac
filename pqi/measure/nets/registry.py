"""The networks by name: built, given weights, made integer, with inputs to ask about. Seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pqi.graph.model import IntegerModel
from pqi.measure import folder
from pqi.measure.errors import MeasureError
from pqi.measure.facts import facts
from pqi.measure.nets import mobilenet, resnet, small
from pqi.measure.nets.settle import settled
from pqi.measure.networks import trained
from pqi.measure.subject import Subject
from pqi.quant.api import quantize

WEIGHT_BITS, ACTIVATION_BITS = 8, 6
SEED = 0
_MNIST, _CIFAR = "mnist/train-images-idx3-ubyte.gz", "cifar10/test.npz"
_RESNET20 = "cifar10_resnet/resnet20.npz"
_TRAIN_BATCH, _TRAIN_RATE = 128, 3e-3
_TESTS = {"mnist": 2000, "cifar": 1000, "drawn": 64}
_CALIBRATION = {"mnist": 1000, "cifar": 256, "drawn": 64}
_LARGE = 100  # pixels of a side: from here on fewer images do, for there are enough pixels in each
_OF_LARGE = 16

Say = Callable[[str], None]
Images = tuple[NDArray[np.float32], NDArray[np.int64] | None, NDArray[np.float32], NDArray[np.int64] | None]


@dataclass(frozen=True)
class Network:
    """A definition. shape: of one image. images: which real ones fit it. epochs: of training, 0: weights are drawn."""

    make: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    title: str
    images: str = "drawn"
    epochs: int = 0


NETWORKS: dict[str, Network] = {
    "mlp": Network(small.mlp, (1, 28, 28), "784-128-128-10", "mnist", 2),
    "lenet": Network(small.lenet, (1, 28, 28), "LeNet 20-50-500", "mnist", 1),
    "resnet20": Network(resnet.resnet20, (3, 32, 32), "ResNet-20, shortcuts of type A", "cifar"),
    "vgg16": Network(small.vgg16, (3, 32, 32), "VGG-16 with batch norm, dense 512-512-10", "cifar"),
    "resnet18-64": Network(resnet.resnet18, (3, 64, 64), "ResNet-18, 1000 classes, 64 x 64"),
    "resnet18": Network(resnet.resnet18, (3, 224, 224), "ResNet-18, 1000 classes, 224 x 224"),
    "resnet50": Network(resnet.resnet50, (3, 224, 224), "ResNet-50, 1000 classes, 224 x 224"),
    "mobilenet": Network(mobilenet.mobilenet, (3, 128, 128), "MobileNetV1 0.25, 1000 classes, 128 x 128"),
}


def subject(name: str, say: Say = lambda _: None, rings: str = "proven") -> Subject:
    """The network of that name as a subject. Raises MeasureError."""
    if name not in NETWORKS:
        raise MeasureError(f"there is no network {name!r}; there are: {', '.join(NETWORKS)}")
    network = NETWORKS[name]
    calibration, labels, x, y = _images(network)
    net, of_weights = _network(name, network, calibration, labels, say)
    some = calibration[: _few(network, _CALIBRATION)]

    def made(weight_bits: int, activation_bits: int, rings: str) -> IntegerModel:
        return quantize(net, some, weight_bits, activation_bits, rings=rings)

    say("quantizing")
    model = made(WEIGHT_BITS, ACTIVATION_BITS, rings)
    known = y if of_weights != _DRAWN else None
    note = f"{network.title}: {facts(model)}; {of_weights}; {_of_images(network, len(x))}; {rings} rings"
    return Subject(name, model, None, net, x, known, note, made)


_DRAWN = "weights drawn from a seed, so that decisions mean nothing"


def _network(name: str, network: Network, x: NDArray[np.float32], y: NDArray[np.int64] | None, say: Say) -> Weighted:
    """The module with its weights, and where they come from."""
    if name == "resnet20" and folder.has(_RESNET20):
        say("reading published weights")
        return _published(network.make()), "published weights"
    if network.epochs and y is not None:
        say(f"training on {len(x):,} images")
        net = trained(
            network.make,
            torch.from_numpy(x),
            torch.from_numpy(y),
            epochs=network.epochs,
            batch=_TRAIN_BATCH,
            rate=_TRAIN_RATE,
        )
        return net, f"trained here in {network.epochs} epoch{'s' * (network.epochs > 1)}"
    say("drawing weights")
    return settled(network.make, torch.from_numpy(x[: _few(network, _CALIBRATION)]), SEED), _DRAWN


Weighted = tuple[nn.Module, str]


def _published(net: nn.Module) -> nn.Module:
    arrays = folder.npz(folder.root("resnet20", "with its weights") / _RESNET20)
    state = {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}
    try:
        missing = net.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:
        raise MeasureError(f"{_RESNET20} holds the weights of another network: {error}") from None
    if lacking := [name for name in missing if not name.endswith("num_batches_tracked")]:
        raise MeasureError(f"{_RESNET20} lacks {', '.join(lacking)}")
    return net.eval()


def _images(network: Network) -> Images:
    """Images to calibrate or train on, images to ask about, both with labels; drawn at random if none are here."""
    if network.images == "mnist" and folder.has(_MNIST):
        x, y, test_x, test_y = folder.mnist_images()
        return x, y, test_x[: _TESTS["mnist"]], test_y[: _TESTS["mnist"]]
    if network.images == "cifar" and folder.has(_CIFAR):
        x, y = folder.cifar_images("train", _CALIBRATION["cifar"])
        return x, y, *folder.cifar_images("test", _TESTS["cifar"])
    return _drawn(network, _CALIBRATION, SEED), None, _drawn(network, _TESTS, SEED + 1), None


def _drawn(network: Network, counts: dict[str, int], seed: int) -> NDArray[np.float32]:
    """Pixels without a pattern, 0 to 1, in colour normalised like photographs."""
    count = _few(network, {**counts, network.images: counts["drawn"]})
    pixels = torch.rand((count, *network.shape), generator=torch.Generator().manual_seed(seed)).numpy()
    return pixels if network.shape[0] == 1 else folder.normalised(pixels)


def _few(network: Network, counts: dict[str, int]) -> int:
    return _OF_LARGE if network.shape[-1] >= _LARGE else counts[network.images]


def _of_images(network: Network, count: int) -> str:
    real = {"mnist": _MNIST, "cifar": _CIFAR}.get(network.images, "")
    title = {"mnist": "MNIST", "cifar": "CIFAR-10"}.get(network.images, "")
    if real and folder.has(real):
        return f"the first {count:,} test images of {title}"
    return f"{count:,} images drawn at random"


NAMES: Sequence[str] = tuple(NETWORKS)
