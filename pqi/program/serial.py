"""Programs as JSON: written canonically, read with suspicion."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from pqi.graph.errors import GraphError
from pqi.graph.ops import CATALOGUE, Op
from pqi.program.errors import ProgramError
from pqi.program.instructions import Instruction, Program
from pqi.program.interface import Interface
from pqi.program.windows import Windows
from protocols.api import STEPS, VISIBILITIES, Step
from protocols.errors import ProtocolError
from protocols.linmap import MAPS, LinearMap

FORMAT = 3  # to be raised whenever the same program is dealt, packed or computed in another way
MAX_INSTRUCTIONS = 100_000
MAX_INT = 1 << 32
_MAP_NAMES = {cls: name for name, cls in MAPS.items()}


def encode(p: Program) -> dict[str, Any]:
    """Plain data; the inverse of :func:`decode`."""
    return {
        "format": FORMAT,
        "protocol": p.protocol,
        "exact": p.exact,
        "input": {"shape": list(p.input_shape), "ring": p.input_ring},
        "output": {"shape": list(p.output_shape), "ring": p.output_ring},
        "answer": p.output,
        "instructions": [
            {"name": i.name, "layer": i.layer, "inputs": list(i.inputs), **_action(i.action)} for i in p.instructions
        ],
    }


def _action(action: Any) -> dict[str, Any]:
    if isinstance(action, Step):
        return {"step": type(action).__name__, "with": _record(action)}
    if isinstance(action, Windows):
        return {"local": "windows", "with": _record(action)}
    if isinstance(action, Op) and not action.tensors():
        return {"local": action.kind, "with": action.params()}
    raise ProgramError(f"{action!r} cannot stand in a program: it carries weights")


def _record(x: Any) -> dict[str, Any]:
    out = {}
    for f in fields(x):
        value = getattr(x, f.name)
        out[f.name] = (
            {"map": _MAP_NAMES[type(value)], **_record(value)} if isinstance(value, LinearMap) else _plain(value)
        )
    return out


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def decode(data: Mapping[str, Any]) -> Program:
    """A program from plain data. Every name, type and bound is checked; raises :class:`ProgramError`."""
    try:
        return _decode(data)
    except (ProtocolError, GraphError) as error:
        raise ProgramError(f"the stored program asks for something impossible: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ProgramError(f"the stored program is malformed ({type(error).__name__}: {str(error)[:200]})") from error


def _decode(data: Mapping[str, Any]) -> Program:
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
        raise ProgramError(f"program format {found!r}; this version reads format {FORMAT}. Split the model again")
    listed = data["instructions"]
    if not isinstance(listed, list) or len(listed) > MAX_INSTRUCTIONS:
        raise ProgramError(f"a program is a list of at most {MAX_INSTRUCTIONS} instructions")
    source, result = data["input"], data["output"]
    program = Program(
        protocol=_typed(data["protocol"], str, "protocol"),
        instructions=tuple(_instruction(i) for i in listed),
        output=_typed(data["answer"], str, "answer"),
        input_shape=_typed(source["shape"], tuple[int, ...], "input.shape"),
        input_ring=_ring(source["ring"], "input.ring"),
        output_shape=_typed(result["shape"], tuple[int, ...], "output.shape"),
        output_ring=_ring(result["ring"], "output.ring"),
        exact=_typed(data["exact"], bool, "exact"),
    )
    _ = program.backend  # an unknown protocol is refused here
    return program


def decode_interface(data: Mapping[str, Any]) -> Interface:
    """An interface from plain data. Raises :class:`ProgramError`."""
    try:
        source, result = data["input"], data["output"]
        interface = Interface(
            protocol=_typed(data["protocol"], str, "protocol"),
            input_shape=_typed(source["shape"], tuple[int, ...], "input.shape"),
            input_ring=_ring(source["ring"], "input.ring"),
            output_shape=_typed(result["shape"], tuple[int, ...], "output.shape"),
            output_ring=_ring(result["ring"], "output.ring"),
            exact=_typed(data["exact"], bool, "exact"),
            visibilities=_visibilities(data["visibilities"]),
            instructions_digest=_typed(data["instructions_sha256"], str, "instructions_sha256"),
            noise=_typed(data.get("noise", 0), int, "noise"),
        )
        if not 0 <= interface.noise < 1 << (interface.output_ring - 1) or (interface.noise and interface.exact):
            raise ProgramError(f"noise = {interface.noise} does not fit the answer's ring, or an exact program")
        _ = interface.backend
    except ProtocolError as error:
        raise ProgramError(f"the stored interface asks for something impossible: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ProgramError(f"the stored interface is malformed ({type(error).__name__}: {str(error)[:200]})") from error
    return interface


def _visibilities(value: Any) -> tuple[str, ...]:
    found: tuple[str, ...] = _typed(value, tuple[str, ...], "visibilities")
    if found != tuple(v for v in VISIBILITIES if v in found):
        raise ProgramError(f"visibilities = {str(found)[:60]}: of {', '.join(VISIBILITIES)}, in this order")
    return found


def _ring(value: Any, where: str) -> int:
    bits: int = _typed(value, int, where)
    if not 1 <= bits <= 32:
        raise ProgramError(f"{where} = {bits}: rings have 1 to 32 bits")
    return bits


def _instruction(i: Mapping[str, Any]) -> Instruction:
    name = _typed(i["name"], str, "name")
    inputs = _typed(i["inputs"], tuple[str, ...], f"{name}.inputs")
    given = i["with"]
    if "step" in i:
        if i["step"] not in STEPS:
            raise ProgramError(f"instruction {name!r} asks for an unknown step {str(i['step'])[:40]!r}")
        action: Any = _build(STEPS[i["step"]], given, name)
    elif i["local"] == "windows":
        action = _build(Windows, given, name)
    else:
        kind = i["local"]
        if kind not in CATALOGUE:
            raise ProgramError(f"instruction {name!r} asks for an unknown operation {str(kind)[:40]!r}")
        action = CATALOGUE[kind].build(given, {})
    return Instruction(name, action, inputs, _typed(i["layer"], str, f"{name}.layer"))


def _build(cls: type, given: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(cls)
    names = {f.name for f in fields(cls)}
    if set(given) != names:
        raise ProgramError(f"{where}: {cls.__name__} has fields {sorted(names)}, not {sorted(given)[:20]}")
    made = {}
    for key, value in given.items():
        if hints[key] is LinearMap:
            kind = value["map"]
            rest = {k: v for k, v in value.items() if k != "map"}
            made[key] = _build(MAPS[kind], rest, f"{where}.map")
        else:
            made[key] = _typed(value, hints[key], f"{where}.{key}")
    return cls(**made)


def _typed(value: Any, kind: Any, where: str) -> Any:
    """``value`` if it is of ``kind`` (int, bool, str, tuples of them; lists become tuples), else ProgramError."""
    if get_origin(kind) is tuple:
        inner = get_args(kind)
        many = len(inner) == 2 and inner[1] is Ellipsis
        if not isinstance(value, list) or (not many and len(value) != len(inner)) or len(value) > 64:
            raise ProgramError(f"{where} must be a list that fits {kind}, not {str(value)[:60]}")
        return tuple(_typed(v, inner[0] if many else inner[i], where) for i, v in enumerate(value))
    if isinstance(kind, types.UnionType) or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ProgramError(f"{where} must be {kind.__name__}, not {str(value)[:60]!r}")
    if kind is int and abs(value) > MAX_INT:
        raise ProgramError(f"{where} = {value} is beyond {MAX_INT}")
    return value
