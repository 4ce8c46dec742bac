"""A role's device: found, or refused with what there is before anything begins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pqi
from pqi.quant import quantize
from pqi.session import main as roles
from pqi.session.crew import crew_of
from pqi.session.errors import SessionError
from pqi.session.place import place_of, places_of
from protocols import devices
from protocols.errors import BadParameters
from tests import networks


@pytest.fixture(scope="module")
def model() -> pqi.IntegerModel:
    return quantize(networks.mlp(4, 3, 2), calibration=torch.randn(8, 4))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_the_processor_is_always_there() -> None:
    assert devices.find("cpu") == devices.CPU


@pytest.mark.usefixtures("two_gpus")
def test_gpus_are_found_by_their_number_and_the_first_without() -> None:
    assert devices.find("cuda") == torch.device("cuda", 0)
    assert devices.find("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(BadParameters, match="'cuda:2' is not there; there are cpu, cuda:0, cuda:1"):
        devices.find("cuda:2")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("name", ["gpu", "cuda:x", "mps", "meta", ""])
def test_what_is_no_device_of_a_role_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(BadParameters, match=f"'{name}' is not among those that roles compute on: cpu"):
        devices.find(name)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("version", "why"), [(None, "was built without CUDA"), ("12.6", "finds no GPU")])
def test_a_gpu_that_is_not_there_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, version: str | None, why: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", version)
    with pytest.raises(SessionError, match=f"'cuda' is not there: PyTorch .* {why}. There is cpu. Every role may"):
        place_of("cuda", "additive2")


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("protocol", ["clear", "paillier", "bfv", "ckks"])
def test_a_protocol_that_computes_on_the_processor_only_says_so(protocol: str) -> None:
    assert place_of("cpu", protocol) == devices.CPU
    with pytest.raises(SessionError, match=f"protocol '{protocol}' computes on cpu only"):
        place_of("cuda:1", protocol)


@pytest.mark.usefixtures("two_gpus")
def test_every_role_of_a_deployment_has_one_device_or_its_own() -> None:
    assert places_of("cpu", "additive2") == {}
    assert places_of("cuda", "additive2") == dict.fromkeys(("server_a", "server_b", "dealer"), "cuda")
    assert places_of({"server_b": "cuda:1", "dealer": "cpu"}, "additive2") == {"server_b": "cuda:1"}
    with pytest.raises(SessionError, match=r"device of 'client': .* the client needs none"):
        places_of({"client": "cuda"}, "additive2")


@pytest.mark.usefixtures("no_gpu")
def test_a_local_deployment_without_its_device_is_refused_before_anything_is_written(
    model: pqi.IntegerModel, tmp_path: Path
) -> None:
    with pytest.raises(SessionError, match="'cuda' is not there"):
        pqi.local(model, device="cuda", directory=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("command", "role"), [("serve", "server_a"), ("deal", "dealer")])
def test_a_role_without_its_device_ends_before_it_begins(
    model: pqi.IntegerModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    command: str,
    role: str,
) -> None:
    pqi.split(model, tmp_path)
    monkeypatch.setattr(roles, "stop_on_signals", lambda: None)
    assert roles.main([command, str(tmp_path / role), "--device", "cuda"]) == 2
    assert f"{command} cannot run: device 'cuda' is not there" in caplog.text
    assert not (tmp_path / role / "journal.sqlite").exists()


def test_one_thread_deals_on_a_gpu(model: pqi.IntegerModel) -> None:
    program = pqi.compile(model)
    for crew in ({"workers": 2}, {"workers": 1, "ray": "local"}):
        with pytest.raises(SessionError, match="one thread deals on cuda:0: leave out workers and ray"):
            crew_of(program, {}, **crew, device=torch.device("cuda", 0))  # type: ignore[arg-type]
