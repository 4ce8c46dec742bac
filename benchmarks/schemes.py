"""Bits and schemes on ResNet-20: accuracy on the full CIFAR-10 test set, and what one private answer costs.

PQI_DATA=... python benchmarks/schemes.py [--only NAME ...] [--models M.pqi ...] [--private 100] [--json F]

Without --models: the post-training presets below. With it: models in files, e.g. those that ``retrain.py`` saves.
Every model is also asked privately, with every role a process over TLS, and must answer bit for bit the same.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import data
import torch

import pqi
from pqi.demo.measure import machine, versions
from tests import networks

FOUR = {"weight_bits": 8, "activation_bits": 4, "bias_correction": True}
PRESETS: dict[str, dict[str, Any]] = {
    "w8 a6": {"weight_bits": 8, "activation_bits": 6},
    "w8 a6 index 8": {"weight_bits": 8, "activation_bits": 6, "rings": "calibrated", "index_bits": 8},
    "w8 a4": {**FOUR, "observer": "mse"},
    "w8 a4 index 6": {**FOUR, "observer": "mse", "rings": "calibrated", "index_bits": 6},
    "w8 a4 code book": {**FOUR, "activations": "codebook"},
    "w4 a6 rounded": {"weight_bits": 4, "activation_bits": 6, "learned_rounding": True, "bias_correction": True},
    "w4 a4 rounded": {
        "weight_bits": 4,
        "activation_bits": 4,
        "observer": "mse",
        "learned_rounding": True,
        "bias_correction": True,
    },
}


def preset(name: str, calibration: int) -> pqi.IntegerModel:
    """The published float network under one of the presets."""
    net, _, _, _ = data.resnet20(1)
    images, _ = data.load().cifar10("train_a")
    return pqi.quantize(net, networks.cifar_input(images[:calibration]), **PRESETS[name])


def measured(model: pqi.IntegerModel, x: torch.Tensor, y: torch.Tensor, private: int) -> dict[str, Any]:
    """Accuracy, rings, declared cost, and the private answers beside the plain ones."""
    cost = pqi.compile(model, "additive2").cost(1)
    out: dict[str, Any] = {
        "accuracy": 100 * float((torch.as_tensor(model.predict(x, "silent")).argmax(1) == y).double().mean()),
        "widest_ring": max(model.accumulators.values()),
        "wrapped": max(model.wraps(x[:500]).values()),
        "exchanges": cost.exchanges,
        "online_bytes": cost.online_bytes,
        "dealt_bytes": cost.dealt_bytes,
    }
    if private:
        with pqi.local(model, server_options={"pool_items": 12, "pool_mib": 1024}) as service:
            service.await_items(4)
            service.predict(x[:1], on_saturation="silent")
            online = []
            for i in range(9):
                service.await_items(4)
                online.append(service.predict(x[i : i + 1], on_saturation="silent").ledger.online_seconds)
            want = model.integers(model.encode(x[:private], "silent"))
            got = torch.cat(
                [service.predict(part, on_saturation="silent").integers for part in torch.split(x[:private], 4)]
            )
        out["private_equals_integer"] = float((got == want).flatten(1).all(1).double().mean())
        out["online_seconds"] = {"min": min(online), "median": sorted(online)[len(online) // 2]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(PRESETS), help="some of the presets")
    parser.add_argument("--models", nargs="*", type=Path, default=[], help="models in files instead")
    parser.add_argument("--calibration", type=int, default=512, help="training images to calibrate with")
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--private", type=int, default=100, help="images asked privately; 0 leaves that out")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    _, _, x, y = data.resnet20(args.test)
    out: dict[str, Any] = {"test_images": args.test, "machine": machine(), "versions": versions(), "models": {}}
    for name in [str(path) for path in args.models] or args.only or list(PRESETS):
        start = time.process_time()
        model = pqi.load(name) if args.models else preset(name, args.calibration)
        spent = time.process_time() - start
        facts = measured(model, x, y, args.private)
        out["models"][name] = {"quantization_cpu_seconds": spent, **facts}
        print(name, json.dumps(out["models"][name]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
