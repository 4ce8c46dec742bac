"""Weights for a network that nobody has trained: drawn from a seed, with statistics as training would leave them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

_PASSES = 4


def settled(make: Callable[[], nn.Module], x: Tensor, seed: int = 0) -> nn.Module:
    """The network in evaluation mode: He's weights, batch-norm statistics of the images x (N, C, H, W).

    He et al., ICCV 2015: Var[w] = 2 / fan-in keeps a ReLU network's values of one size. With random weights a network
    has the shape, the ranges and the costs of a trained one; its decisions mean nothing. The caller's random state is
    left as it was.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        net = make().train()
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -0.05, 0.05)
            elif isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics become the mean over all passes
                nn.init.uniform_(module.weight, 0.8, 1.2)
                nn.init.uniform_(module.bias, -0.1, 0.1)
        for part in x.chunk(min(_PASSES, len(x))):
            net(part)
    return net.eval()
