"""The model file: safetensors with the graph as JSON in its metadata. Reading one executes nothing.

The file's metadata has one entry, ``pqi``, of three lines: format name (of a model with rings, or of one with
polynomials) and version; SHA-256 over the third line and over every tensor's name, dtype, shape and bytes, so that an
alteration anywhere is noticed; and the model as canonical JSON (nodes, output, quantizer, scale; rings and policy, and
for dynamic models how inputs are scaled). One entry only, because safetensors does not keep the order of several: so
equal models are equal files. Everything read is checked by the constructors that also check what the library builds
itself, and the ranges are proven anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor

from pqi.graph.errors import ModelFileError, PqiGraphError
from pqi.graph.graph import MAX_NODES, IntegerGraph, Node
from pqi.graph.ops import CATALOGUE, Input
from pqi.quant.dynamic import DynamicScale
from pqi.quant.quantizer import Quantizer

if TYPE_CHECKING:
    from pqi.graph.model import IntegerModel
    from pqi.graph.polynomial import PolynomialModel

FORMAT = "pqi-integer-model"
POLYNOMIAL = "pqi-polynomial-model"
VERSION = 1
MAX_FILE = 1 << 32
_MAX_HEADER = 1 << 26
_SMALLEST = {torch.int8: 7, torch.int16: 15, torch.int32: 31, torch.int64: 63}


def to_bytes(model: IntegerModel | PolynomialModel) -> bytes:
    """The whole file as bytes."""
    from pqi.graph.model import IntegerModel

    tensors: dict[str, Tensor] = {}
    nodes = []
    for index, node in enumerate(model.graph.nodes):
        for field, tensor in node.op.tensors().items():
            tensors[f"{index}.{field}"] = _narrow(tensor)
        nodes.append(
            {
                "name": node.name,
                "kind": node.op.kind,
                "params": node.op.params(),
                "tensors": sorted(node.op.tensors()),
                "inputs": list(node.inputs),
                "source": node.source,
            }
        )
    q = model.input_quantizer
    described: dict[str, Any] = {
        "nodes": nodes,
        "output": model.graph.output,
        "output_scale": model.output_scale,
        "input_quantizer": {"scale": q.scale, "offset": q.offset, "modulus": q.modulus, "signed": q.signed},
    }
    kind = POLYNOMIAL
    if isinstance(model, IntegerModel):
        kind = FORMAT
        described |= {"accumulators": model.accumulators, "policy": model.policy}
        if model.dynamic is not None:
            described["dynamic"] = model.dynamic.to_json()
    text = json.dumps(described, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if not tensors:  # safetensors needs something to carry its metadata
        tensors = {"none": torch.zeros(1, dtype=torch.int8)}
    title = f"{kind} {VERSION}"
    return format_tensors(tensors, {"pqi": f"{title}\n{_digest(text, tensors, title)}\n{text}"})


def save(model: IntegerModel | PolynomialModel, path: str | Path) -> None:
    """Write the model to ``path``: first beside it, then renamed, so that no half-written file ever has the name."""
    target = Path(path)
    data = to_bytes(model)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    except OSError as error:
        raise ModelFileError(
            f"cannot write {target}: {error.strerror}. Choose a directory that exists and is writable."
        ) from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644 & ~_umask())
        os.replace(temporary, target)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise ModelFileError(f"cannot write {target}: {error.strerror}") from error


def load(path: str | Path) -> IntegerModel | PolynomialModel:
    """The model in a file; raises ModelFileError, with the reason, for anything but a whole, unaltered one."""
    target = Path(path)
    try:
        size = target.stat().st_size
        if size > MAX_FILE:
            raise ModelFileError(f"{target} has {size} bytes: model files have at most {MAX_FILE}")
        data = target.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {target}: {error.strerror or error}") from error
    try:
        return from_bytes(data)
    except ModelFileError as error:
        raise ModelFileError(f"{target} is not a usable model file: {error}") from error


def from_bytes(data: bytes) -> IntegerModel | PolynomialModel:
    """The model in the bytes of a file; raises ModelFileError."""
    try:
        title, digest, text = _header(data)
        tensors = parse_tensors(data)
        if digest != _digest(text, tensors, title):
            raise ModelFileError("its digest does not fit its content: it was altered or damaged. Get it again")
        return _model(title.split(" ")[0], json.loads(text), tensors)
    except ModelFileError:
        raise
    except (PqiGraphError, SafetensorError) as error:
        raise ModelFileError(str(error)) from error
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        RuntimeError,
        RecursionError,
        OverflowError,
    ) as error:
        raise ModelFileError(f"its description is malformed ({type(error).__name__}: {str(error)[:200]})") from error


def _header(data: bytes) -> tuple[str, str, str]:
    """Title, digest and description from the safetensors metadata, read with limits before anything else is."""
    if len(data) < 8:
        raise ModelFileError(f"it is truncated: {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, _MAX_HEADER):
        raise ModelFileError("it is truncated, or no model file: its header does not end inside it")
    header = json.loads(data[8 : 8 + length])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    entry = metadata.get("pqi") if isinstance(metadata, dict) else None
    known = isinstance(entry, str) and entry.startswith((f"{FORMAT} ", f"{POLYNOMIAL} ")) and entry.count("\n") == 2
    if not isinstance(entry, str) or not known:
        raise ModelFileError("it was not written by this library")
    title, digest, text = entry.split("\n")
    version = title.partition(" ")[2]
    if version != str(VERSION):
        raise ModelFileError(
            f"it has format version {version[:20]!r}, this library reads version {VERSION}: "
            "quantize the network again, or use the library version that wrote it"
        )
    return title, digest, text


def _model(kind: str, described: Any, tensors: dict[str, Tensor]) -> IntegerModel | PolynomialModel:
    from pqi.graph.model import IntegerModel
    from pqi.graph.polynomial import PolynomialModel

    if not isinstance(described["nodes"], list) or len(described["nodes"]) > MAX_NODES:
        raise ModelFileError(f"it has no list of at most {MAX_NODES} nodes")
    used: set[str] = set()
    nodes = []
    for index, item in enumerate(described["nodes"]):
        if item["kind"] not in CATALOGUE:
            raise ModelFileError(f"node {index} is of unknown kind {str(item['kind'])[:40]!r}")
        names = {field: f"{index}.{field}" for field in item["tensors"]}
        used.update(names.values())
        own = {field: _wide(tensors[name]) for field, name in names.items()}
        op = CATALOGUE[item["kind"]].build(_numbers_only(item["params"]), own)
        texts = (item["name"], item["source"], *item["inputs"])
        if not isinstance(item["inputs"], list) or not all(isinstance(t, str) and len(t) <= 4096 for t in texts):
            raise ModelFileError(f"node {index} has names that are no texts")
        nodes.append(Node(item["name"], op, tuple(item["inputs"]), item["source"]))
    if nodes and isinstance(nodes[0].op, Input) and math.prod(nodes[0].op.shape) == 0:
        raise ModelFileError("its input is empty")
    if set(tensors) - used - {"none"}:
        raise ModelFileError(f"it carries tensors that no node uses: {sorted(set(tensors) - used)[:3]}")
    q = described["input_quantizer"]
    quantizer = Quantizer(q["scale"], q["offset"], q["modulus"], None, q["signed"])
    scale = described["output_scale"]
    if isinstance(scale, bool) or not isinstance(scale, (int, float)):
        raise ModelFileError("its output scale is malformed")
    graph = IntegerGraph(tuple(nodes), described["output"])
    if kind == POLYNOMIAL:
        return PolynomialModel(graph, quantizer, float(scale))
    accumulators = described["accumulators"]
    if not isinstance(accumulators, dict):
        raise ModelFileError("its rings are malformed")
    dynamic = DynamicScale.from_json(described["dynamic"]) if "dynamic" in described else None
    return IntegerModel(graph, accumulators, quantizer, float(scale), described["policy"], dynamic=dynamic)


def _numbers_only(params: Any) -> dict[str, Any]:
    """The parameters, refused unless they are integers, booleans, None, and short lists of these."""

    def fine(value: Any, depth: int = 0) -> bool:
        if isinstance(value, list):
            return depth < 3 and len(value) <= 64 and all(fine(v, depth + 1) for v in value)
        return value is None or isinstance(value, (bool, int))

    if not isinstance(params, dict) or not all(fine(v) for v in params.values()):
        raise ModelFileError("a node has parameters that are no integers")
    return params


def _digest(text: str, tensors: dict[str, Tensor], title: str = f"{FORMAT} {VERSION}") -> str:
    whole = hashlib.sha256(f"{title}\n{len(text)}\n{text}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        whole.update(f"{len(name)} {name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()


def _narrow(tensor: Tensor) -> Tensor:
    """The same integers in the smallest dtype that holds them."""
    low, high = (int(v) for v in tensor.aminmax())
    for dtype, bits in _SMALLEST.items():
        if -(1 << bits) <= low and high < 1 << bits:
            return tensor.to(dtype).contiguous()
    return tensor.contiguous()


def _wide(tensor: Tensor) -> Tensor:
    if tensor.dtype not in _SMALLEST:
        raise ModelFileError(f"it carries a tensor of {tensor.dtype}: only signed integers have a place here")
    return tensor.to(torch.int64)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
