"""What a bit costs in private: the same network at 8 bits, at 3, retrained at 3, and with sums that wrap on purpose.

Needs scikit-learn for its digits: pip install 'private-quantized-inference[demo]'
"""

from __future__ import annotations

import numpy as np

import pqi
from pqi.demo.digits import load_digits, train


def main() -> None:
    """Four models of one network, each with its accuracy and its price."""
    digits = load_digits()
    x, y = digits.train_x, digits.train_y
    net = train(digits)

    models = {
        "8-bit weights, 8-bit activations": pqi.quantize(net, x, 8, 8),
        "3-bit weights, 3-bit activations": pqi.quantize(net, x, 3, 3, observer="mse"),
    }

    # The same bits, retrained: every sum is proven to stay inside 13 bits, because training was told to.
    recipe = pqi.Recipe(pqi.Scheme(weight_bits=3, activation_bits=3, observer="mse"))
    schedule = pqi.Schedule(epochs=8, batch=64, learning_rate=0.02, seed=0)
    models["the same, retrained, sums in 13 bits"] = pqi.finetune(net, x, x, y, recipe, schedule, max_ring=13).model

    # Sums that may wrap mod 2^8: one byte product and one table a layer, no comparison at all.
    wrapping = pqi.Wrapping(ring_bits=8, weight_bits=3, activation_bits=3)
    models["wrap-around, ring of 8 bits"] = pqi.wraparound(net, x, x, y, wrapping, schedule).model

    print(f"{'':38} {'accuracy':>8} {'widest ring':>11} {'exchanges':>9} {'online':>9} {'dealt':>10}")
    for name, model in models.items():
        right = np.mean(model.predict(digits.test_x, "silent").argmax(1) == digits.test_y)
        cost = pqi.compile(model).cost(1)
        ring = max(model.accumulators.values())
        print(f"{name:38} {right:8.1%} {ring:11} {cost.exchanges:9} {cost.online_bytes:9,} {cost.dealt_bytes:10,}")

    # Whatever the scheme, the private answer is the model's answer, bit for bit.
    some = digits.test_x[:5]
    for name, model in models.items():
        with pqi.local(model) as service:
            answer = service.predict(some, on_saturation="silent")
        if not np.array_equal(answer.values, model.predict(some, "silent")):
            raise SystemExit(f"{name}: private and plain answers differ: this must never happen")
    print("private answers equal the plain ones in all four")


if __name__ == "__main__":
    main()
