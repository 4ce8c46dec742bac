"""In which order a program runs: whatever is ready runs, and what talks at the same time talks in one exchange.

Instructions whose inputs are there start at once. Those that wait for the other party wait together: their messages
travel as one, and each goes on with its part of the answer. So two branches that need three exchanges each need three,
not six. The order follows from the public program alone and is the same at both parties; a step must therefore yield
as many rounds at each party as its cost declares exchanges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush

from torch import Tensor

from pqi.program.instructions import INPUT, Instruction
from protocols.api import Step
from protocols.errors import Misuse, PeerMisbehaved
from protocols.rounds import Message, PartyId, Received, Round, Steps

_NAMED = 3  # labels that a joined label spells out

Start = Callable[[Instruction, list[Tensor]], Steps[Tensor]]


def exchanges(instructions: Sequence[Instruction], count: Callable[[Step], int]) -> tuple[tuple[str, ...], ...]:
    """Who talks in each exchange of a run: names in the program's order. ``count``: exchanges of a step alone."""
    done, talks = {INPUT: 0}, list[list[str]]()
    for i in instructions:
        start = max(done[x] for x in i.inputs)
        done[i.name] = start + (count(i.action) if isinstance(i.action, Step) else 0)
        talks += [[] for _ in range(done[i.name] - len(talks))]
        for at in range(start, done[i.name]):
            talks[at].append(i.name)
    return tuple(map(tuple, talks))


class Schedule:
    """The order in which a program's instructions can run: who needs whom. Public; made once, used for every batch."""

    def __init__(self, instructions: Sequence[Instruction], output: str) -> None:
        self._code, self._output = tuple(instructions), output
        self._readers: dict[str, list[int]] = {}
        for at, code in enumerate(self._code):
            for x in dict.fromkeys(code.inputs):
                self._readers.setdefault(x, []).append(at)

    def run(self, given: Tensor, start: Start, on_step: Callable[[str], None] | None = None) -> Steps[Tensor]:
        """The value of the output. ``start`` begins an instruction; ``on_step`` hears whose turn has just ended.

        A value is dropped as soon as its last reader has started.
        """
        turn = _Turn(self._code, self._readers, self._output, start, on_step)
        turn.settle(INPUT, given)
        try:
            while True:
                turn.start_ready()
                if not turn.waiting:
                    return turn.values[self._output]
                talking = sorted(turn.waiting)
                joined = join([turn.waiting[at][1] for at in talking])
                received = yield joined
                for at, answer in zip(talking, part(joined, received), strict=True):
                    turn.go_on(at, turn.waiting.pop(at)[0], answer)
        finally:
            for steps, _ in turn.waiting.values():
                steps.close()


class _Turn:
    """The state of one run: values so far, instructions that can start, and those that wait, by their position."""

    def __init__(
        self,
        code: Sequence[Instruction],
        readers: Mapping[str, list[int]],
        output: str,
        start: Start,
        on_step: Callable[[str], None] | None,
    ) -> None:
        self._code, self._readers, self._start, self._on_step = code, readers, start, on_step
        self._missing = [len(set(c.inputs)) for c in code]
        self._unread = {x: len(found) for x, found in readers.items()}
        self._unread[output] = self._unread.get(output, 0) + 1
        self._ready: list[int] = []
        self.values: dict[str, Tensor] = {}
        self.waiting: dict[int, tuple[Steps[Tensor], Round]] = {}

    def settle(self, name: str, value: Tensor) -> None:
        """A value is there: whoever needed nothing else can start."""
        if self._unread.get(name):
            self.values[name] = value
        for at in self._readers.get(name, ()):
            self._missing[at] -= 1
            if not self._missing[at]:
                heappush(self._ready, at)

    def start_ready(self) -> None:
        """Start what can start, in the program's order, until everything waits or is done."""
        while self._ready:
            at = heappop(self._ready)
            code = self._code[at]
            inputs = [self.values[x] for x in code.inputs]
            for x in set(code.inputs):
                self._unread[x] -= 1
                if not self._unread[x]:
                    del self.values[x]
            self.go_on(at, self._start(code, inputs), None)

    def go_on(self, at: int, steps: Steps[Tensor], answer: Received | None) -> None:
        """One turn of an instruction: to its next round, or to its end."""
        name = self._code[at].name
        try:
            self.waiting[at] = steps, steps.send(answer)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            self.settle(name, end.value)
        if self._on_step is not None:
            self._on_step(name)


def join(rounds: Sequence[Round]) -> Round:
    """Several rounds as one: to each party the messages one after the other, in the order given."""
    if len(rounds) == 1:
        return rounds[0]
    parties = sorted({p for r in rounds for p in (*r.send, *r.expect)})
    send: dict[PartyId, Message] = {
        p: b"".join(r.send[p] for r in rounds if p in r.send) for p in parties if any(p in r.send for r in rounds)
    }
    expect = tuple(p for p in parties if any(p in r.expect for r in rounds))
    labels = [r.label for r in rounds]
    more = f" and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
    return Round(send, expect, " + ".join(labels[:_NAMED]) + more, parts=tuple(rounds))


def part(joined: Round, received: Received) -> list[dict[PartyId, Message]]:
    """What each of the joined rounds waited for. Raises ``PeerMisbehaved`` if a message is not as long as awaited."""
    if not joined.parts:
        return [dict(received)]
    out: list[dict[PartyId, Message]] = [{} for _ in joined.parts]
    for p in joined.expect:
        at, message = 0, received[p]
        for answer, r in zip(out, joined.parts, strict=True):
            if p in r.expect:
                size = r.awaited(p)
                if size is None:
                    raise Misuse(f"step {r.label!r} does not say how many bytes it awaits from {p}: give Round.sizes")
                answer[p] = message[at : at + size]
                at += size
        if at != len(message):
            raise PeerMisbehaved(f"{p} sent {len(message)} bytes in step {joined.label!r}, which takes {at}")
    return out
