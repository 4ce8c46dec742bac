"""A module that was not written for this library: what is refused, why, how to fix it, and what it will cost."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pqi


class Sensor(nn.Module):
    """A small residual network over 3 x 16 x 16 maps. The activation in the middle is the caller's choice."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), activation, nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Four scores for each map."""
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(x.mean((2, 3)))


def main() -> None:
    """Refused, fixed, priced."""
    torch.manual_seed(0)
    samples = torch.randn(256, 3, 16, 16)

    try:
        pqi.quantize(Sensor(nn.GELU()), calibration=samples)
    except pqi.UnsupportedOperator as error:
        print(f"Refused, with the place in your code and what to do:\n{error}\n")

    model = pqi.quantize(Sensor(nn.ReLU6()), calibration=samples, input_range=(-4.0, 4.0))
    print("With relu6 it is accepted:", model.report(), sep="\n")

    # Declared before anything runs, and kept to the byte.
    program = pqi.compile(model, protocol="additive2")
    for layer, cost in {**program.cost_by_layer(), "all": program.cost()}.items():
        print(
            f"{layer:10} {cost.exchanges:2} exchanges, {cost.online_bytes:6,} bytes from each server, "
            f"{cost.dealt_bytes:7,} dealt beforehand"
        )


if __name__ == "__main__":
    main()
