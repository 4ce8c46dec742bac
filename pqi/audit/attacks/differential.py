"""Inputs that the float network still classifies rightly and the integers do not (DIVA, Hao et al., MLSys 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pqi.audit.attack import Attack, Budget, Curve, Finding, Progress, Threat
from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.evasion import DEFAULT_STRENGTHS, within
from pqi.audit.statistics import Estimate, share
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH

_BATCH = 250


class DifferentialEvasion(Attack):
    """Ascends p_float(y | x) - weight * p_integers(y | x) within epsilon of x, straight through the rounding.

    Success: right in float before and after, right in integers before and wrong after. It evades an inspection that is
    made with the float network. strengths as those of every evasion.
    """

    name = "differential"
    family = "adversarial"
    threat = Threat("weights", "inputs", "right in float, wrong in integers", "Hao et al. (DIVA), MLSys 2022")

    def __init__(self, strengths: Sequence[float] = DEFAULT_STRENGTHS, steps: int = 20, weight: float = 1.0) -> None:
        if steps < 1 or weight <= 0:
            raise AuditError(f"steps = {steps} must be at least 1 and weight = {weight} positive")
        self.strengths, self.steps, self.weight = tuple(strengths), steps, weight

    def run(self, case: Case, budget: Budget, progress: Progress | None = None) -> tuple[Finding, ...]:
        """One finding: the share of inputs, right in both forms, on which they can be driven apart."""
        data, clock = case.test.sample(budget.samples, budget.seed), budget.clock()
        clean = case.on_grid(data.x)
        eligible = (case.subjects[FLOAT].labels(clean) == data.y) & (case.subjects[INTEGERS].labels(clean) == data.y)
        if not eligible.any():
            raise AuditError("no input is classified rightly by both forms: there is nothing to drive apart")
        shares, apart = list[Estimate](), np.zeros(len(data), bool)
        for done, strength in enumerate(self.strengths):
            if clock.is_over and shares:
                break
            epsilon = strength * (case.high - case.low)
            made = within(case, self._craft(case, data.x, data.y, epsilon), data.x, epsilon)
            still = case.subjects[FLOAT].labels(made) == data.y
            apart = apart | (eligible & still & (case.subjects[INTEGERS].labels(made) != data.y))
            shares.append(share(apart[eligible]))
            if progress is not None:
                progress(done + 1, len(self.strengths))
        curve = Curve(
            x=self.strengths[: len(shares)],
            y=[e.value for e in shares],
            low=[e.low for e in shares],
            high=[e.high for e in shares],
            x_name="epsilon",
            y_name="driven apart",
        )
        settings: dict[str, Any] = {"steps": self.steps, "weight": self.weight, "strengths": list(self.strengths)}
        found = self.finding(
            INTEGERS,
            budget,
            clock,
            figures={"driven apart": shares[-1]},
            curves={"driven apart": curve},
            settings=settings,
            stopped_early=len(shares) < len(self.strengths),
        )
        return (found,)

    def _craft(self, case: Case, x: Any, y: Any, epsilon: float) -> Any:
        parts = []
        for i in range(0, len(x), _BATCH):
            rows = slice(i, i + _BATCH)
            parts.append(self._ascend(case, torch.as_tensor(x[rows]), torch.as_tensor(y[rows]), epsilon))
        return np.concatenate(parts)

    def _ascend(self, case: Case, start: Tensor, y: Tensor, epsilon: float) -> Any:
        net, ours = case.subjects[FLOAT].module, case.subjects[STRAIGHT_THROUGH].module
        if net is None or ours is None:
            raise AuditError("both forms need gradients here")
        first = next(net.parameters(), None)
        real = torch.float32 if first is None else first.dtype
        moved, rows = start.clone(), torch.arange(len(y))
        for _ in range(self.steps):
            moved.requires_grad_(True)
            in_float = nn.functional.softmax(net(moved.to(real)), dim=1)[rows, y]
            in_integers = nn.functional.softmax(ours(moved), dim=1)[rows, y]
            goal = (in_float.to(torch.float64) - self.weight * in_integers.to(torch.float64)).sum()
            (gradient,) = torch.autograd.grad(goal, moved)
            step = moved.detach() + (epsilon / 4) * gradient.sign()
            moved = torch.clamp(start + (step - start).clamp(-epsilon, epsilon), case.low, case.high)
        return moved.numpy()
