"""Real data and weights below the folder that PQI_DATA names, in the formats they came in; read without pickle."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqi.measure.errors import MeasureError

DATA = "PQI_DATA"
_CIFAR = {"train": "train_a", "test": "test"}
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue


def has(part: str) -> bool:
    """Whether the folder is named and holds ``part``."""
    folder = os.environ.get(DATA)
    return bool(folder) and (Path(str(folder)) / part).exists()


def root(who: str, what: str) -> Path:
    """The folder. Raises MeasureError that says who needs what in it."""
    folder = os.environ.get(DATA)
    if not folder:
        raise MeasureError(f"{who}: set {DATA} to a folder {what}")
    return Path(folder)


def mnist_images() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """MNIST's four files: pixels 0 to 1 (N, 1, 28, 28) and labels, to train and to test."""
    folder = root(
        "MNIST's files are needed",
        "whose mnist/ holds train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two of t10k",
    )
    x, y, test_x, test_y = (
        idx(folder / "mnist" / f"{part}-{kind}-ubyte.gz")
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )
    return _unit(x[:, None]), y.astype(np.int64), _unit(test_x[:, None]), test_y.astype(np.int64)


def _unit(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled: NDArray[np.float32] = images.astype(np.float32) / np.float32(255)
    return scaled


def idx(path: Path) -> NDArray[np.uint8]:
    """An array in the format that MNIST came in: two zeros, the type, the number of sizes, the sizes, the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
        shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
    except (OSError, EOFError, struct.error, ValueError, IndexError) as error:
        raise MeasureError(f"{path} is not one of MNIST's files ({type(error).__name__}: {error})") from None


def cifar_images(part: str, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The first ``count`` images of CIFAR-10 ("train" or "test"), normalised (N, 3, 32, 32), and their labels.

    The file holds differences (red - green, green, blue - green; then along rows and along columns), modulo 256.
    """
    folder = root("CIFAR-10's files are needed", "whose cifar10/ holds test.npz and train_a.npz")
    arrays = npz(folder / "cifar10" / f"{_CIFAR[part]}.npz", "x_filtered", "y")
    x = arrays["x_filtered"][:count]
    x = np.cumsum(np.cumsum(x, 2, dtype=np.uint8), 3, dtype=np.uint8)
    x[:, 0] += x[:, 1]
    x[:, 2] += x[:, 1]
    return normalised(_unit(x)), arrays["y"][:count].astype(np.int64)


def normalised(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixels 0 to 1 (N, 3, H, W) as networks for photographs take them: minus the mean, by the deviation."""
    mean, deviation = (np.array(of, np.float32).reshape(3, 1, 1) for of in (_MEAN, _DEVIATION))
    return np.ascontiguousarray((pixels - mean) / deviation)


def npz(path: Path, *needed: str) -> dict[str, NDArray[Any]]:
    """Every array of the file. Raises MeasureError where it cannot be read or lacks one that is needed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise MeasureError(f"{path} cannot be read ({type(error).__name__}: {error})") from None
    if missing := [name for name in needed if name not in arrays]:
        raise MeasureError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(arrays)}")
    return arrays
