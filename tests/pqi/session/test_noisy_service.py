"""Answers with noise through a whole deployment: fresh for every answer, within what the client's file declares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sessionkit import QUICK, Deployment, inputs, make_deployment, small_model

from pqi.audit.defences.outputs import harden
from pqi.session.bundle import load_client
from pqi.session.server import ServerOptions


@pytest.mark.parametrize("weights", ["shared", "owned"])
def test_a_client_is_told_the_scores_and_noise_and_how_much_at_most(tmp_path: Path, weights: str) -> None:
    model = harden(small_model(), ("noisy", 40))
    made = Deployment(
        make_deployment(tmp_path, model, weights=weights), ServerOptions(patience=replace(QUICK, pool=30.0))
    )
    try:
        for role in ("server_b", "server_a"):
            made.start_server(role)
        made.start_dealer()
        made.await_epoch(1)
        x = np.repeat(inputs(1), 60, axis=0)
        with made.client() as client:
            assert (client.program.exact, client.program.noise) == (False, 360)  # type: ignore[union-attr]
            answer = client.predict(x)
    finally:
        made.close()
    e = np.asarray(answer.integers) - model.integers(model.encode(x)).numpy()
    assert len(np.unique(e, axis=0)) == 60 and np.abs(e).max() <= 360
    assert 28 < e.std() < 52  # 180 draws: nearly six standard errors
    assert np.array_equal(answer.values, np.asarray(answer.integers) * model.output_scale)
    assert answer.error_bound == 360 * model.output_scale


def test_the_client_s_file_says_that_the_dealer_knows_the_noise(tmp_path: Path) -> None:
    bundles = make_deployment(tmp_path, harden(small_model(), ("noisy", 40)))
    said = load_client(bundles / "client").program.security.learns
    assert "draws the noise of every answer" in said["dealer"] and "at most 360" in said["client"]
