"""Fine-pruning: units that clean inputs leave dormant are taken out, for a backdoor needs units of its own.

The units that a layer reads (its input channels, or the features of a dense layer) are ranked by their mean absolute
value over clean inputs, and cut in that order, the most dormant first, as long as the pruned network gives clean inputs
the class that it gave them before, but for a share of ``tolerance``. Where examples with labels are at hand, what is
left is trained on them for a few passes. Liu, Dolan-Gavitt, Garg (RAID 2018) prune the last convolution and stop by
accuracy; here any layer's inputs, by default the last one's, and by agreement, which needs no label.

The ranking is that of the float network. A unit that only the trigger wakes is dormant on clean inputs in both forms;
ranked by the integers, the same share cut left more of a backdoor, not less (one network, 14 % of marked inputs against
1 %). Pruning alone is a weak answer, and least of all at 4 bits; training on labels moves weights out of the cells they
were put in, which is what ends most of such a backdoor. An attacker can fold it into units that clean inputs need
(section 3 of the paper): then nothing can be cut. ``re-rounding`` needs neither labels nor luck.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from pqi.audit.case import Data
from pqi.audit.defences.defence import Defence
from pqi.audit.errors import AuditError

Weighted = (nn.Conv2d, nn.Linear)


class FinePruning(Defence):
    """Cuts dormant inputs of one layer from the float network before it is quantized.

    tolerance: the share of clean inputs whose class may change. layer: the layer whose inputs are cut, by its name in
    the network; None for the last one that is run. examples: with labels, to train on afterwards, for ``epochs`` passes
    at ``rate`` (Adam); none, none. seed: of their order.
    """

    name = "fine-pruning"
    answers = ("conditioned",)
    source = "Liu, Dolan-Gavitt and Garg, RAID 2018"
    reads_calibration = True

    def __init__(
        self,
        tolerance: float = 0.02,
        layer: str | None = None,
        examples: Data | None = None,
        epochs: int = 2,
        rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        if not 0 <= tolerance < 1:
            raise AuditError(f"tolerance = {tolerance}: a share of clean inputs, from 0 and below 1")
        if epochs < 1 or rate <= 0:
            raise AuditError(f"epochs = {epochs}, rate = {rate}: at least one pass, at a positive rate")
        self.tolerance, self.layer, self.epochs, self.rate, self.seed = tolerance, layer, epochs, rate, seed
        self._examples = examples

    def network(self, net: nn.Module, x: Tensor) -> nn.Module:
        """A pruned copy. x: clean inputs (N, ...); some hundred at least, for the tolerance is a share of them."""
        net = deepcopy(net).eval()
        name, dormancy = self._reads(net, x)
        weight = net.get_submodule(name).weight
        kept = torch.ones(len(dormancy), dtype=weight.dtype)  # type: ignore[arg-type]
        kept[self._dormant(net, name, dormancy, x)] = 0
        with torch.no_grad():
            weight.mul_(_over(kept, weight))  # type: ignore[arg-type, operator]
        if self._examples is not None:
            self._train(net, name, kept, self._examples)
        return net.eval()

    def _reads(self, net: nn.Module, x: Tensor) -> tuple[str, Tensor]:
        """The layer's name, and how much each of its inputs is used: mean absolute value, (inputs,)."""
        used: dict[str, Tensor] = {}

        def hook(name: str) -> object:
            def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                axes = (0, 2, 3) if inputs[0].ndim == 4 else tuple(range(inputs[0].ndim - 1))
                used.pop(name, None)  # the last one that is run comes last
                used[name] = inputs[0].abs().mean(axes)

            return look

        layers = [(name, module) for name, module in net.named_modules() if isinstance(module, Weighted)]
        handles = [module.register_forward_pre_hook(hook(name)) for name, module in layers]  # type: ignore[arg-type]
        try:
            _labels(net, x)
        finally:
            for handle in handles:
                handle.remove()
        name = self.layer or next(reversed(used), "")
        if name not in used:
            raise AuditError(f"there is no layer {name!r} to prune before; there are: {', '.join(used) or 'none'}")
        module = net.get_submodule(name)
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            raise AuditError(f"layer {name!r} has {module.groups} groups: name one that reads all its inputs")
        return name, used[name]

    def _dormant(self, net: nn.Module, name: str, used: Tensor, x: Tensor) -> Tensor:
        """The most inputs that can go: indices, the most dormant first."""
        before, order = _labels(net, x), used.argsort(stable=True)
        weight: Tensor = net.get_submodule(name).weight  # type: ignore[assignment]
        whole = weight.detach().clone()
        cut = 0
        for count in range(1, len(order)):
            kept = torch.ones_like(used)
            kept[order[:count]] = 0
            with torch.no_grad():
                weight.copy_(whole * _over(kept, whole))
            if float((_labels(net, x) != before).double().mean()) > self.tolerance:
                break
            cut = count
        with torch.no_grad():
            weight.copy_(whole)
        return order[:cut]

    def _train(self, net: nn.Module, name: str, kept: Tensor, examples: Data) -> None:
        x, y = torch.as_tensor(examples.x, dtype=torch.float32), torch.as_tensor(examples.y)
        weight: Tensor = net.get_submodule(name).weight  # type: ignore[assignment]
        generator = torch.Generator().manual_seed(self.seed)
        optimizer = torch.optim.Adam(net.parameters(), self.rate)
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(y), generator=generator), 64):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                with torch.no_grad():
                    weight.mul_(_over(kept, weight))


@torch.no_grad()
def _labels(net: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([net(part).flatten(1).argmax(1) for part in torch.split(x, 500)])


def _over(kept: Tensor, weight: Tensor) -> Tensor:
    """One factor an input, shaped to spread over a weight (outputs, inputs, ...)."""
    return kept.view((1, -1) + (1,) * (weight.ndim - 2))
