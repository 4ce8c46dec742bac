from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocols import native, planes
from protocols.planes import Builder

NUMBERS = st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=80)


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def form(request: pytest.FixtureRequest) -> Iterator[None]:
    with native.switched_off() if request.param == "torch" else nullcontext():
        yield


def bit(plane: torch.Tensor, i: int) -> int:
    return int(plane[i // 8]) >> (i % 8) & 1


def test_the_compiled_kernels_are_there_in_the_tests_that_compare_them(request: pytest.FixtureRequest) -> None:
    switched_on = request.node.callspec.params["form"] == "compiled"
    assert (native.bits() is not None) == switched_on


@pytest.mark.parametrize("word", [torch.int16, torch.int32])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 4095, 4096, 4097, 9000])
def test_planes_hold_the_bits_asked_for_and_give_them_back(word: torch.dtype, count: int) -> None:
    x = (torch.arange(count) * 2654435761 % (1 << 31)).to(word)
    made = planes.extract(x, 3, 9)
    assert made.shape == (9, planes.width(count))
    assert all(bit(made[j], i) == int(x[i]) >> (3 + j) & 1 for i in range(0, count, 101) for j in range(9))
    back = planes.insert(made, 3, torch.zeros(count, dtype=word))
    assert torch.equal(back, x & (((1 << 9) - 1) << 3))


@given(left=NUMBERS, bits=st.integers(1, 32))
def test_the_planes_of_a_sum_wrap_as_the_ring_does(left: list[int], bits: int) -> None:
    x = torch.tensor(left, dtype=torch.int32)
    y = torch.flip(x, [0]) * 3
    made = planes.extract_sum(x, y, bits)
    for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)):
        assert sum(bit(made[j], i) << j for j in range(bits)) == (a + b) % (1 << bits)


def test_bits_beyond_the_last_value_are_zero() -> None:
    made = planes.extract(torch.full((11,), -1, dtype=torch.int32), 0, 2)
    assert made[:, 1].tolist() == [7, 7]


@given(st.integers(1, 5), st.integers(0, 20))
def test_rows_are_levelled_to_whole_bytes_and_back(n: int, count: int) -> None:
    x = torch.arange(n * count, dtype=torch.int32).reshape(n, count)
    line = planes.level(x)
    assert line.shape == (n * 8 * planes.width(count),)
    assert torch.equal(planes.rows(line, n, count), x)


@given(a=st.lists(st.integers(0, 255), min_size=3, max_size=3), b=st.lists(st.integers(0, 255), min_size=3, max_size=3))
def test_an_adder_of_planes_adds(a: list[int], b: list[int]) -> None:
    x, y = (planes.extract(torch.tensor(v, dtype=torch.int32), 0, 8) for v in (a, b))
    builder = Builder()
    program = builder.finish(
        builder.add([builder.load(0, i) for i in range(8)], [builder.load(1, i) for i in range(8)])
    )
    total = planes.insert(program.run(x, y), 0, torch.zeros(3, dtype=torch.int32))
    assert total.tolist() == [(p + q) % 256 for p, q in zip(a, b, strict=True)]


@pytest.mark.parametrize("bits", [0, 1, 3, 6])
def test_a_selection_reads_the_entry_at_its_index(bits: int) -> None:
    entries = 1 << bits
    index = torch.arange(300, dtype=torch.int32) % entries
    truth = [(7 * j + 3) % 5 % 2 for j in range(entries)]
    builder = Builder()
    table = [builder.load(1, j) for j in range(entries)]
    program = builder.finish([builder.select(table, [builder.load(0, i) for i in range(bits)])])
    held = torch.stack([torch.full((planes.width(300),), 255 * t, dtype=torch.uint8) for t in truth])
    where = planes.extract(index, 0, bits) if bits else torch.zeros((1, planes.width(300)), dtype=torch.uint8)
    read = program.run(where, held)[0]
    assert [bit(read, i) for i in range(300)] == [truth[j] for j in index.tolist()]


@given(st.data())
def test_a_program_of_any_gates_computes_what_its_gates_say(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([1, 63, 64, 511, 512, 513, 1100]))
    given_planes = (
        torch.arange(4 * width, dtype=torch.int64).mul(40503).remainder(256).to(torch.uint8).reshape(4, width)
    )
    builder = Builder()
    nodes: list[int | None] = [builder.load(0, i) for i in range(4)] + [builder.ones(), None]
    values = [*given_planes, torch.full((width,), 255, dtype=torch.uint8), torch.zeros(width, dtype=torch.uint8)]
    for _ in range(data.draw(st.integers(1, 40))):
        a, b, c = (data.draw(st.integers(0, len(nodes) - 1)) for _ in range(3))
        gate = data.draw(st.sampled_from(["xor", "and", "fma"]))
        if gate == "xor":
            nodes.append(builder.xor(nodes[a], nodes[b]))
            values.append(values[a] ^ values[b])
        elif gate == "and":
            nodes.append(builder.land(nodes[a], nodes[b]))
            values.append(values[a] & values[b])
        else:
            nodes.append(builder.fma(nodes[c], nodes[a], nodes[b]))
            values.append(values[c] ^ (values[a] & values[b]))
    wanted = data.draw(st.lists(st.integers(0, len(nodes) - 1), min_size=1, max_size=6))
    got = builder.finish([nodes[i] for i in wanted]).run(given_planes)
    assert torch.equal(got, torch.stack([values[i] for i in wanted]))


def test_what_no_output_needs_is_not_computed() -> None:
    builder = Builder()
    a, b = builder.load(0, 0), builder.load(0, 1)
    builder.land(a, b)
    assert len(builder.finish([a]).code) == 2
