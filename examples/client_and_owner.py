"""Client and model owner compute with each other: the weights stay with their owner, who learns nothing of the inputs.

The client is the second party itself. A dealer has dealt one-time material beforehand; it sees no input and no weight.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import pqi


def start(command: str, bundle: Path) -> subprocess.Popen[bytes]:
    """``pqi serve`` or ``pqi deal``, as an operator types it."""
    return subprocess.Popen([sys.executable, "-m", "pqi", command, str(bundle), "--log-level", "error"])


def main(port_a: int = 7441, port_b: int = 7442) -> None:
    """Owner, dealer, client."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)), torch.randn(100, 20)
    model = pqi.quantize(net, calibration=x, input_range=(-6.0, 6.0))

    with tempfile.TemporaryDirectory() as folder:
        addresses = {"server_a": f"127.0.0.1:{port_a}", "server_b": f"127.0.0.1:{port_b}"}
        bundles = pqi.split(model, Path(folder) / "bundles", weights="owned", addresses=addresses)
        pqi.make_keys(bundles)
        for role in ("server_a", "server_b", "dealer"):
            size = (bundles / role / "secrets.safetensors").stat().st_size
            print(f"{role:8} holds {size:,} bytes")  # the weights; masked weights; the mask

        # On real machines server_a stays with the owner, and client and server_b go to the client.
        config, own_server = bundles / "client" / "client.toml", bundles / "server_b"
        roles = [start("serve", bundles / "server_a"), start("deal", bundles / "dealer")]
        try:
            with pqi.Client(config, own_server=own_server) as client:
                answer, security = client.predict(x), client.program.security
        finally:
            for process in roles:
                process.terminate()
            for process in roles:
                process.wait()
    print(*(f"{role} learns: {what}" for role, what in security.learns.items()), sep="\n")
    sent = answer.ledger.online_bytes
    print(f"online, the owner sent {sent['server_a']:,} bytes and the client {sent['server_b']:,}")
    equal = bool((answer.values == model.predict(x)).all())
    print(f"{len(answer.values)} private answers, all equal to the plain model: {equal}")
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
