"""How often a network, and the integer model made of it, are right on labelled inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.export import ExportedProgram

from pqi.cli.guard import CliError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pqi.graph.model import IntegerModel
    from pqi.graph.polynomial import PolynomialModel

_BATCH = 256


def accuracies(
    network: nn.Module | ExportedProgram,
    model: IntegerModel | PolynomialModel,
    x: NDArray[Any],
    labels: NDArray[Any],
) -> tuple[float, float]:
    """Share of inputs whose top class is the label: of the float network, of the integer model.

    A single output stands for class 1 where it is positive, for class 0 otherwise.

    x: (N, ...). labels: integers (N,). Raises CliError where answers are not one vector of classes for each input.
    """
    answer = model.graph.shapes[model.graph.output]
    if len(answer) != 1:
        raise CliError(f"labels y were given, but the network's answers have shape {answer}: one vector is needed.")
    expected = _classes(torch.from_numpy(model.predict(x, "silent"))).numpy()
    return float((_top_classes(network, x) == labels).mean()), float((expected == labels).mean())


def _top_classes(network: nn.Module | ExportedProgram, x: NDArray[Any]) -> NDArray[Any]:
    """The float network's top classes, in evaluation mode, in batches of a size that it takes."""
    runnable, size = _runnable(network)
    numbers = [*runnable.parameters(), *runnable.buffers()]
    dtype = next((t.dtype for t in numbers if t.is_floating_point()), torch.float32)
    data = torch.from_numpy(x).to(dtype)
    found = []
    with torch.no_grad():
        for batch in torch.split(data, size):
            # A program exported for one batch size gets its last batch filled up.
            full = batch if len(batch) == size or size == _BATCH else batch[torch.arange(size) % len(batch)]
            found.append(runnable(full)[: len(batch)])
    return _classes(torch.cat(found)).numpy()


def _classes(answers: torch.Tensor) -> torch.Tensor:
    return answers.argmax(1) if answers.shape[1] > 1 else (answers[:, 0] > 0).long()


def _runnable(network: nn.Module | ExportedProgram) -> tuple[nn.Module, int]:
    if isinstance(network, nn.Module):
        return network.eval(), _BATCH
    program = network.module()
    name = network.graph_signature.user_inputs[0]
    entry = next(node for node in network.graph.nodes if node.name == name)
    first = entry.meta["val"].shape[0]
    return program, first if isinstance(first, int) else _BATCH
