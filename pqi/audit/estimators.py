"""The forms of a network as the estimators of adversarial-robustness-toolbox, and its draws made repeatable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from pqi.audit.case import Case
from pqi.audit.errors import AuditError
from pqi.audit.subjects import Subject


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


def white_box(case: Case, subject: Subject) -> Any:
    """The differentiable form as ``PyTorchClassifier``: logits and gradients of the cross-entropy."""
    if subject.module is None:
        raise AuditError(f"the {subject.name} form has no gradient: attack it by its scores, or by its labels")
    classifier = toolbox().estimators.classification.PyTorchClassifier
    return classifier(
        model=subject.module,
        loss=nn.CrossEntropyLoss(),
        input_shape=case.model.input_shape,
        nb_classes=case.classes,
        clip_values=(case.low, case.high),
        device_type="cpu",
    )


def black_box(case: Case, subject: Subject, labels_only: bool = False) -> Any:
    """Any form as a classifier that is only asked; counts its questions in ``asked``. labels_only: one-hot answers."""
    estimators = toolbox().estimators.classification

    class Asked(estimators.BlackBoxClassifierNeuralNetwork):  # type: ignore[misc, name-defined]
        asked = 0

    def answer(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        made.asked += len(x)
        scores = subject.scores(x)
        if labels_only:
            return np.asarray(np.eye(scores.shape[1])[scores.argmax(axis=1)], np.float32)
        return np.asarray(scores, np.float32)

    made = Asked(answer, case.model.input_shape, case.classes, clip_values=(case.low, case.high))
    return made


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
