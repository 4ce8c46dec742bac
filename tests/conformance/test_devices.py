"""Every primitive on a second device (see ``elsewhere``): the same integers, and the same bytes on the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import protocols
from protocols import aes, api, devices, prg, ring
from protocols.additive2 import clamp
from protocols.errors import BadParameters, PeerMisbehaved
from protocols.rounds import PartyId
from tests.conformance.battery import values
from tests.conformance.elsewhere import ELSEWHERE, Elsewhere, Far, Misplaced
from tests.conformance.trial import HERE, ROLES, STEPS, N, Trial, check_maps, check_step


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    """The other device; its streams are cryptography's, for tensor code takes a second for what takes it a moment."""
    monkeypatch.setattr(aes, "keystream", lambda key, at, size, to: devices.from_host(prg.keystream(key, at, size), to))
    with Elsewhere() as mode:
        yield mode


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("at", range(len(STEPS)), ids=[f"{type(s).__name__}-{r}" for s, r, *_ in STEPS])
def test_a_step_elsewhere_sends_the_same_bytes_and_gives_the_same_shares(elsewhere: Elsewhere, at: int, n: int) -> None:
    check_step(ELSEWHERE, at, n)
    assert elsewhere.operations > 0


@pytest.mark.parametrize("bits", [8, 15, 20, 32])
@pytest.mark.parametrize("visibility", api.VISIBILITIES)
def test_maps_elsewhere_send_the_same_bytes_and_give_the_same_shares(
    elsewhere: Elsewhere, visibility: str, bits: int
) -> None:
    check_maps(ELSEWHERE, visibility, bits)
    assert elsewhere.operations > 0


@pytest.mark.parametrize("works", [True, False])
def test_byte_products_elsewhere_equal_those_here(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    monkeypatch.setattr(ring, "_units_are_exact", lambda _: works)
    for rows, inner, columns in ((1, 1, 1), (16, 27, 49), (17, 8, 8), (24, 72, 5), (0, 3, 2)):
        w, x = (values(8, shape, 5).to(torch.int8) for shape in ((rows, inner), (inner, columns)))
        made = ring.byte_product(devices.place(w, ELSEWHERE), devices.place(x, ELSEWHERE))
        assert torch.equal(devices.place(made, HERE), w.to(torch.int32) @ x.to(torch.int32))


@pytest.mark.parametrize("bits", range(1, 33))
def test_packing_elsewhere_gives_the_bytes_of_packing_here(elsewhere: Elsewhere, bits: int) -> None:
    for shape in ((7,), (3, 8), (2, 13), (1, 9), (0, 4)):
        x = values(40, shape, bits)
        packed = ring.pack(x, bits)
        assert (ring.pack(devices.place(x, ELSEWHERE), bits) == packed).all()
        back = ring.unpack(packed, bits, shape[-1], ELSEWHERE)
        assert isinstance(back, Far)
        assert torch.equal(back.near, ring.unpack(packed, bits, shape[-1]))


def test_a_message_of_the_wrong_length_is_refused_on_every_device(elsewhere: Elsewhere) -> None:
    with pytest.raises(PeerMisbehaved, match="5 values of 9 bits take 6 bytes, but 7 came"):
        ring.unpack(bytes(7), 9, 5, ELSEWHERE)


def test_streams_made_elsewhere_are_those_made_here() -> None:
    key = prg.Key.fresh()
    with Elsewhere():
        made = devices.to_host(aes.keystream(key, (1 << 64) - 3, 999, ELSEWHERE))
        scattered = aes.blocks_at(key, devices.place(torch.tensor([[5, 1 << 40], [0, 77]]), ELSEWHERE))
    assert (made == prg.keystream(key, (1 << 64) - 3, 999)).all()
    assert isinstance(scattered, Far)
    assert bytes(scattered.near[0, 1].tolist()) == prg.keystream(key, 1 << 40, 16).tobytes()


Mistake = Callable[[Tensor], object]
MISTAKES: dict[str, Mistake] = {
    "two devices": lambda far: far + torch.zeros(3, dtype=torch.int32),
    "two devices, one value": lambda far: far + torch.tensor(1),
    "an index of the host's": lambda far: far[torch.tensor([0, 2])],
    "writing across": lambda far: far.copy_(torch.zeros(3, dtype=torch.int32)),
    "reading across": lambda far: torch.zeros(3, dtype=torch.int32).copy_(far),
    "moving away": lambda far: far.cpu(),
    "moving there": lambda far: torch.zeros(3).to(ELSEWHERE),
    "looking at a value": lambda far: bool(far[0]),
    "taking a number": lambda far: far[0].item(),
    "comparing on the host": lambda far: torch.equal(far, far),
    "a product of integers": lambda far: far.reshape(1, 3) @ far.reshape(3, 1),
    "as an array": lambda far: far.numpy(),
    "as a list": lambda far: far.tolist(),
    "its bytes": lambda far: memoryview(far),  # type: ignore[arg-type]
    "four rows for the units": lambda far: torch._int_mm(far.new_zeros((4, 8)), far.new_zeros((8, 8))),
    "nine columns for the units": lambda far: torch._int_mm(far.new_zeros((32, 8)), far.new_zeros((8, 9))),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_the_other_device_catches_every_kind_of_mistake(elsewhere: Elsewhere, mistake: Mistake) -> None:
    with pytest.raises((Misplaced, RuntimeError, TypeError)):
        mistake(devices.place(torch.zeros(3, dtype=torch.int32), ELSEWHERE))


def _left_here(raw: NDArray[np.uint8], _: torch.device) -> Tensor:
    return torch.from_numpy(raw)


@pytest.mark.parametrize(("module", "name", "wrong"), [(devices, "from_host", _left_here), (clamp, "bit_words", None)])
def test_a_tensor_on_the_wrong_device_does_not_get_through_a_step(
    elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, wrong: Mistake | None
) -> None:
    trial = Trial(api.Sign((N,), 21, 5), values(21, (2, N)), 21, {})
    trial.run(dict.fromkeys(ROLES, ELSEWHERE))
    right = getattr(module, name)
    monkeypatch.setattr(module, name, wrong or (lambda *args: devices.place(right(*args), HERE)))
    with pytest.raises(Misplaced, match="tensors of two devices"):
        trial.run(dict.fromkeys(ROLES, ELSEWHERE))


def test_clear_computes_on_the_processor_and_says_so() -> None:
    with pytest.raises(BadParameters, match=r"'clear' computes on the cpu only, not on fpga:0"):
        protocols.get("clear").party([], PartyId.P0, {}, ELSEWHERE)
