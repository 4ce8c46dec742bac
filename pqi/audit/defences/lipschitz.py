"""Layers that do not amplify errors: a penalty on how far each is from an isometry, in units of the integer graph.

Defensive Quantization (Lin, Gan and Han, ICLR 2019) adds beta / 2 sum_l ||W_l^T W_l - I||_F^2 to the loss, with W_l the
real weights of layer l as a matrix: whatever error enters a layer then leaves it no larger, be it an attacker's or that
of rounding. Here the weights in training are integers V_l. With s(l) the real that one unit of the layer's accumulator
stands for, and s(in) that of one code that it reads,

    W_l = u_l V_l,   u_l = s(l) / s(in),   s(l) = s0(l) e^g(l),   s(in) = s0(in) e^g(in)

where s0 are the scales that training begins with and g what their steps have grown by, so that the term is

    beta / 2 sum_l || u_l^2 V_l^T V_l - I ||_F^2

V_l is (outputs, inputs * window) for a convolution, and one such block for each of its groups. Its gradient reaches the
codes straight through their rounding; that by the steps' growth cancels, as W_l does not depend on it but for rounding.

The same matrix in units of codes is the gain G_l = V_l 2^-shift_l = W_l s(in) / s(out): by how many codes the next
layer's input moves when this layer's moves by one. With ``in_codes`` G_l stands in place of W_l, and layers that no
requantization reads are left out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pqi.audit.defences.training import TrainingDefence
from pqi.audit.errors import AuditError
from pqi.graph.ops import WEIGHTED, Conv2d, Requantize
from pqi.quant.train.module import LinearNode, TrainableGraph

if TYPE_CHECKING:
    from pqi.quant.train.loop import Batch, Task
    from pqi.quant.train.module import Weights


class Lipschitz(TrainingDefence):
    """beta / 2 sum_l ||W_l^T W_l - I||^2 over the real weights that the integers in training stand for.

    beta: weight of the term. in_codes: the gains in units of codes instead of the real weights.

    It costs one product of each layer's weights with themselves a batch. It bounds matrices, not the network: a
    convolution of a k x k window can amplify by up to k times its matrix, and added shortcuts add up.
    """

    name = "lipschitz"
    answers = ("pgd", "apgd", "fgsm", "square")
    source = "Lin, Gan and Han, ICLR 2019"

    def __init__(self, beta: float = 1e-3, in_codes: bool = False) -> None:
        if not 0 < beta < math.inf:
            raise AuditError(f"beta is {beta}: it must be positive and finite")
        self.beta, self.in_codes = beta, bool(in_codes)

    def begin(self, task: Task) -> None:
        """Refuses a training that has no real weights behind its integers."""
        if not isinstance(task.module, TrainableGraph):
            raise AuditError(
                f"defence {self.name!r} reads the scales of what pqi.finetune trains: nothing else has them"
            )
        if not matrices(task.module, task.module.integers(), self.in_codes):
            raise AuditError(f"defence {self.name!r} finds no layer with weights to train")

    def penalty(self, task: Task, batch: Batch, logits: Tensor) -> Tensor | None:
        """The term, of the weights of this pass."""
        if not isinstance(task.module, TrainableGraph):
            return None
        found = matrices(task.module, batch.weights, self.in_codes)
        return self.beta / 2 * torch.stack([distance(matrix) for matrix in found.values()]).sum()


def matrices(module: TrainableGraph, weights: Mapping[str, Weights], in_codes: bool = False) -> dict[str, Tensor]:
    """By layer: W_l, or G_l in units of codes, (groups, outputs / groups, inputs * window / groups)."""
    found = {}
    for node in module.graph.nodes:
        layer = module.linear[module.key[node.name]] if isinstance(node.op, WEIGHTED) else None
        if not isinstance(layer, LinearNode) or not layer.trained:
            continue
        flat = weights[node.name][0].flatten(1)
        if not in_codes:
            flat = flat * _unit(module, node.name, node.inputs[0])
        else:
            reader = module.graph.by_name.get(module.read_by[node.name])
            if reader is None or not isinstance(reader.op, Requantize):
                continue
            flat = flat * 2.0**-reader.op.shift
        groups = node.op.groups if isinstance(node.op, Conv2d) else 1
        found[node.name] = flat.view(groups, -1, flat.shape[1])
    return found


def _unit(module: TrainableGraph, name: str, read: str) -> Tensor:
    """u_l: what one integer of the weight stands for, (outputs, 1) or (1, 1)."""
    made, first = module.groups.get(module.read_by[name], ""), module.groups[read]
    grown = _grown(module, made) - _grown(module, first)
    unit = torch.as_tensor(module.lowered.scales[name] / module.lowered.scales[read], dtype=torch.float32)
    return (unit * torch.exp(grown)).view(-1, 1)


def _grown(module: TrainableGraph, group: str) -> Tensor:
    return module.grown[module.key[group]] if group else torch.zeros(())


def distance(matrix: Tensor) -> Tensor:
    """sum over blocks of ||M^T M - I||_F^2, for blocks M (groups, a, b).

    Of M^T M and M M^T the smaller is formed: they have the same eigenvalues but for b - a zeros, each of which the
    identity misses by 1.
    """
    groups, rows, columns = matrix.shape
    turned = matrix.transpose(1, 2)
    gram = matrix @ turned if rows < columns else turned @ matrix
    missed = (gram - torch.eye(min(rows, columns))).square().sum()
    return missed + float(groups * max(columns - rows, 0))
