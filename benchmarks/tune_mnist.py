"""An MLP 784-128-128-10 on MNIST: four bits after training, and what the tuner makes of it against uniform eight bits.

    PQI_DATA=<folder> python benchmarks/tune_mnist.py [--evaluations 1500] [--json FILE] [--picture curve.svg]

The network is trained here with a fixed seed on 55,000 training images; the other 5,000 choose, the 10,000 test images
are looked at only for the final figures. No recipe is given to the tuner. Every figure is of the exact mode, and the
chosen programs run in private, all roles in lockstep, on test images: answers and bytes must be as declared.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import data
import torch
from rich.console import Console
from torch import Tensor, nn

import pqi
from pqi.graph.model import IntegerModel
from tests.pqi.program.lockstep import run

HELD_OUT, CALIBRATION, PRIVATE = 5000, 1000, 100
EPOCHS, BATCH, RATE, DECAY, DROPOUT = 15, 100, 3e-3, 0.3, 0.1
console = Console(width=140)


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pixels in [0, 1] and labels, then the test set's."""
    (train, labels), (test, answers) = data.load().mnist()
    pixels = [torch.from_numpy(part.reshape(len(part), 784).astype("float32")) / 255 for part in (train, test)]
    return pixels[0], torch.from_numpy(labels.astype("int64")), pixels[1], torch.from_numpy(answers.astype("int64"))


def trained(x: Tensor, y: Tensor) -> nn.Module:
    """The MLP, trained with dropout and weight decay."""
    torch.manual_seed(0)
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    learning = nn.Sequential(*layers[:2], nn.Dropout(DROPOUT), *layers[2:4], nn.Dropout(DROPOUT), layers[4])
    optimizer = torch.optim.AdamW(learning.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=EPOCHS * (len(x) // BATCH))
    generator = torch.Generator().manual_seed(1)
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for start in range(0, len(x) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            loss = nn.functional.cross_entropy(learning(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return nn.Sequential(*layers).eval()


def private(model: IntegerModel, x: Tensor, rounding: str = "exact") -> int:
    """How many of the private answers equal the model's; the declared bytes must be those dealt."""
    program = pqi.compile(model, rounding=rounding)
    codes = model.encode(x, "silent")
    got = run(model, program, codes)
    if got.dealt != program.cost(len(x)).dealt_bytes:
        raise SystemExit(f"dealt {got.dealt} bytes, declared {program.cost(len(x)).dealt_bytes}")
    return int((got.answer == model.integers(codes)).all(1).sum())


def figures(name: str, model: IntegerModel, x: Tensor, y: Tensor, floating: float) -> dict[str, Any]:
    """One line: accuracy on the test set, loss, bytes, private answers."""
    accuracy = float((torch.from_numpy(model.predict(x, "silent")).argmax(1) == y).double().mean())
    cost = pqi.compile(model).cost(1)
    same = private(model, x[:PRIVATE])
    console.print(
        f"{name:<44} test {accuracy:.2%}  lost {100 * (floating - accuracy):+.2f}  dealt {cost.dealt_bytes:>6,} B  "
        f"online {cost.online_bytes:>5,} B  exchanges {cost.exchanges}  private {same} of {PRIVATE}"
    )
    return {
        "accuracy": accuracy,
        "lost": floating - accuracy,
        "dealt_bytes": cost.dealt_bytes,
        "online_bytes": cost.online_bytes,
        "exchanges": cost.exchanges,
        "private_equal": same,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=1500)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--keep", type=Path, help="a file for the trained weights: read if it is there")
    arguments = parser.parse_args()
    x, y, test_x, test_y = images()
    fitting, held = (x[:-HELD_OUT], y[:-HELD_OUT]), (x[-HELD_OUT:], y[-HELD_OUT:])
    started = time.perf_counter()
    if arguments.keep is not None and arguments.keep.is_file():
        net: nn.Module = torch.load(arguments.keep, weights_only=False)
    else:
        net = trained(*fitting)
        if arguments.keep is not None:
            torch.save(net, arguments.keep)
    with torch.no_grad():
        floating = float((net(test_x).argmax(1) == test_y).double().mean())
    console.print(f"trained in {time.perf_counter() - started:.0f} s; float accuracy on the test set {floating:.2%}")
    sample, found = fitting[0][:CALIBRATION], {}

    def show(name: str, model: IntegerModel) -> None:
        found[name] = figures(name, model, test_x, test_y, floating)

    uniform = pqi.quantize(net, sample, 8, 8)
    show("uniform 8 bits", uniform)
    show("4 bits, post-training", pqi.quantize(net, sample, 4, 4))
    better = pqi.quantize(net, sample, 4, 4, learned_rounding=True, bias_correction=True)
    show("4 bits, learned rounding, bias correction", better)
    tuned = {}
    for rings in ("proven", "calibrated"):
        started = time.perf_counter()
        made = pqi.tune(net, sample, held, rings=rings, minutes=None, evaluations=arguments.evaluations)
        name = f"tuned, {rings} rings"
        show(name, made.model)
        ratio = found["uniform 8 bits"]["dealt_bytes"] / found[name]["dealt_bytes"]
        console.print(f"  {ratio:.2f} times fewer dealt bytes; {time.perf_counter() - started:.0f} s: {made.ended}")
        console.print(made.curve)
        tuned[rings] = {"ratio": ratio, **made.to_dict()}
        if arguments.picture is not None:
            made.curve.save_picture(arguments.picture.with_stem(f"{arguments.picture.stem}-{rings}"))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"float": floating, "figures": found, "tuned": tuned}, indent=1) + "\n")


if __name__ == "__main__":
    main()
