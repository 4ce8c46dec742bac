"""A model's arrays as one line of numbers, and back.

Client and server take the arrays in the record's order and each array in C order. Only floating-point arrays take part:
integer arrays (a counter of batches, say) are not averaged, the server's stay as they are.
"""

from __future__ import annotations

import hashlib

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from protocols.errors import Misuse


def parameters(arrays: ArrayRecord) -> int:
    """How many numbers of a model take part in an average."""
    return sum(int(np.prod(array.shape, dtype=np.int64)) for array in _floating(arrays).values())


def fingerprint(content: RecordDict) -> str:
    """SHA-256 of a message's records. Clients that are shown another model, or trained in another way, have another."""
    made = hashlib.sha256()
    for record_name in sorted(content):
        record = content[record_name]
        made.update(f"{type(record).__name__}\0{record_name}\0{len(record)}\0".encode())
        if isinstance(record, ArrayRecord):
            for name, array in record.items():
                made.update(f"{name}\0{array.dtype}\0{tuple(array.shape)}\0{len(array.data)}\0".encode())
                made.update(array.data)
        else:
            for name in sorted(record):
                made.update(f"{name}\0{record[name]!r}\0".encode())
    return made.hexdigest()


def difference(old: ArrayRecord, new: ArrayRecord) -> np.ndarray:
    """``new - old``, ``(parameters,)`` in float32, or float64 where an array is.

    Raises :class:`Misuse` if they are not arrays of the same model, or not finite.
    """
    if list(old) != list(new):
        raise Misuse(
            f"the client's function was given {len(old)} arrays {_few(old)} and returned {len(new)} {_few(new)}; "
            f"it has to return the whole model, under the same names in the same order"
        )
    parts = [np.zeros(0, np.float32)]
    for name, array in _floating(old).items():
        before, after = array.numpy(), new[name].numpy()
        if before.shape != after.shape:
            raise Misuse(f"array {name!r} was given with shape {before.shape} and came back with {after.shape}")
        wide = np.result_type(before, after, np.float32)
        change = after.astype(wide, copy=False) - before.astype(wide, copy=False)
        if not np.isfinite(change).all():
            raise Misuse(f"array {name!r} has values that are not finite: this client's training went astray")
        parts.append(change.ravel())
    return np.concatenate(parts)


def moved(old: ArrayRecord, change: np.ndarray) -> ArrayRecord:
    """``old + change`` in each array's own type; change: ``(parameters,)``. Integer arrays stay as they are."""
    if change.shape != (parameters(old),):
        raise Misuse(f"a change of {change.shape} numbers for a model of {parameters(old)}")
    out, at = dict(old.items()), 0
    for name, array in _floating(old).items():
        values = array.numpy()
        step = change[at : at + values.size].reshape(values.shape)
        out[name] = Array(np.asarray(values + step, dtype=values.dtype))
        at += values.size
    return ArrayRecord(out)


def _floating(arrays: ArrayRecord) -> dict[str, Array]:
    return {name: array for name, array in arrays.items() if np.dtype(array.dtype).kind == "f"}


def _few(arrays: ArrayRecord) -> str:
    names = list(arrays)
    return "(" + ", ".join(names[:3]) + (", ...)" if len(names) > 3 else ")")
