"""Hardened answers: what a client is told, computed inside the protocol and decided by the model owner.

=================  ===================================================================================================
scores             the answer as it is
label              one-hot: 1 for the class of the largest score (the lowest of equal ones), 0 for all others
top, k             1 for the k largest, without their order; equal scores fall in the order of their classes
ranked, k          k for the largest, k - 1 for the next, ..., 1 for the k-th, 0 for all others
rounded, b         scores rounded down to b bits: floor(score / 2^s), moved into the range of 2^b codes
noisy, s           scores, each with fresh noise: a discrete Gaussian of standard deviation s, in units of the integers
=================  ===================================================================================================

A policy is a rewrite of the integer graph, so the same reference defines it, the same proof covers its rings, and every
protocol that serves the graph serves it, to the bit. No score leaves the protocol: the servers hold shares of it, and
the client is sent shares of the hardened answer alone.

Noise is the exception: the reference is without it, and the private answer is the reference and e, ``|e| <= 9 s``. The
dealer draws e and deals shares of it, so that no server and no client knows it; programs with it do not call themselves
exact. It is fresh for every answer, so who asks n times takes the mean and is left with ``s / sqrt(n)``: noise is worth
something together with a limit on questions alone (``pqi.split(answers_per_client=...)``).

The first three are a tournament: all differences of two scores (local), their signs (C (C - 1) / 2 comparisons, side by
side), the sum of each class's signs (local: 2 wins - (C - 1) mod 2^t, t = ceil(log2 2C)), and a table of 2^t entries at
that sum, which one exchange reads. A tree of maxima needs about 2 C comparisons instead, but one after the other.

It answers extraction and membership inference through scores (Tramer et al., USENIX Security 2016; Carlini et al., S&P
2022). It does not end them: labels alone can be learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from pqi.audit.errors import AuditError
from pqi.graph.graph import OUTPUT, IntegerGraph, Node
from pqi.graph.model import IntegerModel, observe
from pqi.graph.ops import Dense, Lookup, Noise, Op, Pairwise, Requantize, Reshape, Scale, Standing, Step
from pqi.graph.ops.noise import MAX_DEVIATION, TAILS
from pqi.graph.ops.tournament import MAX_PLAYERS
from pqi.graph.ranges import bits_needed, calibrated_accumulators, prove, proven_accumulators, refuse_wide

KINDS = ("scores", "label", "top", "ranked", "rounded", "noisy")
_PREFIX = "answers"
_MOST = {"top": MAX_PLAYERS, "ranked": MAX_PLAYERS, "rounded": 16, "noisy": MAX_DEVIATION}


@dataclass(frozen=True)
class Policy:
    """What a client is told. kind: of KINDS. size: k of top and ranked, bits of rounded, standard deviation of noisy;
    0 for the others.
    """

    kind: str
    size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise AuditError(f"answers = {self.kind!r}: choose from {', '.join(KINDS)}")
        if self.kind in _MOST:
            most = _MOST[self.kind]
            if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= most:
                raise AuditError(f"answers = ({self.kind!r}, {self.size!r}): a number from 1 to {most} is needed")
        elif self.size:
            raise AuditError(f"answers = ({self.kind!r}, {self.size!r}): {self.kind} takes no number")

    @property
    def tells(self) -> str:
        """What the client learns, in words."""
        return {
            "scores": "its scores",
            "label": "its label only: one-hot, no score",
            "top": f"which classes are its {self.size} best, without order; no score",
            "ranked": f"its {self.size} best classes in order; no score",
            "rounded": f"its scores rounded down to {self.size} bits",
            "noisy": f"its scores with fresh noise, of standard deviation {self.size} and at most {TAILS * self.size} "
            "units of the answer's integers",
        }[self.kind]

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}" if self.kind in _MOST else self.kind


def policy_of(wish: Any) -> Policy:
    """From "label", ("top", 3), or text such as "top:3"; raises AuditError on anything else."""
    if isinstance(wish, Policy):
        return wish
    kind, size = wish, 0
    if isinstance(wish, str):
        kind, colon, text = wish.partition(":")
        if colon and not text.isdecimal():
            raise AuditError(f"answers = {wish!r}: a whole number is needed behind the colon")
        size = int(text) if colon else 0
    elif isinstance(wish, (tuple, list)) and len(wish) == 2:
        kind, size = wish
    if not isinstance(kind, str):
        raise AuditError(f"answers = {wish!r}: give a name of {', '.join(KINDS)}, with its number as in ('top', 3)")
    return Policy(kind, size)


def harden(model: IntegerModel, policy: Any, sample: Tensor | None = None) -> IntegerModel:
    """The model with its answer hardened; ``model`` itself is left as it is.

    policy: see :func:`policy_of`. sample: codes int64 (N, *graph.input.shape) as clients ask; "rounded" spreads its
    codes over the scores seen on them (all that the proof allows without), and a model of calibrated rings needs them.
    Where scores of a calibrated model wrap, differences of scores wrap by the definition of the hardened model; noisy
    scores never wrap, in a ring as wide as the proof asks for.

    Raises AuditError for a dynamic model (whose client divides the answer by a scale of its own), one hardened
    already, a k that leaves nothing to hide, or more classes than a tournament takes.
    """
    wish = policy_of(policy)
    if wish.kind == "scores":
        return model
    if model.dynamic is not None:
        raise AuditError("a dynamic model's client divides its answer by its own scale: harden one with dynamic=False")
    if (already := hardened(model)) is not None:
        raise AuditError(f"the model's answers are hardened already ({already}): harden the one that gives scores")
    if wish.kind == "noisy":
        return _noisy(model, wish.size)
    if model.policy == "calibrated" and sample is None:
        raise AuditError("the model's rings are calibrated: give codes of typical inputs as sample")
    if wish.kind == "rounded":
        graph, factor = _rounded(model, wish.size, sample)
        return _finished(model, graph, model.output_scale * factor, sample)
    return _finished(model, _tournament(model, wish), 1.0, sample)


def hardened(model: IntegerModel) -> Policy | None:
    """The policy of a hardened model, None of one that gives its scores; read from the graph."""
    op, name = model.graph.by_name[model.graph.output].op, model.graph.output
    if name.startswith(f"{_PREFIX}/rounded") and isinstance(op, Requantize):
        return Policy("rounded", op.bits)
    if isinstance(op, Noise):
        return Policy("noisy", op.deviation)
    if not isinstance(op, Lookup):
        return None
    before = model.graph.by_name[model.graph.by_name[name].inputs[0]].op
    if not isinstance(before, Standing):
        return None
    best, told = int(op.values.max()), int((op.values[_standings(before.players, op.bits)] > 0).sum())
    if best > 1:
        return Policy("ranked", best)
    return Policy("label") if told == 1 else Policy("top", told)


def _finished(model: IntegerModel, graph: IntegerGraph, scale: float, sample: Tensor | None) -> IntegerModel:
    """Rings for the longer graph: proven, or the model's own and as many more as the policy's steps saw."""
    proof = prove(graph)
    accumulators = proven_accumulators(graph, proof)
    if model.policy == "calibrated" and sample is not None:
        accumulators = calibrated_accumulators(graph, proof, observe(graph, sample), 1)
        kept = {
            name: k for name, k in model.accumulators.items() if name in accumulators and name in model.graph.shapes
        }
        accumulators |= kept
        proof = prove(graph, accumulators)
    refuse_wide(graph, accumulators, proof)
    return IntegerModel(graph, accumulators, model.input_quantizer, scale, model.policy, proof)


def _noisy(model: IntegerModel, deviation: int) -> IntegerModel:
    """All rings as they are, but the answer's, which holds every score that the proof allows with its noise."""
    graph = _behind(list(model.graph.nodes), model.graph.output, [("noisy", Noise(deviation))])
    proof = prove(graph, {name: k for name, k in model.accumulators.items() if name != OUTPUT})
    accumulators = model.accumulators | {OUTPUT: proof.bits[graph.output]}
    refuse_wide(graph, accumulators, proof)
    return IntegerModel(graph, accumulators, model.input_quantizer, model.output_scale, model.policy, proof)


# --- a tournament -------------------------------------------------------------------------------------------------


def _standings(players: int, bits: int) -> Tensor:
    """2 wins - (C - 1) mod 2^bits for wins = 0, 1, ..., C - 1, int64 (C,)."""
    return (2 * torch.arange(players) - (players - 1)) & ((1 << bits) - 1)


def _told(wish: Policy, players: int) -> Tensor:
    """The answer of a class by its wins, int64 (C,)."""
    wins = torch.arange(players)
    k = 1 if wish.kind == "label" else wish.size
    if k >= players:
        raise AuditError(f"answers = {wish} of {players} classes tells of every one: give a number below {players}")
    above = (wins - (players - 1 - k)).clamp(min=0)  # k for all wins, ..., 1 for the k-th, 0 below
    return above if wish.kind == "ranked" else above.clamp(max=1)


def _tournament(model: IntegerModel, wish: Policy) -> IntegerGraph:
    players = prod(model.output_shape)
    if not 2 <= players <= MAX_PLAYERS:
        raise AuditError(f"answers = {wish}: {players} scores; a tournament compares 2 to {MAX_PLAYERS}")
    bits = (2 * players - 1).bit_length()
    table = torch.zeros(1 << bits, dtype=torch.int64)
    table[_standings(players, bits)] = _told(wish, players)
    made = [("pairs", Pairwise()), ("wins", Step()), ("standing", Standing(players)), (wish.kind, Lookup(bits, table))]
    if len(model.output_shape) != 1:
        made.insert(0, ("flat", Reshape((players,))))
    return _behind(list(model.graph.nodes), model.graph.output, made)


def _behind(nodes: list[Node], source: str, made: list[tuple[str, Op]]) -> IntegerGraph:
    """The graph with more operators in a row behind ``source``."""
    for name, op in made:
        nodes.append(Node(f"{_PREFIX}/{name}", op, (source,), f"answers: {name}"))
        source = nodes[-1].name
    return IntegerGraph(tuple(nodes), source)


# --- coarser scores -----------------------------------------------------------------------------------------------


def _rounded(model: IntegerModel, bits: int, sample: Tensor | None) -> tuple[IntegerGraph, int]:
    """The graph, and how many old units one new one is."""
    graph = model.graph
    low, high = model.ranges.lo[graph.output], model.ranges.hi[graph.output]
    if sample is not None and len(sample):
        low, high = (int(v) for v in model.integers(sample).aminmax())
    shift = max(0, bits_needed(0, high - low) - 1 - bits)
    while (high >> shift) - (low >> shift) >= 1 << bits:
        shift += 1
    lowest = low >> shift
    nodes, source = _raised(list(graph.nodes), graph, -(lowest << shift))
    return _behind(nodes, source, [("rounded", Requantize(shift, bits, lowest))]), 1 << shift


def _raised(nodes: list[Node], graph: IntegerGraph, amount: int) -> tuple[list[Node], str]:
    """All scores and a constant: in the last layer's bias if nobody else reads it, else by a layer of its own."""
    last = graph.by_name[graph.output]
    if not amount:
        return nodes, last.name
    if isinstance(last.op, Dense) and not graph.consumers[last.name]:
        more = replace(last, op=replace(last.op, bias=last.op.bias + amount))
        return [more if node is last else node for node in nodes], last.name
    channels = graph.shapes[last.name][0]
    one, plus = (torch.full((channels,), value, dtype=torch.int64) for value in (1, amount))
    raised = Node(f"{_PREFIX}/raised", Scale(one, plus), (last.name,), "answers: raised")
    return [*nodes, raised], raised.name
