"""A network of your own, asked privately: train, quantize, start every role on this machine, compare.

Needs scikit-learn for its digits: pip install 'private-quantized-inference[demo]'
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import pqi


def train(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """An ordinary torch network, trained as usual. Nothing in it knows of privacy."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def main() -> None:
    """Four steps: train, quantize, serve, ask."""
    digits = load_digits()
    images, held_out = digits.images.astype(np.float32), np.arange(len(digits.target)) % 4 == 0
    x, y, labels = images[~held_out], digits.target[~held_out], digits.target[held_out]
    net = train(torch.from_numpy(x), torch.from_numpy(y))

    # An exact integer model: 8-bit weights, 6-bit activations, rings in which no sum can ever wrap.
    model = pqi.quantize(net, calibration=x, weight_bits=8, activation_bits=6, input_bits=5)

    # Two compute servers and a dealer, each a process of its own. Neither server learns weights, images or answers.
    with pqi.local(model, protocol="additive2") as service:
        answer = service.predict(images[held_out])

    truth = model.predict(images[held_out])
    print(f"right answers:            {np.mean(answer.values.argmax(1) == labels):.1%}")
    print(f"equal to the plain model: {np.mean(answer.values == truth):.1%}")
    print(f"time online:              {answer.ledger.online_seconds:.3f} s for {len(truth)} images")
    print(f"between the servers:      {sum(answer.ledger.online_bytes.values()):,} bytes")
    if not np.array_equal(answer.values, truth):
        raise SystemExit("private and plain answers differ: this must never happen")


if __name__ == "__main__":
    main()
