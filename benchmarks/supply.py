"""Memory of the dealer and of server B while a hundred queries are prepared and answered: it must stay flat.

    python benchmarks/supply.py                      # ResNet-20, pool of 8 items in memory
    python benchmarks/supply.py --spill-mib 2048     # more of them wait on disk
    python benchmarks/supply.py --network lenet --workers 2 --json supply.json

Every role is a process of this machine; figures are resident memory (VmRSS) after every tenth query.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pqi
from pqi.measure.nets.registry import NETWORKS, subject
from pqi.session.ledger import peak_rss_of
from pqi.session.local import LocalService

MIB = 1 << 20
ROLES = ("dealer", "server_b")


def resident(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def measure(service: LocalService, x: object, items: int, every: int) -> list[dict[str, float]]:
    rows = []
    for done in range(1, items + 1):
        service.predict(x)
        if done % every == 0:
            state = service.status()["server_b"]
            row = {"queries": done, "ready": state["level"], "on_disk": state["spilled"]}
            row |= {role: resident(service.processes[role].pid) / MIB for role in ROLES}
            rows.append(row)
            print("{queries:>8} {ready:>6} {on_disk:>8} {dealer:>11.1f} {server_b:>11.1f}".format(**row))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20", choices=NETWORKS)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--pool-items", type=int, default=8)
    parser.add_argument("--spill-mib", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    asked = subject(options.network, lambda text: print(text, file=sys.stderr))
    model = asked.model("additive2")
    record = pqi.compile(model).record_bytes
    print(f"{asked.name}: {record / MIB:.2f} MiB dealt for one input; {options.pool_items} items in memory")
    print(f"{'queries':>8} {'ready':>6} {'on disk':>8} {'dealer MiB':>11} {'B MiB':>11}")
    bounds = {"max_batch": 1, "pool_items": options.pool_items, "spill_mib": options.spill_mib}
    with pqi.local(model, server_options={**bounds, "deal_workers": options.workers}) as service:
        service.await_items(options.pool_items)
        rows = measure(service, asked.inputs(1), options.queries, options.every)
        peaks = {role: (peak_rss_of(service.processes[role].pid) or 0) / MIB for role in ROLES}
    growth = {role: rows[-1][role] - rows[len(rows) // 5][role] for role in ROLES}
    for role in ROLES:
        print(f"{role}: peak {peaks[role]:.1f} MiB; {growth[role]:+.1f} MiB over the last {options.queries * 4 // 5}")
    if options.json:
        facts = {"network": asked.name, "record_bytes": record, "rows": rows, "peaks_mib": peaks, "growth_mib": growth}
        options.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
