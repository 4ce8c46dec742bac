"""``pqi inspect``: layers, rings, proofs, declared cost, who learns what. Nothing runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pqi.cli import ways
from pqi.cli.guard import CliError
from pqi.cli.options import (
    DebugOption,
    JsonOption,
    ModelArgument,
    Network,
    NetworkOption,
    OptionOption,
    ProtocolOption,
    Rounding,
    RoundingOption,
    WeightsOption,
    chosen,
    visibility,
)
from pqi.cli.screen import out, plain, security_statement, shape, size, table, write_json
from protocols import KEYED

if TYPE_CHECKING:
    from pqi.graph.report import Report
    from pqi.program import Program

_CAPTION = (
    "ring: bits of the value's ring. proof: bits that no input can exceed. shift+index: bits of the accumulator that "
    "are dropped, and read. Cost of one input, as declared: exchanges one after the other; bytes that each server, or "
    "the busier one, sends online; bytes dealt to server B beforehand."
)


def inspect(
    model: ModelArgument,
    protocol: ProtocolOption = "additive2",
    network: NetworkOption = Network.LAN,
    rounding: RoundingOption = Rounding.EXACT,
    weights: WeightsOption = None,
    option: OptionOption = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Show layers, rings, proofs, what an answer costs before anything runs, and who learns what.

    Costs are for one input: exchanges one after the other, bytes that each server, or the busier one, sends to the
    other, bytes dealt beforehand to server B. Under paillier, bfv and ckks: parameters and their security, depth, what
    is left of the noise budget after each stage, bytes of keys and ciphertexts.
    """
    from pqi.audit.defences.outputs import hardened
    from pqi.graph.store import load
    from pqi.program import compile as compiled
    from pqi.session.owner import shareable

    loaded, known_to = load(model), visibility(weights)
    if protocol in KEYED:
        if weights:
            raise CliError(f"protocol {protocol} takes no --weights: its one server owns them all.")
        from pqi.cli import inspect_keyed

        inspect_keyed.show(model, loaded, protocol, chosen(option), json_file)
        return
    if option:
        raise CliError(f"protocol {protocol} takes no --option; settings there are those of {', '.join(KEYED)}.")
    loaded = shareable(loaded, protocol)
    program = compiled(loaded, protocol, network.value, rounding.value, known_to)
    facts = gather(model, loaded.report(), program, network.value, rounding.value)
    facts["ways"] = ways.taken(loaded, protocol, network.value, rounding.value)
    facts["input_shape"], facts["input_scales"] = list(loaded.input_shape), loaded.dynamic and loaded.dynamic.levels
    policy = hardened(loaded)
    facts["answers"] = str(policy or "scores")
    if policy is not None:
        alone = ". It and the dealer together learn the scores without noise" if policy.kind == "noisy" else ""
        facts["security"]["learns"]["client"] = f"{policy.tells}; and the shapes of input and answer{alone}"
    _show(facts)
    write_json(json_file, facts)


def gather(path: Path, report: Report, program: Program, network: str, rounding: str) -> dict[str, Any]:
    """Everything that the screen shows, as JSON values."""
    from pqi.session.roles import SERVERS

    costs, chosen = program.cost_by_layer(1), primitives(program)
    layers = []
    for row in report.rows:
        cost = costs.get(row.name)
        layers.append(
            {
                "name": row.name,
                "op": row.op,
                "shape": list(row.shape),
                "ring": row.ring,
                "proven_bits": row.proven_bits,
                "reads": row.reads,
                "shift": row.shift,
                "index_bits": row.index_bits,
                "cyclic": row.cyclic,
                "index": row.index,
                "primitives": chosen.get(row.name, []),
                "exchanges": cost.exchanges if cost else 0,
                "online_bytes_per_party": cost.online_bytes if cost else 0,
                "dealt_bytes": cost.dealt_bytes if cost else 0,
                "source": row.source,
            }
        )
    total = program.cost(1)
    return {
        "model": str(path),
        "protocol": program.protocol,
        "planned_for": network,
        "rounding": rounding,
        "rings": report.policy,
        "exact": program.exact,
        "noise": program.noise,
        "digest": program.digest,
        "input_shape": list(program.input_shape),
        "output_shape": list(program.output_shape),
        "macs": report.macs,
        "activations": report.activations,
        "weights": report.weights,
        "layers": layers,
        "visibilities": list(program.visibilities),
        "sent_bytes": {SERVERS[party]: total.sent_bytes(party) for party in program.parties},
        "total": {
            "exchanges": total.exchanges,
            "online_bytes_per_party": total.online_bytes,
            "dealt_bytes": total.dealt_bytes,
        },
        "security": {"adversary": program.security.adversary, "learns": dict(program.security.learns)},
    }


def primitives(program: Program) -> dict[str, list[str]]:
    """The protocol's primitives that each layer is made of, in order, repeated ones counted; of linear maps with the
    visibility of their weights, unless they are shared."""
    from protocols.api import Linear, Step

    names: dict[str, list[str]] = {}
    for i in program.instructions:
        if isinstance(i.action, Step):
            known_to = i.action.visibility if isinstance(i.action, Linear) else "shared"
            word = type(i.action).__name__
            names.setdefault(i.layer, []).append(word if known_to == "shared" else f"{word} ({known_to})")
    return {
        layer: [name if count == 1 else f"{count} {name}" for name, count in Counter(found).items()]
        for layer, found in names.items()
    }


def _show(facts: dict[str, Any]) -> None:
    console = out()
    kind = f"protocol {facts['protocol']}, planned for {facts['planned_for']}, rounding {facts['rounding']}"
    console.print(f"[title]{plain(facts['model'])}[/title]  {kind}")
    console.print(_layers(facts))
    summary = Table.grid(padding=(0, 2))
    summary.add_row("rings", _rings(facts))
    summary.add_row("exact", _exactness(facts))
    if facts["answers"] != "scores":
        summary.add_row("answers", f"{facts['answers']}, computed inside the protocol")
    if facts["input_scales"]:
        summary.add_row("inputs", f"each at a scale of its own, 1 to {facts['input_scales']}, its client's secret")
    summary.add_row(
        "size",
        f"{facts['macs']:,} multiply-accumulates, {facts['activations']:,} activations, {facts['weights']:,} weights",
    )
    if set(facts["visibilities"]) - {"shared"}:
        sent = [f"{size(count)} from {role}" for role, count in facts["sent_bytes"].items()]
        summary.add_row("weights", f"{' and '.join(facts['visibilities'])}; online {', '.join(sent)}")
    console.print()
    console.print(summary)
    console.print()
    ways.show(console, facts["ways"], facts["planned_for"])
    console.print()
    console.print(security_statement(facts["security"]["adversary"], facts["security"]["learns"]))


def _exactness(facts: dict[str, Any]) -> str:
    """Whether private answers equal the integer model's, and why not."""
    if facts["exact"]:
        return "yes: private answers equal the integer model's in every bit"
    reasons = ["stochastic rounding may raise a code by one"] if facts["rounding"] != "exact" else []
    if facts["noise"]:
        reasons.append(
            f"answers have noise, at most {facts['noise']} on every integer"
            + ("" if reasons else "; less their noise they equal the integer model's in every bit")
        )
    return f"no: {', and '.join(reasons)}"


def _rings(facts: dict[str, Any]) -> str:
    """What can wrap, and what wraps because it is meant to."""
    proven = facts["rings"] == "proven"
    words = "proven: no input can wrap" if proven else "calibrated: arithmetic mod 2^k by definition"
    cyclic = [f"{layer['name']} mod 2^{layer['reads']} by definition" for layer in facts["layers"] if layer["cyclic"]]
    if not cyclic:
        return words
    more = f", and {len(cyclic) - 3} more" if len(cyclic) > 3 else ""
    return plain(f"{words}{', but for lookups' if proven else '; lookups always'}: {', '.join(cyclic[:3])}{more}")


def _layers(facts: dict[str, Any]) -> Table:
    made = table("", ["layer"], caption=_CAPTION)
    for name in ("operator", "shape"):
        made.add_column(name, no_wrap=True)
    for name in ("ring", "proof", "shift+\nindex"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("primitives", min_width=12, overflow="fold")
    for name in ("exch.", "online", "dealt"):
        made.add_column(name, justify="right", no_wrap=True)
    for layer in facts["layers"]:
        made.add_row(
            plain(layer["name"]),
            layer["op"],
            shape(layer["shape"]),
            str(layer["ring"]),
            str(layer["proven_bits"]),
            layer["index"],
            ", ".join(layer["primitives"]),
            str(layer["exchanges"] or ""),
            size(layer["online_bytes_per_party"]) if layer["online_bytes_per_party"] else "",
            size(layer["dealt_bytes"]) if layer["dealt_bytes"] else "",
        )
    total = facts["total"]
    made.add_section()
    made.add_row(
        *["total", "", "", "", "", "", ""],
        str(total["exchanges"]),
        size(total["online_bytes_per_party"]),
        size(total["dealt_bytes"]),
        style="title",
    )
    return made
