"""``pqi demo``: the whole story on real digits, and whether it came true."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from pqi.cli.demo_screen import ScreenTeller, show, tell_what_was_kept
from pqi.cli.options import DebugOption, JsonOption, Network, NetworkOption, ProtocolOption
from pqi.cli.screen import out, write_json

_TERMINATED = 143


def demo(
    protocol: ProtocolOption = "additive2",
    samples: Annotated[
        int | None, typer.Option(min=1, max=450, help="How many test images to ask for.", show_default="all 450")
    ] = None,
    network: NetworkOption = Network.LAN,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep model, data, bundles and keys in a new folder.")
    ] = None,
    json_file: JsonOption = None,
    debug: DebugOption = False,
) -> None:
    """Train, quantize, start every role as a process of its own, ask privately, compare, say who learns what.

    The network is small, the digits are real (scikit-learn's). Exit status 0 means: every private answer equals the
    integer model's in every bit, and every byte was declared beforehand.
    """
    out().print(
        f"[title]pqi demo[/title]  private inference on handwritten digits ({protocol}, planned for {network.value})\n"
    )
    with _ended_cleanly(), ScreenTeller() as teller:
        teller.stage("Load")
        from pqi.demo.story import Plan, tell

        outcome = tell(Plan(protocol, network.value, samples, keep), teller)
    show(out(), outcome)
    write_json(json_file, outcome.to_json())
    if keep is not None:
        tell_what_was_kept(out(), keep)
    if not outcome.held:
        raise typer.Exit(1)


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
