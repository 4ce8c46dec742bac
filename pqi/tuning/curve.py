"""The trade-off curve: every candidate that was measured, the front among them, as table, JSON and picture."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from pqi.program.network import Profile
from pqi.tuning.cost import Bill
from pqi.tuning.judge import Measured
from pqi.tuning.levers import Candidate

ROWS = 24  # of the front that a table shows


@dataclass(frozen=True)
class Point:
    """One measured candidate. summary: in words. cost: the objective. bill: all quantities. measured: on the part of
    the validation set that the search saw. fits: whether it is within the accuracy budget there.
    """

    candidate: Candidate
    summary: str
    cost: float
    bill: Bill
    measured: Measured
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "cost": self.cost,
            "fits": self.fits,
            **asdict(self.bill),
            **asdict(self.measured),
            "summary": self.summary,
            "candidate": self.candidate.to_dict(),
        }


@dataclass(frozen=True)
class Curve:
    """All points, in the order in which they were measured, and what they are to be read against.

    budget: points of accuracy that may be lost. errors: standard errors that are added to a loss before it is compared
    with the budget. chosen: index of the point that was chosen.
    """

    objective: str
    network: Profile
    protocol: str
    float_accuracy: float
    samples: int
    budget: float
    errors: float
    points: tuple[Point, ...]
    chosen: int

    @property
    def front(self) -> tuple[Point, ...]:
        """The points that no other beats in both cost and accuracy, cheapest first."""
        kept: list[Point] = []
        for point in sorted(self.points, key=lambda p: (p.cost, -p.measured.accuracy)):
            if not kept or point.measured.accuracy > kept[-1].measured.accuracy:
                kept.append(point)
        return tuple(kept)

    @property
    def choice(self) -> Point:
        """The point that was chosen."""
        return self.points[self.chosen]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; ``front`` holds indices into ``points``."""
        front = {id(point) for point in self.front}
        return {
            "objective": self.objective,
            "network": asdict(self.network),
            "protocol": self.protocol,
            "float_accuracy": self.float_accuracy,
            "samples": self.samples,
            "accuracy_drop_allowed": self.budget,
            "standard_errors_added": self.errors,
            "chosen": self.chosen,
            "front": [i for i, point in enumerate(self.points) if id(point) in front],
            "points": [point.to_dict() for point in self.points],
        }

    def save_picture(self, path: str | Path) -> None:
        """Draw the curve into a file (.png, .svg, .pdf); needs matplotlib."""
        from pqi.tuning.picture import draw

        draw(self, path)

    def __rich__(self) -> Table:
        """The front as a table, thinned to a screenful; the choice is marked."""
        error = self.choice.measured.accuracy_error
        caption = (
            f"{len(self.points)} programs measured on {self.samples:,} inputs; shown are those that no other beats. "
            f"Float {self.float_accuracy:.2%}; a standard error of accuracy is {100 * error:.2f} points there, that of "
            f"a loss (same inputs) less. Within the budget: loss and {self.errors:g} standard error of it, at most "
            f"{self.budget:g} points. > marks the choice."
        )
        table = Table(title="Trade-off", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.title_justify = table.caption_justify = "left"
        table.add_column("", no_wrap=True)
        for title in ("dealt", "online", "exch.", "seconds", "accuracy", "loss", "+-", "fits"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("program", overflow="fold", min_width=20)
        for point in self._shown():
            bill, measured = point.bill, point.measured
            table.add_row(
                ">" if point is self.choice else "",
                f"{bill.offline_bytes:,}",
                f"{bill.online_bytes:,}",
                str(bill.exchanges),
                f"{bill.seconds:.3g}",
                f"{measured.accuracy:.2%}",
                f"{100 * measured.drop:+.2f}",
                f"{100 * measured.drop_error:.2f}",
                "yes" if point.fits else "no",
                escape(point.summary),
            )
        return table

    def _shown(self) -> tuple[Point, ...]:
        """The choice, and what of the front is worth a line: nothing that guesses."""
        chance = 2 * min((p.measured.accuracy for p in self.points), default=0.0)
        rows = [p for p in self.front if p.measured.accuracy >= min(chance, self.float_accuracy / 2)]
        while len(rows) > ROWS:  # drop the one whose neighbours are nearest in cost
            gaps = [(rows[i + 1].cost / max(rows[i - 1].cost, 1e-12), i) for i in range(1, len(rows) - 1)]
            rows.pop(min((gap, i) for gap, i in gaps if rows[i] is not self.choice)[1])
        if all(p is not self.choice for p in rows):
            rows = sorted([*rows, self.choice], key=lambda p: p.cost)
        return tuple(rows)
