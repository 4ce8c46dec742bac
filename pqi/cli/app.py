"""The commands, in the order in which a user meets them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from pqi.cli.audit import audit
from pqi.cli.audit_protocol import audit_protocol
from pqi.cli.bench import bench
from pqi.cli.demo import demo
from pqi.cli.guard import guarded
from pqi.cli.inspect import inspect
from pqi.cli.keys import keys
from pqi.cli.options import example
from pqi.cli.polynomial import polynomial
from pqi.cli.predict import predict
from pqi.cli.quantize import quantize
from pqi.cli.serve import deal, serve
from pqi.cli.split import split
from pqi.cli.status import status
from pqi.cli.tune import tune

app = typer.Typer(
    name="pqi",
    help="Private inference on quantized neural networks, exact to the bit.",
    epilog=example("pqi demo", "pqi quantize --help"),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

_EXAMPLES: dict[Callable[..., None], tuple[str, ...]] = {
    demo: ("pqi demo", "pqi demo --network wan --json demo.json"),
    quantize: (
        "pqi quantize net.pt2 --calibration digits.npz -o digits.pqi",
        "pqi quantize mynets.digits:trained --calibration digits.npz -o digits.pqi --activation-bits 5",
    ),
    polynomial: (
        "pqi polynomial net.pt2 --calibration digits.npz -o digits.pqi",
        "pqi polynomial mynets.digits:trained --calibration digits.npz --validation held_out.npz -o digits.pqi "
        "--weight-bits 4 --answer-bits 28",
    ),
    tune: (
        "pqi tune net.pt2 --calibration digits.npz --validation held_out.npz -o digits.pqi",
        "pqi tune net.pt2 --calibration digits.npz --validation held_out.npz -o digits.pqi --accuracy-drop 0.3 "
        "--rings calibrated --picture curve.svg",
    ),
    inspect: ("pqi inspect digits.pqi", "pqi inspect digits.pqi --network wan --json costs.json"),
    split: ("pqi split digits.pqi -o bundles --server-a 10.0.0.1:7401 --server-b 10.0.0.2:7401",),
    keys: ("pqi keys bundles",),
    serve: ("pqi serve bundles/server_a", "pqi serve bundles/server_b --pool-mib 2048 --spill-mib 20480"),
    deal: ("pqi deal bundles/dealer", "pqi deal bundles/dealer --workers 4"),
    status: ("pqi status --config bundles/client/client.toml --items 64",),
    predict: ("pqi predict --config bundles/client/client.toml --input images.npy -o answer.npy",),
    bench: (
        "pqi bench breast-cancer",
        "pqi bench digits-mlp --protocol additive2 --protocol bfv --batch 1 --batch 64 --html bench.html",
    ),
    audit: (
        "pqi audit digits.pqi --float net.pt2 --data held_out.npz --quick --report audit.html",
        "pqi audit digits.pqi --float mynets.digits:trained --data held_out.npz --budget 30 -o audit",
    ),
    audit_protocol: (
        "pqi audit-protocol",
        "pqi audit-protocol --config bundles/client/client.toml --questions 100 --json leaks.json",
    ),
}

for _command, _lines in _EXAMPLES.items():
    app.command(epilog=example(*_lines))(guarded(_command))


def _version(wanted: bool) -> None:
    if wanted:
        import pqi

        typer.echo(f"pqi {pqi.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Private inference on quantized neural networks, exact to the bit."""
