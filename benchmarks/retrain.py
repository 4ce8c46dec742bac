"""Retraining ResNet-20 on the 20,000 shared training images: few bits inside a proven ring, and wrap-around rings.

PQI_DATA=... python benchmarks/retrain.py finetune   [--epochs 20] [--max-ring 16] [--save M.pqi] [--json F]
PQI_DATA=... python benchmarks/retrain.py wraparound [--epochs 20] [--ring 8] [--save M.pqi] [--json F]

Times are of the processor, of one thread; accuracies are of the integer model on the 10,000 test images, which training
never sees. The 500 images that training holds out only tell how it goes.
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
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.train.api import Trained, finetune
from pqi.quant.train.loop import Epoch, Schedule, flip_and_shift
from pqi.quant.train.wrapping import Wrapping, wraparound
from tests import networks

HELD_OUT = 500


def training_images() -> tuple[torch.Tensor, torch.Tensor]:
    """The 20,000 shared training images and their labels."""
    images, labels = data.load().cifar10("train_a")
    return networks.cifar_input(images), torch.from_numpy(labels.astype("int64"))


def accuracy(model: pqi.IntegerModel, x: torch.Tensor, y: torch.Tensor) -> float:
    """Of the integer model, in percent."""
    return 100 * float((torch.as_tensor(model.predict(x, "silent")).argmax(1) == y).double().mean())


def private_cost(model: pqi.IntegerModel) -> dict[str, float]:
    """What one private answer costs under additive2, as declared."""
    cost = pqi.compile(model, "additive2").cost(1)
    return {"exchanges": cost.exchanges, "online_bytes": cost.online_bytes, "dealt_bytes": cost.dealt_bytes}


def train(args: argparse.Namespace, told: Any) -> Trained:
    """One of the two trainings, from the published float weights."""
    net, calibration, _, _ = data.resnet20(1)
    inputs, labels = training_images()
    shared: dict[str, Any] = {
        "validation": (inputs[:HELD_OUT], labels[:HELD_OUT]),
        "augment": flip_and_shift,
        "on_epoch": told,
        "checkpoint": args.checkpoint,
    }
    given = (net, calibration, inputs[HELD_OUT:], labels[HELD_OUT:])
    schedule = Schedule(epochs=args.epochs, learning_rate=args.rate, temperature=4.0, labels_weight=0.1, seed=args.seed)
    if args.what == "wraparound":
        wrapping = Wrapping(args.ring, args.weight_bits, args.activation_bits)
        return wraparound(*given, wrapping, schedule, **shared)
    scheme = Scheme(args.weight_bits, multiplier=2.0, activation_bits=args.activation_bits, observer="mse")
    return finetune(*given, Recipe(scheme), schedule, max_ring=args.max_ring, **shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["finetune", "wraparound"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weight-bits", type=int, default=None, help="4 for finetune, 3 for wraparound")
    parser.add_argument("--activation-bits", type=int, default=None, help="4 for finetune, 3 for wraparound")
    parser.add_argument("--max-ring", type=int, default=16)
    parser.add_argument("--ring", type=int, default=8)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bits = 4 if args.what == "finetune" else 3
    args.weight_bits, args.activation_bits = args.weight_bits or bits, args.activation_bits or bits
    torch.set_num_threads(1)
    start = time.process_time()

    def told(epoch: Epoch) -> None:
        minutes = (time.process_time() - start) / 60
        print(
            f"epoch {epoch.number}: loss {epoch.loss:.4f}, held out {epoch.accuracy:.2%}, {minutes:.1f} CPU min",
            flush=True,
        )

    trained = train(args, told)
    minutes = (time.process_time() - start) / 60
    model = trained.model
    if args.save:
        model.save(args.save)
    _, _, x, y = data.resnet20(10000)
    rings = sorted(model.accumulators.values())
    out: dict[str, Any] = {
        "what": args.what,
        "weight_bits": args.weight_bits,
        "activation_bits": args.activation_bits,
        "epochs": args.epochs,
        "training_cpu_minutes": minutes,
        "integer_accuracy": accuracy(model, x, y),
        "rings": rings,
        "codes_moved_at_the_end": trained.repaired,
        "cost": private_cost(model),
        "wrapped": model.wraps(x[:200]),
        "history": [[e.number, e.loss, e.accuracy] for e in trained.history],
        "machine": machine(),
        "versions": versions(),
    }
    text = json.dumps(out, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
