"""Every role by hand: bundles, keys, three long-running processes, a client with a configuration file.

On real machines each folder below ``bundles`` goes to its own machine; here all of them stay on this one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import pqi


def start(command: str, bundle: Path) -> subprocess.Popen[bytes]:
    """``pqi serve`` or ``pqi deal``, as an operator types it. The JSON file appears when the role is ready."""
    options = ["--log-level", "error", "--json", f"{bundle}.json"]
    return subprocess.Popen([sys.executable, "-m", "pqi", command, str(bundle), *options])


def main(port_a: int = 7431, port_b: int = 7432) -> None:
    """Owner, operators, client."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)), torch.randn(300, 20)
    model = pqi.quantize(net, calibration=x, input_range=(-6.0, 6.0))

    with tempfile.TemporaryDirectory() as folder:
        addresses = {"server_a": f"127.0.0.1:{port_a}", "server_b": f"127.0.0.1:{port_b}"}
        bundles = pqi.split(model, Path(folder) / "bundles", addresses=addresses)  # the model owner cuts the model
        pqi.make_keys(bundles)  # and makes certificates: from here on no role trusts anybody else
        roles = [start("serve", bundles / "server_b"), start("serve", bundles / "server_a")]
        roles.append(start("deal", bundles / "dealer"))
        try:
            while not (bundles / "dealer.json").exists():  # the dealer is ready last: it dials both servers
                if any(role.poll() is not None for role in roles):
                    raise SystemExit("a role ended before it was ready; its message is above")
                time.sleep(0.1)
            with pqi.Client(bundles / "client" / "client.toml") as client:
                answer = client.predict(x)
        finally:
            for role in roles:
                role.terminate()
            for role in roles:
                role.wait()
    equal = bool((answer.values == model.predict(x)).all())
    print(f"{len(answer.values)} private answers, all equal to the plain model: {equal}")
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
