"""One server and a client with a key, nobody else: a ReLU network becomes squares, and is asked under encryption.

Needs scikit-learn for its digits: pip install 'private-quantized-inference[demo,homomorphic]'
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import pqi


def train(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """An ordinary torch network with ReLU, trained as usual."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


def main() -> None:
    """Four steps: train, turn into squares, serve, ask."""
    digits = load_digits()
    images, held_out = digits.images.astype(np.float32), np.arange(len(digits.target)) % 4 == 0
    x, y, labels = images[~held_out], digits.target[~held_out], digits.target[held_out]
    net = train(torch.from_numpy(x), torch.from_numpy(y))

    # Ciphertexts can be added and multiplied, not compared: one call puts squares for ReLU and trains them.
    model = pqi.to_polynomial(net, x, y, answer_bits=24)
    with torch.no_grad():
        floats = net(torch.from_numpy(images[held_out])).argmax(1).numpy()

    # One server. It sees ciphertexts and evaluation keys; the secret key stays in this process.
    with pqi.local(model, protocol="bfv") as service:
        answer = service.predict(images[held_out][:8])

    plain = model.predict(images[held_out])
    print(f"right answers, ReLU network:       {np.mean(floats == labels):.1%}")
    print(f"right answers, integers, squares:  {np.mean(plain.argmax(1) == labels):.1%}, {model.bits} bits")
    print(f"equal to the plain model:          {np.mean(answer.values == plain[:8]):.1%} of 8 private images")
    print(f"server's time, an image:           {answer.ledger.online_seconds / 8:.3f} s")
    if not np.array_equal(answer.values, plain[:8]):
        raise SystemExit("private and plain answers differ: this must never happen")


if __name__ == "__main__":
    main()
