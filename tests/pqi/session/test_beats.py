"""Signs of life while work goes on, said by another thread on the worker's channel."""

from __future__ import annotations

import threading
from typing import Any, cast

import pytest

from pqi.net.channel import Channel
from pqi.net.errors import ConnectionLost
from pqi.session.beats import Beats

LONG = 30.0


class Line:
    """A channel that notes what is said on it, and from which thread; ``lost``: nobody hears."""

    def __init__(self, lost: bool = False) -> None:
        self.lost, self.said = lost, list[tuple[str, str]]()
        self.heard = threading.Event()

    def send_control(self, message: dict[str, Any], timeout: float, during: str) -> None:
        self.said.append((message["step"], threading.current_thread().name))
        self.heard.set()
        if self.lost:
            raise ConnectionLost("client", during)

    def beats(self, abandon: Any = lambda: None) -> Beats:
        return Beats(cast(Channel, self), 0.01, 1.0, abandon)


def test_long_work_is_done_here_while_another_thread_says_at_what_step_it_is() -> None:
    line = Line()
    beats = line.beats()

    def work() -> str:
        assert line.heard.wait(LONG)
        return threading.current_thread().name

    assert beats.during(lambda: "layer 3", work) == threading.current_thread().name
    beats.close()
    assert {step for step, _ in line.said} == {"layer 3"}
    assert {thread for _, thread in line.said} == {"beat"}


def test_between_two_works_nothing_is_said() -> None:
    line = Line()
    beats = line.beats()
    beats.during(lambda: "", lambda: line.heard.wait(LONG))
    said = len(line.said)
    assert not threading.Event().wait(0.05)
    assert len(line.said) == said
    beats.close()


def test_when_nobody_hears_any_more_the_work_is_abandoned_and_the_loss_is_what_is_told() -> None:
    line, abandoned = Line(lost=True), threading.Event()
    beats = line.beats(abandoned.set)

    def work() -> None:
        assert abandoned.wait(LONG)
        raise ValueError("the link was cut")  # what abandoning leads to

    with pytest.raises(ConnectionLost, match="client"):
        beats.during(lambda: "", work)
    beats.close()


def test_an_error_of_the_work_is_raised_as_it_is() -> None:
    beats = Line().beats()
    with pytest.raises(ValueError, match="own"):
        beats.during(lambda: "", lambda: int("own"))
    beats.close()
    beats.close()
