"""An exported program as a module that attacks can work with.

What ``torch.export`` leaves behind refuses ``eval()`` and ``train()``, for it has one mode only, and may take batches
of one size only. Here both are settled; gradients pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


class ExportedModule(nn.Module):
    """The program in the one mode that it was exported in, for batches of any size."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.program = program.module()
        wanted = program.graph_signature.user_inputs[0]
        entry = next(node for node in program.graph.nodes if node.name == wanted)
        first = entry.meta["val"].shape[0]
        self.size = first if isinstance(first, int) else None

    def train(self, mode: bool = True) -> ExportedModule:
        """Leaves it as it is."""
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """By the names that the exported network gave them, which the integer model's layers bear too."""
        return self.program.named_parameters(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits; a last batch that is too short for a program of one size is filled up and cut again."""
        if self.size is None:
            return self._asked(x)
        parts = []
        for part in torch.split(x, self.size):
            rows = torch.arange(self.size) % len(part)
            parts.append(self._asked(part[rows])[: len(part)])
        return torch.cat(parts)

    def _asked(self, x: Tensor) -> Tensor:
        answer: Tensor = self.program(x)
        return answer


def as_module(network: nn.Module | ExportedProgram) -> nn.Module:
    """A network as commands load it, in evaluation mode."""
    return network.eval() if isinstance(network, nn.Module) else ExportedModule(network)
