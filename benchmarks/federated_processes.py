"""The example app over TLS between processes: a SuperLink, a SuperNode per client, one per helper, and ``flwr run``.

    python benchmarks/federated_processes.py [--aggregator pairwise] [--clients 4] [--rounds 2]

Ends with an error unless every round summed every client, the model learnt the digits, and nothing is left running.
Flower's own polling (3 s here and there for each message) is most of the time.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pqi.net.authority import make_authority
from pqi.net.ports import free_ports

ROOT = Path(__file__).resolve().parent.parent
APP = ROOT / "examples" / "flower_app"
HELPERS = {"shares": ["aggregator-1"], "paillier": ["key-holder"], "bfv": ["key-holder"]}


def certificates(folder: Path) -> None:
    """An authority's certificate, and one for a SuperLink on this machine with its key."""
    authority, key, now = (
        make_authority("federation"),
        ec.generate_private_key(ec.SECP256R1()),
        datetime.now(timezone.utc),
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(authority.certificate.subject, serial_number=x509.random_serial_number())
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "superlink")]))
        .public_key(key.public_key())
        .not_valid_before(now - timedelta(minutes=10))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(authority.certificate.public_bytes(pem))
    (folder / "superlink.pem").write_bytes(made.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    os.close(os.open(folder / "superlink.key", os.O_CREAT | os.O_WRONLY, 0o600))
    (folder / "superlink.key").write_bytes(private)


class Federation:
    """Processes of one federation, each in a group of its own with its log in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.env = os.environ | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_HOME": str(folder / "flower"),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(folder),
        }

    def start(self, *command: str) -> None:
        log = (self.folder / f"{len(self.processes)}-{command[0]}.log").open("wb")
        with log:
            made = subprocess.Popen(command, env=self.env, stdout=log, stderr=log, start_new_session=True)
        self.processes.append(made)

    def stop(self) -> None:
        for process in reversed(self.processes):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run(folder: Path, aggregator: str, clients: int, rounds: int) -> str:
    """What ``flwr run`` printed."""
    certificates(folder)
    ports = free_ports(2 + clients + len(HELPERS.get(aggregator, [])))
    link = f"127.0.0.1:{ports[0]}"
    federation = Federation(folder)
    with ExitStack() as stack:
        stack.callback(federation.stop)
        tls = ["--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "superlink.pem", "--ssl-keyfile", "superlink.key"]
        tls = [str(folder / word) if word.startswith(("ca", "superlink")) else word for word in tls]
        federation.start("flower-superlink", *tls, "--port", str(ports[0]), "--disable-runtime-dependency-installation")
        time.sleep(5)
        nodes = [f"partition-id={i}" for i in range(clients)]
        nodes += [f'partition-id={clients} pqi-role="{name}"' for name in HELPERS.get(aggregator, [])]
        for port, config in zip(ports[2:], nodes, strict=True):
            root = ["--root-certificates", str(folder / "ca.pem"), "--superlink", link, "--port", str(port)]
            federation.start("flower-supernode", *root, "--node-config", config)
        home = folder / "flower"
        home.mkdir(exist_ok=True)
        place = f'address = "{link}"\nroot-certificates = "{folder / "ca.pem"}"\n'
        (home / "config.toml").write_text(f'[superlink]\ndefault = "here"\n[superlink.here]\n{place}')
        config = f'clients={clients} aggregator="{aggregator}" num-server-rounds={rounds}'
        command = ["flwr", "run", str(APP), "here", "--stream", "--run-config", config]
        done = subprocess.run(command, env=federation.env, capture_output=True, text=True, timeout=900, check=False)
        return done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--aggregator", default="pairwise")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    start = time.time()
    with tempfile.TemporaryDirectory() as name:
        told = run(Path(name), options.aggregator, options.clients, options.rounds)
        logs = {path.name: path.read_text(errors="replace") for path in Path(name).glob("*.log")}
    accuracies = [float(x) for x in re.findall(r"round \d+: accuracy ([\d.]+)", told)]
    full = f"{options.clients} of {options.clients} clients"
    if len(accuracies) != options.rounds + 1 or accuracies[-1] < 0.5 or told.count(full) < options.rounds:
        for log, text in logs.items():
            print(f"--- {log}\n{text[-2000:]}")
        sys.exit(f"{told[-4000:]}\nthe federation did not do what it should")
    print(f"{options.aggregator}: accuracies {accuracies}, {time.time() - start:.0f} s")
    print("\n".join(line for line in told.splitlines() if full in line))


if __name__ == "__main__":
    main()
