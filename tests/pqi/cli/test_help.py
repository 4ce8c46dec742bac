from __future__ import annotations

import subprocess
import sys

import pytest

import pqi as package
from tests.pqi.cli.clikit import COMMANDS, pqi


def test_the_help_names_every_command_and_ends_with_an_example() -> None:
    result = pqi("--help")
    assert result.exit_code == 0
    assert all(f" {command} " in result.stdout for command in COMMANDS)
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    assert lines[-2] == "pqi demo"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_ends_with_an_example_of_that_command(command: str) -> None:
    result = pqi(command, "--help")
    assert result.exit_code == 0
    _, _, ending = result.stdout.partition("Example")
    assert f"pqi {command}" in ending and "╭" not in ending


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_can_write_json_and_show_a_traceback(command: str) -> None:
    text = pqi(command, "--help").stdout
    assert "--json" in text and "--debug" in text


def test_there_are_no_other_commands() -> None:
    from pqi.cli.app import app

    names = [command.callback.__name__ for command in app.registered_commands if command.callback]
    assert [name.replace("_", "-") for name in names] == list(COMMANDS)


def test_without_a_command_the_help_is_shown_and_the_usage_is_wrong() -> None:
    result = pqi()
    assert result.exit_code == 2
    assert "Commands" in result.stdout + result.stderr


def test_the_version_is_the_package_s() -> None:
    result = pqi("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"pqi {package.__version__}")


def test_help_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\n"
        "from pqi.cli import main\n"
        "sys.argv = ['pqi', 'quantize', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    status = end.code\n"
        "sys.exit(status or int(bool({'torch', 'numpy'} & set(sys.modules))))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, timeout=60).returncode == 0
