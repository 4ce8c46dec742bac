"""``pqi status``, and the options of serve and deal that it shows the effect of."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.pqi.cli.clikit import ended, pqi, start, wait_until
from tests.pqi.cli.test_deployment import _settled, cut


def test_servers_that_are_not_there_have_no_status(model_file: Path) -> None:
    result = pqi("status", "--config", cut(model_file) / "client" / "client.toml")
    assert result.exit_code == 1
    assert "server_a" in result.stderr and "Traceback" not in result.output


@pytest.mark.parametrize("option", [("--spill-mib", "-1"), ("--pool-mib", "0")])
def test_bounds_below_nothing_are_refused(model_file: Path, option: tuple[str, str]) -> None:
    result = pqi("serve", cut(model_file) / "server_b", *option)
    assert result.exit_code == 2
    assert option[0] in result.output


def test_a_dealer_of_no_workers_is_refused(model_file: Path) -> None:
    assert pqi("deal", cut(model_file) / "dealer", "--workers", 0).exit_code == 2


@pytest.mark.slow
def test_material_can_be_awaited_while_workers_deal_and_some_of_it_waits_on_disk(model_file: Path) -> None:
    bundles, folder = cut(model_file), model_file.parent
    more = {"server_b": ("--pool-mib", 1, "--spill-mib", 2), "server_a": (), "dealer": ("--workers", 2)}
    with ExitStack() as stack:
        for role, options in more.items():
            command, ready = "deal" if role == "dealer" else "serve", folder / f"{role}.json"
            process = start(command, bundles / role, "--json", ready, *options, folder=folder)
            stack.enter_context(ended(process))
            wait_until(partial(_settled, ready, process), f"{role} runs")
        config = bundles / "client" / "client.toml"
        result = pqi("status", "--config", config, "--items", 10**6, "--json", folder / "status.json")
    assert result.exit_code == 0, result.output
    state = json.loads((folder / "status.json").read_text())["servers"]["server_b"]
    assert state["level"] >= state["capacity"] - state["capacity"] // 8
    assert state["spilled"] > 0
    assert 0 < state["pool_bytes"] <= 1 << 20
    assert f"{state['level']} of {state['capacity']}, {state['spilled']} of them on disk" in result.stdout
