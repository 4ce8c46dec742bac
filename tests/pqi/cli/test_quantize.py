from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim, export

import pqi as package
from tests.pqi.cli.clikit import pqi
from tests.pqi.cli.conftest import samples, small_net


def exported(path: Path, batch: int | None = None) -> Path:
    shapes = ({0: Dim("batch")},) if batch is None else None
    torch.export.save(export(small_net(), (torch.from_numpy(samples(batch or 2)),), dynamic_shapes=shapes), path)
    return path


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's module in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user_networks.py").write_text(
        "from tests.pqi.cli.conftest import small_net\n"
        "import torch\n"
        "as_it_is = small_net()\n"
        "def smooth(): return torch.nn.Sequential(small_net(), torch.nn.GELU(), torch.nn.Linear(5, 2))\n"
        "def number(): return 7\n"
        "text = 'hello'\n"
        "def broken(): raise RuntimeError('no weights here')\n"
    )
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    return tmp_path


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_an_exported_program_becomes_the_same_model_as_its_module(
    tmp_path: Path, calibration: Path, batch: int | None
) -> None:
    net, output = exported(tmp_path / "net.pt2", batch), tmp_path / "made.pqi"
    result = pqi("quantize", net, "--calibration", calibration, "-o", output, "--json", tmp_path / "q.json")
    assert result.exit_code == 0, result.output
    x, model = samples(50, 7), package.quantize(small_net(), samples(200))
    assert np.array_equal(package.load(output).predict(x, "silent"), model.predict(x, "silent"))
    facts = json.loads((tmp_path / "q.json").read_text())
    assert facts["report"]["layers"] and facts["bytes"] == output.stat().st_size
    with torch.no_grad():
        right = (small_net()(torch.from_numpy(samples(200))).argmax(1).numpy() == np.arange(200) % 5).mean()
    assert facts["float_accuracy"] == right
    assert facts["integer_accuracy"] == (model.predict(samples(200)).argmax(1) == np.arange(200) % 5).mean()


@pytest.mark.parametrize("spec", ["user_networks:small_net", "user_networks:as_it_is"])
def test_a_function_or_a_module_of_the_working_directory_is_found(
    factories: Path, calibration: Path, spec: str
) -> None:
    result = pqi("quantize", spec, "--calibration", calibration, "-o", "out.pqi", "--rings", "calibrated")
    assert result.exit_code == 0, result.output
    assert package.load(factories / "out.pqi").policy == "calibrated"
    assert "float accuracy" in result.stdout and "integer accuracy" in result.stdout


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("user_networks:smooth", "aten.gelu"),
        ("user_networks:number", "returned a int"),
        ("user_networks:text", "is a str"),
        ("user_networks:missing", "has no 'missing'"),
        ("user_networks:broken", "unexpected RuntimeError: no weights here"),
        ("no_such_module:net", "there is no module 'no_such_module'"),
        ("needs_more:net", "imports 'surely_not_installed'"),
        ("just_a_word", "neither of the two forms"),
        ("absent.pt2", "there is no such file"),
    ],
)
def test_a_network_that_cannot_be_had_is_an_error_that_says_why(
    factories: Path, calibration: Path, spec: str, message: str
) -> None:
    result = pqi("quantize", spec, "--calibration", calibration, "-o", "out.pqi")
    assert result.exit_code == 1
    assert message in result.stderr and "Traceback" not in result.output
    assert not (factories / "out.pqi").exists()


def test_a_file_that_is_no_exported_program_is_refused(tmp_path: Path, calibration: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04 nothing of the kind")
    result = pqi("quantize", tmp_path / "net.pt2", "--calibration", calibration, "-o", tmp_path / "o.pqi")
    assert result.exit_code == 1
    assert "not an exported program" in result.stderr


def test_calibration_data_are_never_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.array([{"a": 1}], dtype=object))
    result = pqi("quantize", exported(tmp_path / "n.pt2"), "--calibration", tmp_path / "c.npz", "-o", tmp_path / "o")
    assert result.exit_code == 1
    assert "never loaded" in result.stderr


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros(3), "b": np.zeros(3)}, "one must be named x"),
        ({"x": samples(10), "y": np.zeros(9, dtype=np.int64)}, "y has shape (9,)"),
        ({"x": samples(10), "y": np.zeros(10)}, "dtype float64"),
        ({"x": np.zeros((10, 1, 4, 4), np.float32)}, "constant"),
    ],
)
def test_calibration_data_that_cannot_serve_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    result = pqi("quantize", exported(tmp_path / "n.pt2"), "--calibration", tmp_path / "c.npz", "-o", tmp_path / "o")
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("damage", ["truncated", "foreign", "absent"])
def test_a_damaged_file_of_arrays_is_refused_by_name(tmp_path: Path, calibration: Path, damage: str) -> None:
    path = tmp_path / "damaged.npz"
    if damage == "truncated":
        path.write_bytes(calibration.read_bytes()[:500])
    elif damage == "foreign":
        path = exported(tmp_path / "other.pt2")
    result = pqi("quantize", exported(tmp_path / "n.pt2"), "--calibration", path, "-o", tmp_path / "o")
    assert result.exit_code == 1
    assert path.name in result.stderr and "Traceback" not in result.output


def test_few_calibration_samples_are_a_warning_not_an_error(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", samples(4))
    result = pqi("quantize", exported(tmp_path / "n.pt2"), "--calibration", tmp_path / "c.npz", "-o", tmp_path / "o")
    assert result.exit_code == 0
    assert "warning: only 4 calibration samples" in result.stderr


def run(tmp_path: Path, calibration: Path, *options: object) -> package.IntegerModel:
    output = tmp_path / "made.pqi"
    result = pqi("quantize", exported(tmp_path / "net.pt2"), "--calibration", calibration, "-o", output, *options)
    assert result.exit_code == 0, result.output
    return package.load(output)


def test_every_choice_of_the_library_can_be_made_on_the_command_line(tmp_path: Path, calibration: Path) -> None:
    options = (
        *("--weights", "affine", "--weight-bits", 4, "--activations", "codebook", "--activation-bits", 3),
        *("--observer", "mse", "--ends", "eight_bits", "--equalize", "--bias-correction", "--learned-rounding"),
        *("--index-bits", 9, "--rings", "calibrated", "--layer", "0:weight_bits=5", "--layer", "0:per_channel=false"),
    )
    wanted = package.quantize(
        small_net(),
        samples(200),
        4,
        3,
        weights="affine",
        activations="codebook",
        observer="mse",
        ends="eight_bits",
        equalize=True,
        bias_correction=True,
        learned_rounding=True,
        index_bits=9,
        rings="calibrated",
        layers={"0": {"weight_bits": 5, "per_channel": False}},
    )
    made = run(tmp_path, calibration, *options)
    assert np.array_equal(made.predict(samples(50, 7), "silent"), wanted.predict(samples(50, 7), "silent"))
    assert made.accumulators == wanted.accumulators


def test_answers_can_be_hardened_on_the_command_line(tmp_path: Path, calibration: Path) -> None:
    made = run(tmp_path, calibration, "--answers", "label")
    wanted = package.quantize(small_net(), samples(200), answers="label").predict(samples(50, 7), "silent")
    assert np.array_equal(made.predict(samples(50, 7), "silent"), wanted)
    assert np.array_equal(np.unique(wanted), [0.0, 1.0])
    result = pqi("quantize", "x:y", "--calibration", calibration, "-o", tmp_path / "m.pqi", "--answers", "best")
    assert result.exit_code == 1
    assert "choose from scores, label, top, ranked, rounded" in result.stderr


def test_noise_is_told_wherever_the_model_is(tmp_path: Path, calibration: Path) -> None:
    output, file = tmp_path / "made.pqi", tmp_path / "q.json"
    options = ("--answers", "noisy:20", "--json", file)
    result = pqi("quantize", exported(tmp_path / "net.pt2"), "--calibration", calibration, "-o", output, *options)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "private answers have noise, at most 180 on every integer" in text and "without the noise" in text
    assert json.loads(file.read_text())["report"]["noise"] == 180
    assert "noise up to 180" in repr(package.load(output))
    plain = package.quantize(small_net(), samples(200)).report()
    assert plain.noise == 0 and "noise" not in str(plain.__rich__().caption)


def test_the_hundredth_percentile_is_the_largest_value_seen(tmp_path: Path, calibration: Path) -> None:
    by_percentile = run(tmp_path, calibration, "--percentile", 100)
    by_ends = run(tmp_path, calibration, "--observer", "minmax")
    x = samples(50, 7)
    assert np.abs(by_percentile.predict(x, "silent") - by_ends.predict(x, "silent")).max() < 0.05


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("conv1", "NAME:FIELD=VALUE is needed, such as conv1:weight_bits=8"),
        ("conv1:weight_bits", "NAME:FIELD=VALUE is needed"),
        (":weight_bits=8", "NAME:FIELD=VALUE is needed"),
        ("0:weight_bits=", "NAME:FIELD=VALUE is needed"),
        ("0:bits=8", "there is no field 'bits'; choose from weight_bits, weights"),
        ("0:weight_bits=8.5", "weight_bits must be a whole number"),
        ("0:percentile=most", "percentile must be a number"),
        ("0:per_channel=perhaps", "per_channel must be true or false"),
        ("0:weights=octal", "weights is 'octal': it must be one of"),
        ("0:weight_bits=40", "layer '0': weight_bits is 40"),
        ("0:activation_bits=4", "layer '0' reads only weights"),
        ("nowhere:weight_bits=4", "layers names ['nowhere'], which the network does not have. It has ['0', '1'"),
    ],
)
def test_a_layer_s_setting_that_cannot_be_is_refused_with_what_can(
    tmp_path: Path, calibration: Path, setting: str, message: str
) -> None:
    net, output = exported(tmp_path / "net.pt2"), tmp_path / "o.pqi"
    result = pqi("quantize", net, "--calibration", calibration, "-o", output, "--layer", setting)
    assert result.exit_code == 1 and not output.exists()
    assert message in " ".join(result.stderr.split())


def test_a_field_given_twice_for_one_layer_is_refused(tmp_path: Path, calibration: Path) -> None:
    twice = ("--layer", "0:weight_bits=5", "--layer", "0:weight_bits=6")
    result = pqi("quantize", exported(tmp_path / "n.pt2"), "--calibration", calibration, "-o", tmp_path / "o", *twice)
    assert result.exit_code == 1 and "weight_bits of '0' is given twice" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--weights", "ternary", "--weight-bits", 4), "leave weight_bits out"),
        (("--weights", "power_of_two"), "weight_bits is 8: it must be an integer from 2 to 4"),
        (("--index-bits", 9), "rings='calibrated'"),
        (("--index-bits", 6, "--rings", "calibrated"), "index_bits is 6: it must be an integer from 7 to 16"),
    ],
)
def test_options_that_contradict_each_other_are_refused_with_the_reason(
    tmp_path: Path, calibration: Path, options: tuple[object, ...], message: str
) -> None:
    result = pqi("quantize", exported(tmp_path / "n.pt2"), "--calibration", calibration, "-o", tmp_path / "o", *options)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
