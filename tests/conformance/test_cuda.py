"""On a real GPU: what ``test_devices`` checks on a device that only pretends. Skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import pqi
import pqi.program as program
from pqi.quant import quantize
from protocols import aes, api, devices, prg, ring
from protocols.rounds import PartyId
from tests import networks
from tests.conformance.battery import values
from tests.conformance.trial import HERE, STEPS, check_maps, check_step
from tests.pqi.program.lockstep import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("at", range(len(STEPS)), ids=[f"{type(s).__name__}-{r}" for s, r, *_ in STEPS])
def test_a_step_on_a_gpu_sends_the_same_bytes_and_gives_the_same_shares(at: int) -> None:
    for n in (0, 1, 3):
        check_step(CUDA, at, n)


@pytest.mark.parametrize("bits", [8, 15, 20, 32])
@pytest.mark.parametrize("visibility", api.VISIBILITIES)
def test_maps_on_a_gpu_send_the_same_bytes_and_give_the_same_shares(visibility: str, bits: int) -> None:
    check_maps(CUDA, visibility, bits)


def test_streams_made_on_a_gpu_are_those_made_here() -> None:
    key = prg.Key.fresh()
    for first, size in ((0, 1), ((1 << 64) - 3, 999), (5, (1 << 24) + 77)):
        made = devices.to_host(aes.keystream(key, first, size, CUDA))
        assert np.array_equal(made, prg.keystream(key, first, size))


def test_the_int8_units_of_the_gpu_are_used_and_exact() -> None:
    assert ring._units_are_exact(CUDA)
    for rows, inner, columns in ((1, 2, 1), (16, 27, 49), (64, 576, 3136)):
        w, x = (values(8, shape, 5).to(torch.int8) for shape in ((rows, inner), (inner, columns)))
        made = ring.byte_product(w.to(CUDA), x.to(CUDA))
        assert torch.equal(made.to(HERE), w.to(torch.int32) @ x.to(torch.int32))


@pytest.mark.parametrize("roles", [tuple(PartyId), (PartyId.P0,), (PartyId.P1,)], ids=["all", "A", "B"])
def test_the_answer_is_the_integer_models_wherever_the_roles_compute(roles: tuple[PartyId, ...]) -> None:
    x = torch.randn(8, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    model = quantize(networks.mobile_block(), calibration=x)
    codes = model.encode(x[:2], "silent")
    got = run(model, program.compile(model, "additive2"), codes, dict.fromkeys(roles, CUDA))
    assert torch.equal(got.answer, model.integers(codes))


@pytest.mark.slow
def test_a_deployment_with_one_server_on_a_gpu_answers_exactly() -> None:
    x = torch.randn(8, 20, generator=torch.Generator().manual_seed(1))
    model = quantize(networks.mlp(), calibration=x)
    with pqi.local(model, device={"server_a": "cuda", "dealer": "cuda"}) as service:
        answer = service.predict(x.numpy(), on_saturation="silent")
    assert torch.equal(answer.integers, model.integers(model.encode(x, "silent")))
