"""The forms of a network as the estimators of adversarial-robustness-toolbox, and its draws made repeatable."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.subjects import Subject

_MOST_KEPT = 200_000


def toolbox() -> Any:
    """The package ``art``; raises AuditError that names the extra which installs it."""
    try:
        import art.attacks.evasion
        import art.estimators.classification
    except ModuleNotFoundError as error:
        raise AuditError(
            f"attacks need {error.name}, which is not installed: pip install 'private-quantized-inference[audit]'"
        ) from error
    return art


class _Connected(nn.Module):
    """A network whose steps cut the gradient has the gradient 0, which is what torch refuses to say."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores + 0.0 * x.sum() if x.requires_grad and not scores.requires_grad else scores


def white_box(case: Case, subject: Subject) -> Any:
    """The differentiable form as ``PyTorchClassifier``: logits and gradients of the cross-entropy, 0 where cut."""
    if subject.module is None:
        raise AuditError(f"the {subject.name} form has no gradient: attack it by its scores, or by its labels")
    classifier = toolbox().estimators.classification.PyTorchClassifier
    return classifier(
        model=_Connected(subject.module),
        loss=nn.CrossEntropyLoss(),
        input_shape=case.model.input_shape,
        nb_classes=case.classes,
        clip_values=(case.low, case.high),
        device_type="cpu",
    )


def black_box(case: Case, subject: Subject, labels_only: bool = False) -> Any:
    """Any form as a classifier that is only asked; counts its questions in ``asked``. labels_only: one-hot answers.

    Answers are kept, for the toolbox asks of the same input again and again: a question counts once, unless the form
    answers otherwise when it is asked again.
    """
    estimators = toolbox().estimators.classification

    class Asked(estimators.BlackBoxClassifierNeuralNetwork):  # type: ignore[misc, name-defined]
        asked = 0

    def asked(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        made.asked += len(x)
        return subject.scores(x)

    kept = _Kept(asked) if subject.repeats else asked

    def answer(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        scores = kept(x)
        if labels_only:
            return np.asarray(np.eye(scores.shape[1])[scores.argmax(axis=1)], np.float32)
        return np.asarray(scores, np.float32)

    made = Asked(answer, case.model.input_shape, case.classes, clip_values=(case.low, case.high))
    return made


class _Kept:
    """A function of rows that is asked of every row once; the answers are kept by the rows' digests."""

    def __init__(self, function: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> None:
        self._function, self._known = function, dict[bytes, np.ndarray[Any, Any]]()

    def __call__(self, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if len(self._known) > _MOST_KEPT:
            self._known.clear()
        digests = [blake2b(row.tobytes(), digest_size=16).digest() for row in x]
        new = {digest: i for i, digest in enumerate(digests) if digest not in self._known}
        if new:
            self._known.update(zip(new, self._function(x[list(new.values())]), strict=True))
        return np.stack([self._known[digest] for digest in digests])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The toolbox draws from the global generators of numpy and torch: seeded here, and put back afterwards."""
    before, torch_before = np.random.get_state(), torch.get_rng_state()
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)
        torch.set_rng_state(torch_before)


@contextmanager
def inputs_only(net: nn.Module | None) -> Iterator[None]:
    """No gradients of the network's parameters, which attacks on inputs would compute and throw away."""
    learnt = [] if net is None else [p for p in net.parameters() if p.requires_grad]
    for parameter in learnt:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learnt:
            parameter.requires_grad_(True)
