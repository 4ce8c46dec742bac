"""Networks with published weights: accuracy, exactness and latency through real processes over TLS.

PQI_DATA=... python benchmarks/published.py resnet20|mnist_bnn [--test 10000] [--private 200] [--rings proven]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import data
import torch

import pqi
from pqi.demo.measure import machine, versions


def seconds(call: Any, repeat: int) -> dict[str, float]:
    """Minimum and median of a warm call."""
    call()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"min": min(times), "median": statistics.median(times)}


def singles(service: Any, x: torch.Tensor, burst: int) -> tuple[dict[str, dict[str, float]], Any]:
    """Ask image by image, waiting for a full pool before every ``burst`` of them."""
    times: dict[str, list[float]] = {"online_seconds": [], "offline_seconds": [], "whole_seconds": []}
    for i in range(len(x)):
        if i % burst == 0:
            service.await_items(10**6)
        start = time.perf_counter()
        answer = service.predict(x[i : i + 1], on_saturation="silent")
        times["whole_seconds"].append(time.perf_counter() - start)
        times["online_seconds"].append(answer.ledger.online_seconds)
        times["offline_seconds"].append(answer.ledger.offline_seconds)
    return {k: {"min": min(v), "median": statistics.median(v), "max": max(v)} for k, v in times.items()}, answer


def accuracy(answers: Any, labels: torch.Tensor) -> float:
    """Share of right classes, in percent."""
    return 100 * float((torch.as_tensor(answers).argmax(1) == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=sorted(data.PUBLISHED))
    parser.add_argument("--test", type=int, default=10000, help="images for accuracy")
    parser.add_argument("--private", type=int, default=200, help="images asked privately, in batches")
    parser.add_argument("--single", type=int, default=30, help="images asked one by one for the latency")
    parser.add_argument("--rings", default="proven", choices=["proven", "calibrated"])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    net, train, x, y = data.PUBLISHED[args.network](args.test)
    model = pqi.quantize(net, calibration=train, weight_bits=8, activation_bits=6, rings=args.rings)
    out: dict[str, Any] = {"network": args.network, "rings": args.rings, "samples": args.test}
    with torch.inference_mode():
        out["float_accuracy"] = accuracy(torch.cat([net(part) for part in x.split(250)]), y)
        out["float32_seconds"] = seconds(lambda: net(x[:1]), 50)
    out["integer_accuracy"] = accuracy(model.predict(x, "silent"), y)
    out["integer_seconds"] = seconds(lambda: model.predict(x[:1], "silent"), 10)
    with pqi.local(model, server_options={"pool_items": 40}) as service:
        singles(service, x[:4], 1)  # warm-up
        # With the pool full no dealing goes on: the servers have the two cores that they would have in the field.
        out["pool_full"], answer = singles(service, x[: args.single], 4)
        out["dealing_meanwhile"], answer = singles(service, x[: args.single], args.single)
        out["online_bytes"], out["offline_bytes"] = answer.ledger.online_bytes, answer.ledger.offline_bytes
        out["exchanges"] = answer.ledger.exchanges
        answer = service.predict(x[: args.private], on_saturation="silent")
        want = model.integers(model.encode(x[: args.private], "silent"))
        out["private_samples"] = args.private
        out["private_equals_integer"] = float((answer.integers == want).flatten(1).all(1).double().mean())
        out["peak_rss_mb"] = {role: p.peak_rss_bytes / 2**20 for role, p in answer.ledger.parties.items()}
        out["batch_online_seconds_per_image"] = answer.ledger.online_seconds / max(args.private, 1)
    out["machine"], out["versions"] = machine(), versions()
    text = json.dumps(out, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
