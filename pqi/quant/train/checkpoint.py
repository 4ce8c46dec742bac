"""A training on disk: parameters and moments as plain tensors, everything else as JSON; nothing that runs code."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pqi.graph.errors import QuantizationError

if TYPE_CHECKING:
    from pqi.quant.train.loop import Epoch, Schedule

_FORMAT = "pqi training 1"


def save(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    identity: str,
    history: list[Epoch],
) -> None:
    """Write the state after an epoch; the file is replaced as a whole, so a crash leaves the one before."""
    tensors = {f"module/{name}": value.detach().contiguous() for name, value in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in moments.items()}
    facts = {"schedule": asdict(schedule), "identity": identity, "history": [asdict(e) for e in history]}
    fresh = path.with_name(path.name + ".new")
    save_file(tensors, fresh, {"format": _FORMAT, "facts": json.dumps(facts)})
    os.replace(fresh, path)


def restore(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, schedule: Schedule, identity: str
) -> list[Epoch]:
    """Load the state if the file exists; returns the epochs done. Refuses the state of another training."""
    from pqi.quant.train.loop import Epoch

    if not path.exists():
        return []
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts = json.loads(described["facts"]) if described.get("format") == _FORMAT else None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise QuantizationError(
            f"{path}: this is no checkpoint of a training ({error}); remove it or name another"
        ) from None
    state = {name.removeprefix("module/"): value for name, value in tensors.items() if name.startswith("module/")}
    own = module.state_dict()
    same = facts is not None and facts["schedule"] == asdict(schedule) and facts.get("identity") == identity
    if facts is None or not same or _shapes(state) != _shapes(own):
        raise QuantizationError(
            f"{path}: this checkpoint belongs to another network, recipe, data set, to other defences or another "
            "schedule; remove it or name another file"
        )
    module.load_state_dict(state)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/")
            moments.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return [Epoch(**epoch) for epoch in facts["history"]]


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}
