"""What a model with polynomials is made of, layer by layer: bits, degrees, weights and products."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pqi.graph.ops import Polynomial
from pqi.graph.report import Accuracy, accuracy_line, compare_answers, multiply_accumulates

if TYPE_CHECKING:
    from pqi.graph.polynomial import PolynomialModel


@dataclass(frozen=True)
class PolynomialRow:
    """One layer. bits: signed bits that hold its value, proven. degree: of the value as a polynomial of the input."""

    name: str
    op: str
    shape: tuple[int, ...]
    bits: int
    degree: int
    weights: int
    macs: int
    squares: int
    source: str


@dataclass(frozen=True)
class PolynomialReport:
    """The rows, bits and depth of the answer, accuracy if asked. depth: encrypted products in a row."""

    rows: tuple[PolynomialRow, ...]
    bits: int
    depth: int
    accuracy: Accuracy | None

    @property
    def macs(self) -> int:
        """Multiply-accumulates with weights per input."""
        return sum(row.macs for row in self.rows)

    @property
    def squares(self) -> int:
        """Values per input that go through a polynomial."""
        return sum(row.squares for row in self.rows)

    @property
    def weights(self) -> int:
        """Weights and biases."""
        return sum(row.weights for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "bits": self.bits,
            "depth": self.depth,
            "macs": self.macs,
            "polynomials": self.squares,
            "weights": self.weights,
            "accuracy": None if self.accuracy is None else asdict(self.accuracy),
            "layers": [{**asdict(row), "shape": list(row.shape)} for row in self.rows],
        }

    def __rich__(self) -> Table:
        """A table for the terminal."""
        caption = (
            f"answer in {self.bits} bits, {self.depth} encrypted products deep; {self.macs:,} multiply-accumulates, "
            f"{self.squares:,} values through polynomials, {self.weights:,} weights. bits: proven for every input; "
            f"degree: of the value as a polynomial of the input\n{accuracy_line(self.accuracy)}"
        )
        table = Table(title="Polynomial model", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.title_justify = table.caption_justify = "left"
        table.add_column("layer", overflow="fold", min_width=12)
        for title in ("operator", "shape"):
            table.add_column(title, no_wrap=True)
        for title in ("bits", "degree", "MACs", "values"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.rows:
            counts = [f"{n:,}" if n else "" for n in (row.macs, row.squares)]
            table.add_row(row.name, row.op, "x".join(map(str, row.shape)), str(row.bits), str(row.degree), *counts)
        return table

    def __str__(self) -> str:
        return (
            f"PolynomialModel: {len(self.rows)} nodes, answers of {self.bits} bits, depth {self.depth}, "
            f"{self.macs:,} MACs, {self.squares:,} values through polynomials, {self.weights:,} weights"
        )


def build_report(model: PolynomialModel, data: Any, labels: Any, float_answers: Any) -> PolynomialReport:
    """The report of a model, with its accuracy on labelled data if there are any."""
    graph, weights = model.graph, model.graph.weight_count()
    degrees: dict[str, int] = {}
    rows = []
    for node in graph.nodes:
        own = node.op.degree if isinstance(node.op, Polynomial) else 1
        degrees[node.name] = max((degrees[name] for name in node.inputs), default=1) * own
        rows.append(
            PolynomialRow(
                name=node.name,
                op=node.op.kind,
                shape=graph.shapes[node.name],
                bits=model.proof.bits[node.name],
                degree=degrees[node.name],
                weights=weights.get(node.name, 0),
                macs=multiply_accumulates(graph, node),
                squares=_count(graph.shapes[node.name]) if own > 1 else 0,
                source=node.source,
            )
        )
    accuracy = compare_answers(model, data, labels, float_answers)
    return PolynomialReport(tuple(rows), model.bits, model.depth, accuracy)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
