from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from pqi.cli.guard import CliError, guarded
from pqi.cli.screen import duration, percent, size, write_json
from pqi.graph.errors import SaturationWarning
from tests.pqi.cli.clikit import pqi


def run(error: BaseException | None, *arguments: str) -> Result:
    """A command that raises the error, guarded as the real ones are."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @guarded
    def command(debug: bool = False) -> None:
        if error is not None:
            raise error

    return CliRunner().invoke(app, arguments)


def test_success_is_zero() -> None:
    assert run(None).exit_code == 0


def test_an_error_of_ours_is_one_message_and_one() -> None:
    result = run(CliError("the list [1, 2] [bold]is[/bold] wrong"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: the list [1, 2] [bold]is[/bold] wrong\n"


def test_an_error_of_the_system_names_the_file_and_the_reason() -> None:
    result = run(FileNotFoundError(2, "No such file or directory", "x.npy"))
    assert (result.exit_code, result.stderr) == (1, "error: x.npy: No such file or directory\n")


def test_an_unforeseen_error_is_told_without_a_traceback_and_with_the_way_to_one() -> None:
    result = run(ZeroDivisionError("by nought"))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: unexpected ZeroDivisionError: by nought\n")
    assert "--debug" in result.stderr and "Traceback" not in result.output


def test_debug_lets_the_error_through_with_its_traceback() -> None:
    result = run(ZeroDivisionError("by nought"), "--debug")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_an_interruption_is_130() -> None:
    result = run(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "Interrupted; nothing was left running.\n")


def test_wrong_usage_is_two() -> None:
    assert run(typer.BadParameter("no")).exit_code == 2
    assert run(None, "--unknown").exit_code == 2


def test_a_warning_is_one_line_on_the_error_stream() -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @guarded
    def command() -> None:
        warnings.warn("3 values were moved", SaturationWarning, stacklevel=1)

    result = CliRunner().invoke(app, [])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "warning: 3 values were moved\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["inspect"],
        ["inspect", "model.pqi", "--protocol", "magic"],
        ["inspect", "model.pqi", "--network", "pan"],
        ["inspect", "model.pqi", "--json", "no/such/folder/x.json"],
        ["demo", "--samples", "0"],
        ["demo", "--samples", "451"],
        ["quantize", "x.pt2", "--calibration", "x.npz", "-o", "x.pqi", "--weight-bits", "0"],
        ["predict", "--config", "client.toml"],
    ],
)
def test_wrong_usage_of_a_command_is_two_and_says_what_was_wrong(arguments: list[str]) -> None:
    result = pqi(*arguments)
    assert result.exit_code == 2
    assert "Usage: pqi" in result.stderr and "Traceback" not in result.output


def test_a_protocol_that_does_not_exist_is_answered_with_those_that_do() -> None:
    assert "additive2, clear" in pqi("inspect", "m.pqi", "--protocol", "magic").stderr


def test_a_share_under_one_never_shows_as_a_hundred_percent() -> None:
    assert percent(1.0, 3) == "100.000 %"
    assert percent(0.9999999, 3) == "99.999 %"
    assert percent(449 / 450, 3) == "99.778 %"


def test_figures_carry_units() -> None:
    assert [size(n) for n in (0, 999, 1000, 45_014_850)] == ["0 B", "999 B", "1.00 kB", "45.0 MB"]
    assert [duration(s) for s in (0.0000042, 0.0032, 0.0999, 0.99999, 1.239)] == [
        "4.20 us", "3.20 ms", "99.9 ms", "1.00 s", "1.24 s",
    ]  # fmt: skip


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
