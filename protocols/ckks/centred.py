"""Polynomials in the form that costs fewest products: centred, so that the second highest coefficient is gone.

With x' = x + shift and shift = c_{d-1} / (d c_d),

    p(x) = c_d m(x') + tail,      m(x) = x^2,    x (x^2 + u),    (x^2 + u)^2 + v x       (degree 2, 3, 4).

The affine stage before adds the shift, the one after takes ``c_d`` into its weights and ``tail`` into its bias: a
square with any linear part is one product of ciphertexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import comb

from protocols.circuit import Polynomial


@dataclass(frozen=True)
class Centred:
    """``p(x) = lead m(x + shift) + tail``; u, v as above, 0 where the degree has none."""

    degree: int
    lead: float
    shift: float
    tail: float
    u: float = 0.0
    v: float = 0.0

    def inner(self, reach: float) -> float:
        """Largest ``|x^2 + u|`` for ``|x|`` up to ``reach``."""
        return max(reach * reach + self.u, abs(self.u))

    def reach(self, reach: float) -> float:
        """A bound of ``|m(x)|`` for ``|x|`` up to ``reach``."""
        if self.degree == 2:
            return reach * reach
        inner = self.inner(reach)
        return reach * inner if self.degree == 3 else inner * inner + abs(self.v) * reach

    def slope(self, reach: float) -> float:
        """A bound of ``|m'(x)|`` for ``|x|`` up to ``reach``."""
        if self.degree == 2:
            return 2 * reach
        if self.degree == 3:
            return max(3 * reach * reach + self.u, abs(self.u))
        return 4 * reach * self.inner(reach) + abs(self.v)


def centred(polynomial: Polynomial) -> Centred:
    """The centred form; exact fractions up to the last step."""
    c = [Fraction(value) for value in polynomial.coefficients]
    degree, lead = polynomial.degree, c[-1]
    shift = c[-2] / (degree * lead)
    moved = [
        sum((c[j] * comb(j, i) * (-shift) ** (j - i) for j in range(i, degree + 1)), Fraction(0)) / lead
        for i in range(degree)
    ]  # m's coefficients before its constant is taken out: p(x' - shift) / lead
    tail, u, v = moved[0], Fraction(0), Fraction(0)
    if degree == 3:
        u = moved[1]
    elif degree == 4:
        u, v = moved[2] / 2, moved[1]
        tail -= u * u
    return Centred(degree, float(lead), float(shift), float(tail * lead), float(u), float(v))
