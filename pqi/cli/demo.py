"""``pqi demo``: the whole story on real digits, and whether it came true."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from pqi.cli import demo_keyed, demo_screen
from pqi.cli.demo_screen import ScreenTeller, tell_what_was_kept
from pqi.cli.options import DebugOption, JsonOption, Network, NetworkOption, ProtocolOption
from pqi.cli.screen import out, write_json
from protocols import KEYED

_TERMINATED = 143


def demo(
    protocol: ProtocolOption = "additive2",
    samples: Annotated[
        int | None, typer.Option(min=1, max=450, help="How many test samples to ask for.", show_default="all")
    ] = None,
    network: NetworkOption = Network.LAN,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep model, data, bundles and keys in a new folder.")
    ] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Train, quantize, start every role as a process of its own, ask privately, compare, say who learns what.

    The network is small, the data are real (scikit-learn's): handwritten digits, and for paillier, which computes
    linear maps, measurements of breast cancer. Exit status 0 means: every private answer equals the integer model's
    in every bit (under ckks: lies within its error bound, with the same decision), and every byte was declared
    beforehand.
    """
    about = "logistic regression on medical data" if protocol == "paillier" else "handwritten digits"
    how = f"{protocol}, one server, one key" if protocol in KEYED else f"{protocol}, planned for {network.value}"
    out().print(f"[title]pqi demo[/title]  private inference: {about} ({how})\n")
    with _ended_cleanly(), ScreenTeller() as teller:
        teller.stage("Load")
        from pqi.demo.story import Plan

        tell, show = _story(protocol)
        outcome = tell(Plan(protocol, network.value, samples, keep), teller)
    show(out(), outcome)
    write_json(json_file, outcome.to_json())
    if keep is not None:
        tell_what_was_kept(out(), keep, protocol)
    if not outcome.held:
        raise typer.Exit(1)


def _story(protocol: str) -> tuple[Callable[..., Any], Callable[..., None]]:
    """Who tells the story of a protocol, and who shows what came of it."""
    if protocol in KEYED:
        from pqi.demo import keyed_story

        return keyed_story.tell, demo_keyed.show
    from pqi.demo import story

    return story.tell, demo_screen.show


@contextmanager
def _ended_cleanly() -> Iterator[None]:
    """Ctrl-C and SIGTERM unwind the story, once: impatience cannot keep processes from being ended and keys removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    both = (signal.SIGINT, signal.SIGTERM)

    def leave(number: int, _frame: FrameType | None) -> None:
        for each in both:
            signal.signal(each, signal.SIG_IGN)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(_TERMINATED)

    before = {number: signal.signal(number, leave) for number in both}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
