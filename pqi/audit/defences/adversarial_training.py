"""Training on inputs that an attacker would send, made with the gradients of the integers in training.

In every batch a share of the inputs is moved before it is learnt from, by projected steps along the gradient's sign
(PGD). Everything happens on the client's grid: with c the codes of an input, C the codes per unit of the input and
[low, high] what inputs can be,

    r  = floor(epsilon (high - low) C)                            how far a code may move
    a  = ceil(2.5 r / steps)                                      how far it moves in one step
    c0 = P(c + u),  u uniform on {-r, ..., r}                     the start
    c' = P(c0 + a sign(d loss / d c0))                             one step, through every rounding straight

P moves a code into [c - r, c + r] and into the codes of [low, high]. So what is trained against is what a client can
send, and every forward pass is one of exact integers.

There are two losses. With labels the moved inputs are learnt by cross-entropy alone, instead of the usual loss (Madry
et al., ICLR 2018). Without, or with ``trades`` set, the whole batch is learnt as usual and the moved share adds
trades * KL(p(c) || p(c')), p the softmax of the integers' answers (TRADES, Zhang et al., ICML 2019); PGD raises that
divergence then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from pqi.audit.defences.training import TrainingDefence
from pqi.audit.errors import AuditError

if TYPE_CHECKING:
    from pqi.quant.train.loop import Batch, Task

_TRADES = 6.0  # the weight of Zhang et al.

Loss = Callable[[Tensor], Tensor]


class AdversarialTraining(TrainingDefence):
    """Learn a ``share`` of every batch as an attacker would send it.

    epsilon: largest change of a value, in shares of the input's range, as the attacks of ``pqi.audit`` count it.
    steps: of PGD. share: of every batch. trades: weight of the divergence of TRADES; None: cross-entropy if there are
    labels, TRADES with weight 6 if there are none. low, high: what an input's values can be (None: the ends of the
    training inputs).

    A batch costs 1 + share * steps passes instead of one, and share more with TRADES. The private run costs nothing
    more. It holds for the attacker it was trained against: other norms and larger changes are not answered. Weights
    have far to go: ``Schedule``'s learning rate, in codes, is made for few bits; weights of 8 bits need 1 to 3.
    """

    name = "adversarial-training"
    answers = ("pgd", "apgd", "fgsm", "square")
    source = "Madry et al., ICLR 2018; Zhang et al., ICML 2019"

    def __init__(
        self,
        epsilon: float = 8 / 255,
        steps: int = 7,
        share: float = 0.5,
        trades: float | None = None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        if not 0 < epsilon <= 1:
            raise AuditError(f"epsilon is {epsilon}: a share of the input's range, above 0 and at most 1, is needed")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise AuditError(f"steps is {steps!r}: it must be an integer of at least 1")
        if not 0 < share <= 1:
            raise AuditError(f"share is {share}: it must be above 0 and at most 1")
        if trades is not None and not 0 < trades < math.inf:
            raise AuditError(f"trades is {trades}: it must be positive and finite, or None")
        self.epsilon, self.steps, self.share, self.trades = epsilon, steps, share, trades
        self.low, self.high = low, high

    def begin(self, task: Task) -> None:
        """Ends of the inputs as codes, and how far a code may move; refuses an epsilon of less than one code."""
        low = float(task.inputs.min()) if self.low is None else self.low
        high = float(task.inputs.max()) if self.high is None else self.high
        if not low < high:
            raise AuditError(f"inputs from {low} to {high}: low must be below high")
        # A hair of slack: 8 / 255 times 255 is to be 8.
        self._reach = math.floor(self.epsilon * (high - low) * task.input_scale * (1 + 1e-6))
        if self._reach < 1:
            raise AuditError(
                f"epsilon {self.epsilon:g} of inputs from {low:g} to {high:g} is less than one code of the client "
                f"({1 / (task.input_scale * (high - low)):.3g}): raise epsilon, or input_bits"
            )
        ends = task.encode(torch.tensor([low, high]))
        self._ends = float(ends[0]), float(ends[1])

    def batch(self, task: Task, batch: Batch) -> Batch:
        """The first rows moved (rows are in random order), to be learnt from their labels alone."""
        if batch.labels is None or self.trades is not None:
            return batch
        n = self._rows(batch)
        labels = batch.labels[:n]
        moved = self.moved(task, batch, n, lambda logits: functional.cross_entropy(logits, labels))
        weight = torch.as_tensor(batch.labels_weight).expand(len(batch.codes)).clone()
        weight[:n] = 1.0
        return replace(batch, codes=torch.cat([moved, batch.codes[n:]]), labels_weight=weight)

    def penalty(self, task: Task, batch: Batch, logits: Tensor) -> Tensor | None:
        """TRADES: the divergence of the answers to moved inputs from those to the same inputs unmoved."""
        if batch.labels is not None and self.trades is None:
            return None
        n = self._rows(batch)
        still = logits[:n].detach()
        moved = self.moved(task, batch, n, lambda others: divergence(still, others))
        weight = _TRADES if self.trades is None else self.trades
        return weight * divergence(logits[:n], task.logits(task.module(moved, batch.weights)))

    def moved(self, task: Task, batch: Batch, n: int, loss: Loss) -> Tensor:
        """The first n inputs of the batch where ``loss`` of their logits is high: whole codes, float32 (n, ...)."""
        codes = batch.codes[:n]
        lowest, highest = self._ends
        low, high = (codes - self._reach).clamp(min=lowest), (codes + self._reach).clamp(max=highest)
        # An input beyond the declared ends stays possible: it may move towards them only.
        low, high = torch.minimum(low, codes), torch.maximum(high, codes)
        start = torch.randint(-self._reach, self._reach + 1, codes.shape, generator=batch.generator)
        step = math.ceil(2.5 * self._reach / self.steps)
        weights = {name: (weight.detach(), bias.detach()) for name, (weight, bias) in batch.weights.items()}
        found = (codes + start).clamp(low, high)
        for _ in range(self.steps):
            found.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(task.logits(task.module(found, weights))), found)
            found = (found.detach() + step * gradient.sign()).clamp(low, high)
        return found

    def _rows(self, batch: Batch) -> int:
        return max(1, round(self.share * len(batch.codes)))


def divergence(still: Tensor, moved: Tensor) -> Tensor:
    """Mean over rows of KL(softmax(still) || softmax(moved)), for logits (N, classes)."""
    first, second = functional.log_softmax(still, 1), functional.log_softmax(moved, 1)
    return functional.kl_div(second, first, reduction="batchmean", log_target=True)
