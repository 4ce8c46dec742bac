"""What commands read from disk: networks, arrays. Arrays are read without pickle."""

from __future__ import annotations

import importlib
import os
import sys
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pqi.cli.guard import CliError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn
    from torch.export import ExportedProgram

_SPELLING = "MODEL is an exported program (net.pt2) or package.module:function, where function() returns a torch module"

_NAMES = 8  # listed in a message


def load_network(spec: str) -> nn.Module | ExportedProgram:
    """The network that MODEL names.

    Either way code of the user's choosing runs here, with the user's rights: torch's loader trusts the file it reads.
    Raises CliError that says which part of the name leads nowhere.
    """
    if spec.endswith(".pt2"):
        return _exported(Path(spec))
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise CliError(f"MODEL {spec!r} is neither of the two forms. {_SPELLING}.")
    factory = _attribute(_module(module_name), module_name, attribute)
    from torch import nn

    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise CliError(f"{spec} is a {type(factory).__name__}. {_SPELLING}.")
    network = factory()
    if not isinstance(network, nn.Module):
        raise CliError(f"{spec}() returned a {type(network).__name__}; a torch.nn.Module is needed.")
    return network


def _exported(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise CliError(f"{path}: there is no such file. {_SPELLING}.")
    import torch.export

    try:
        return torch.export.load(path)
    except Exception as error:  # torch has no common error class for what can be wrong with such a file
        first = (str(error).splitlines() or [""])[0]
        raise CliError(
            f"{path} is not an exported program that this torch can read ({type(error).__name__}: {first}). "
            "torch.export.save(torch.export.export(net.eval(), (example,)), path) writes one."
        ) from error


def _module(name: str) -> Any:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise CliError(f"there is no module {name!r} below {here} or among the installed packages.") from error
        raise CliError(f"module {name!r} imports {missing!r}, which is not installed.") from error


def _attribute(module: Any, module_name: str, path: str) -> Any:
    found = module
    for part in path.split("."):
        if not hasattr(found, part):
            public = [name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))]
            known = f" It has: {', '.join(sorted(public)[:_NAMES])}." if public else ""
            raise CliError(f"module {module_name!r} has no {path!r}.{known}")
        found = getattr(found, part)
    return found


def load_calibration(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """x and, if the file has it, y, of an .npz file (x: key ``x``, or the only array), or x of an .npy file."""
    arrays = load_arrays(path)
    if set(arrays) == {""}:
        return arrays[""], None
    if "x" not in arrays and len(arrays) != 1:
        names = ", ".join(sorted(arrays)[:_NAMES]) + (", ..." if len(arrays) > _NAMES else "")
        raise CliError(f"{path} holds arrays {names}: one must be named x, for the inputs.")
    x = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    y = arrays.get("y") if "x" in arrays else None
    if y is not None and (y.ndim != 1 or len(y) != len(x) or y.dtype.kind not in "iu"):
        raise CliError(
            f"{path}: y has shape {y.shape} and dtype {y.dtype}; as labels it must hold {len(x)} integers, one for "
            "each input in x."
        )
    return x, y


def load_input(path: Path) -> NDArray[Any]:
    """The one array of an .npy file, or of an .npz file (key ``x``, or the only array)."""
    return load_calibration(path)[0]


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of the file by name; an .npy file's has the name ""."""
    if not path.is_file():
        raise CliError(f"{path}: there is no such file.")
    try:
        with path.open("rb") as file:  # numpy leaves a file that it opened itself open when it is damaged
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"": loaded}
            arrays = {name: loaded[name] for name in loaded.files}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("an archive of something else")
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CliError(
            f"{path} is not a file of numpy arrays, is damaged, or holds Python objects, which are never loaded "
            f"({error}). numpy.savez(path, x=inputs, y=labels) writes one."
        ) from error
    if not arrays:
        raise CliError(f"{path} holds no array.")
    return arrays
