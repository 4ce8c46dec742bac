"""``pqi inspect`` for protocols under a client's key: stages, parameters, noise, bytes, who learns what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from pqi.cli.screen import out, plain, security_statement, shape, size, table, write_json

if TYPE_CHECKING:
    from pqi.program.circuits import Model
    from pqi.program.keyed import KeyedProgram

_CAPTION = (
    "entries: products with a weight of the model. bits: signed bits that hold every value of the stage, proven. "
    "Adjacent affine layers are one stage."
)


def show(path: Path, model: Model, protocol: str, options: Mapping[str, Any], json_file: Path | None) -> None:
    """Compile the model for a keyed protocol and show it. Raises ProgramError where it cannot be served."""
    from pqi.program.keyed import compile_keyed

    facts = gather(path, compile_keyed(model, protocol, options))
    _show(facts)
    write_json(json_file, facts)


def gather(path: Path, program: KeyedProgram) -> dict[str, Any]:
    """Everything that the screen shows, as JSON values."""
    circuit, plan = program.plan.circuit, program.plan
    depth = sum(stage.depth for stage in circuit.polynomials)
    return {
        "model": str(path),
        "protocol": program.protocol,
        "exact": program.exact,
        "digest": program.digest,
        "input_shape": list(program.input_shape),
        "output_shape": list(program.output_shape),
        "depth": depth,
        "bits": circuit.bits,
        "stages": _stages(program),
        "facts": dict(plan.facts()),
        "max_batch": plan.max_batch,
        "costs": [_cost(program, n) for n in dict.fromkeys((1, plan.max_batch))],
        "security": {"adversary": program.security.adversary, "learns": dict(program.security.learns)},
    }


def _stages(program: KeyedProgram) -> list[dict[str, Any]]:
    from protocols.circuit import Affine

    rows: list[dict[str, Any]] = []
    for stage in program.plan.circuit.stages:
        if isinstance(stage, Affine):
            values, entries, degree = stage.outputs, int(stage.support.sum()), 1
        else:
            entries, degree = 0, stage.degree
        row = {"name": stage.name, "values": values, "entries": entries, "degree": degree, "bits": stage.bits}
        rows.append(row)
    return rows


def _cost(program: KeyedProgram, n: int) -> dict[str, int]:
    cost = program.cost(n)
    parts = {"parts": len(cost.questions), "question_bytes": cost.question, "answer_bytes": cost.answer}
    return {"inputs": n, "key_bytes": cost.keys, **parts}


def _show(facts: dict[str, Any]) -> None:
    console = out()
    console.print(f"[title]{plain(facts['model'])}[/title]  protocol {facts['protocol']}: one server, one key")
    stages = table("", ["stage"], ["values", "entries", "degree", "bits"])
    for row in facts["stages"]:
        figures = (f"{row['values']:,}", f"{row['entries']:,}" if row["entries"] else "")
        stages.add_row(plain(row["name"]), *figures, str(row["degree"]), str(row["bits"]))
    console.print(stages)
    console.print(_CAPTION, style="soft")
    console.print()
    console.print(_summary(facts))
    console.print()
    costs = table("Bytes, as declared", [], ["inputs", "parts", "evaluation keys", "question", "answer", "per input"])
    for row in facts["costs"]:
        moved = row["question_bytes"] + row["answer_bytes"]
        sizes = [size(row[name]) for name in ("key_bytes", "question_bytes", "answer_bytes")]
        costs.add_row(f"{row['inputs']:,}", str(row["parts"]), *sizes, size(moved / row["inputs"]))
    console.print(costs)
    console.print("Evaluation keys go to the server once a connection.", style="soft")
    console.print()
    console.print(security_statement(facts["security"]["adversary"], facts["security"]["learns"]))


def _summary(facts: dict[str, Any]) -> Table:
    summary = Table.grid(padding=(0, 2))
    summary.add_column(no_wrap=True)
    summary.add_column(overflow="fold")
    same = "yes: private answers equal the integer model's in every bit"
    rows = {
        "exact": same if facts["exact"] else "no: approximate; every answer comes with a bound on its error",
        "shapes": f"{shape(facts['input_shape'])} -> {shape(facts['output_shape'])}, answers of {facts['bits']} bits",
        "depth": f"{facts['depth']} products of ciphertexts in a row",
        **{name: str(value) for name, value in facts["facts"].items()},
    }
    for name, value in rows.items():
        summary.add_row(plain(name), plain(value))
    return summary
