"""Trimmed calibration: examples that drive some layer far beyond what the others do have no say in its range.

For every example and every place l whose range calibration chooses (the input, and each value that becomes codes) let
e_l = log max |v_l|. With the median m_l over the examples and s_l = max(1.4826 median |e_l - m_l|, floor), an example
is dropped if (e_l - m_l) / s_l > reach anywhere. Median and deviation cannot be moved far by less than half of the
data, so what an attacker with a smaller share can do to a range is bounded: at most about exp(reach s_l) times the
median example. Small examples are kept: they widen nothing.

Cost: one pass of the calibration data through the float network. It drops some honest examples, too, in whose tails an
honest range may have had an interest; what that costs is measured (``pqi.audit.defences.price``).
Median and deviation as a rule for outliers: Hampel, JASA 1974; Leys et al., J. Experimental Social Psychology 2013.
"""

from __future__ import annotations

import warnings
from typing import ClassVar

from torch import Tensor, nn

from pqi.audit.defences.defence import Defence
from pqi.audit.errors import AuditError
from pqi.audit.extremes import Extremes
from pqi.graph.errors import CalibrationWarning

_NORMAL = 1.4826  # the median absolute deviation of a normal law, times this, is its standard deviation
_MANY = 0.2


class TrimmedCalibration(Defence):
    """Drops calibration examples whose largest values lie far out of the others'.

    reach: in robust standard deviations of the logarithm. floor: the least standard deviation (0.05: five per cent),
    for places where most examples have the same largest value. Warns where more than a fifth would go: then the data
    are of several kinds, and what is dropped is not an attack.
    """

    name = "trimmed-calibration"
    answers: ClassVar[tuple[str, ...]] = ("calibration-poisoning",)
    source = "median and deviation: Hampel, JASA 1974"
    reads_calibration = True

    def __init__(self, reach: float = 3.0, floor: float = 0.05) -> None:
        if not 0 < reach < float("inf") or not 0 < floor < float("inf"):
            raise AuditError(f"reach = {reach} and floor = {floor} must be positive and finite")
        self.reach, self.floor = float(reach), float(floor)

    def calibration(self, net: nn.Module, x: Tensor) -> Tensor:
        """The examples (M, ...), M <= N, in their order, that lie within reach at every place."""
        logs = Extremes(net, x).of(x)
        kept = (logs <= self.limit(logs)).all(1)
        if (~kept).float().mean() > _MANY:
            warnings.warn(
                f"trimmed calibration drops {int((~kept).sum())} of {len(x)} examples: they are of several kinds. "
                "Look at them, or give a larger reach.",
                CalibrationWarning,
                stacklevel=2,
            )
        return x[kept]

    def limit(self, logs: Tensor) -> Tensor:
        """The furthest that is kept at each place, (places,), of examples' logarithms (N, places)."""
        middle = logs.median(0).values
        spread = _NORMAL * (logs - middle).abs().median(0).values
        return middle + self.reach * spread.clamp(min=self.floor)
