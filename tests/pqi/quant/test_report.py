from __future__ import annotations

import builtins
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from pqi.graph.report import Report
from pqi.quant.calibrate import calibrate
from pqi.quant.compare import compare
from pqi.quant.comparison import Comparison
from pqi.quant.finish import finish
from pqi.quant.html import MOST, page, write_html
from pqi.quant.lower import lower
from pqi.quant.pictures import PicturesMissing, histograms, overview, short
from pqi.quant.scheme import Recipe, Scheme
from tests import networks
from tests.pqi.cli.clikit import pqi

HOSTILE = "<script>alert('x')</script> & $\\frac{ \x00\x1b]0;\u202e\ud800 \u5c42 %s {0} " + "a" * 200
VOID = {"meta", "br", "img", "hr", "input", "link"}


class Page(HTMLParser):
    """Refuses tags that do not nest; keeps what the page says, shows and refers to."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def made() -> tuple[Comparison, Report]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 1, 12, 12, generator=generator)
    layers = {"relu": {"percentile": 80.0}, "relu#2": {"activation_bits": 1}}
    calibration = calibrate(networks.small_cnn(), x)
    lowered = lower(calibration, Recipe(Scheme(weight_bits=4), layers))
    model = finish(lowered, calibration, rings="calibrated", margin_bits=0)
    return compare(calibration, lowered, model, 2 * x, np.arange(120) % 10), model.report()


@pytest.fixture(scope="module")
def text(made: tuple[Comparison, Report]) -> str:
    return page(*made, "a network")


def svgs(text: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)


def renamed(comparison: Comparison, name: str) -> Comparison:
    """The comparison with another name for its second layer."""
    old = comparison.layers[1].name
    layers = [replace(each, name=name if each.name == old else each.name, source=name) for each in comparison.layers]
    return replace(comparison, layers=tuple(layers))


def test_the_page_is_well_formed_and_so_is_every_picture(made: tuple[Comparison, Report], text: str) -> None:
    parsed = Page(text)
    shown = [each for each in made[0].layers if each.codes or each.weights]
    pictures = svgs(text)
    assert len(pictures) == 1 + len(shown) == parsed.tags.count("svg")
    for picture in pictures:
        root = ElementTree.fromstring(picture)  # noqa: S314 (our own)
        assert root.tag.endswith("svg") and len(list(root.iter())) > 20
    assert len(parsed.ids) == len(set(parsed.ids)), "one id twice: a picture would borrow another's shapes"


def test_the_page_loads_nothing_and_runs_nothing(text: str) -> None:
    parsed = Page(text)
    assert not {"script", "link", "iframe", "img", "object", "embed", "image"} & set(parsed.tags)
    for tag, name, value in parsed.attributes:
        if name.startswith("xmlns"):
            continue
        assert not name.startswith("on"), f"{tag} {name}"
        assert "//" not in value and "javascript" not in value, f"{tag} {name}={value}"
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#") and value[1:] in parsed.ids
    assert "@import" not in text and not re.search(r"url\((?!#)", text)
    assert "default-src 'none'" in text


def test_the_page_tells_the_facts_in_words(made: tuple[Comparison, Report], text: str) -> None:
    comparison, report = made
    words = " ".join(Page(text).words)
    assert "Quantization of a network" in words
    assert "inputs compared 120" in re.sub(r"\s+", " ", words)
    found = comparison.accuracies
    assert found is not None and f"integer {found.integer:.2%}" in words
    assert comparison.first_diverging == "relu"
    price = report.prices["additive2"]
    assert f"{price.exchanges} exchanges" in words and f"{price.dealt_bytes:,} B dealt" in words
    for sentence in comparison.advice():
        assert sentence in words
    for each in comparison.layers:
        assert each.name in words
    assert "layer 'relu' saturates" in words and "{'relu': {'percentile': 100.0}}" in words


def test_a_page_without_prices_or_labels_or_trouble_says_less() -> None:
    x = torch.randn(120, 20, generator=torch.Generator().manual_seed(0))
    calibration = calibrate(networks.mlp(), x)
    lowered = lower(calibration, Recipe(Scheme()))
    words = " ".join(Page(page(compare(calibration, lowered, finish(lowered, calibration), x))).words)
    assert "Nothing stands out" in words and "proven: no input can wrap" in words
    assert "price" not in words.lower().replace("is the price of", "")
    assert "same top class as float" in words


def test_a_hostile_name_is_text_and_nothing_else(made: tuple[Comparison, Report], tmp_path: Path) -> None:
    comparison = renamed(made[0], HOSTILE)
    write_html(tmp_path / "report.html", comparison, made[1], HOSTILE)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = Page(text)
    assert "script" not in parsed.tags
    assert "alert('x')" in "".join(parsed.words)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", text)
    for picture in svgs(text):
        ElementTree.fromstring(picture)  # noqa: S314 (our own)


def test_labels_in_pictures_are_short_and_plain() -> None:
    assert short("layer1.0.conv1") == "layer1.0.conv1"
    assert short("\u5c42\x00\n.relu") == "???.relu"
    assert short("a" * 50 + "end", 10) == "...aaaaend" and len(short("b" * 99)) == 34


def test_the_same_comparison_gives_the_same_page(made: tuple[Comparison, Report], text: str) -> None:
    assert page(*made, "a network") == text


def test_only_the_worst_sixty_layers_of_a_large_network_get_histograms(
    made: tuple[Comparison, Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def note(layer: Any) -> str:
        drawn.append(layer.name)
        return "<svg></svg>"

    monkeypatch.setattr("pqi.quant.html.histograms", note)
    monkeypatch.setattr("pqi.quant.html.overview", lambda comparison: "")
    one = made[0].layers[0]
    many = tuple(replace(one, name=f"layer {i}", inputs=(), integer_db=float(i % 97)) for i in range(300))
    words = " ".join(Page(page(replace(made[0], layers=many))).words)
    assert f"The {MOST} worst of 300 layers" in words
    assert len(drawn) == MOST and "layer 0" in drawn and "layer 96" not in drawn
    assert drawn == sorted(drawn, key=lambda name: int(name.split()[1]))


def test_a_layer_without_codes_or_weights_has_no_histogram(made: tuple[Comparison, Report]) -> None:
    plain = next(each for each in made[0].layers if each.op == "reshape")
    assert histograms(plain) == ""


def test_ratios_that_are_infinite_or_missing_can_be_drawn(made: tuple[Comparison, Report]) -> None:
    layers = tuple(
        replace(each, integer_db=None if i % 2 else float("inf"), fake_db=None, rings_db=-200.0)
        for i, each in enumerate(made[0].layers)
    )
    ElementTree.fromstring(overview(replace(made[0], layers=layers)))  # noqa: S314 (our own)
    Page(page(replace(made[0], layers=layers)))


def hide_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it had never been installed."""
    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)


def test_without_matplotlib_the_error_says_what_to_install(
    made: tuple[Comparison, Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_matplotlib(monkeypatch)
    with pytest.raises(PicturesMissing, match=r"pip install 'private-quantized-inference\[pictures\]'"):
        write_html(tmp_path / "report.html", made[0])
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_nothing_behind(made: tuple[Comparison, Report], tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(OSError):
        write_html(tmp_path / "report.html", made[0])
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a user's network and typical inputs, and nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "reported_network", raising=False)
    (tmp_path / "reported_network.py").write_text("from tests.networks import mlp\n")
    x = np.random.default_rng(0).normal(size=(150, 20)).astype(np.float32)
    np.savez(tmp_path / "typical.npz", x=x, y=np.arange(150) % 5)
    return tmp_path


def quantized(*more: object) -> Any:
    return pqi("quantize", "reported_network:mlp", "--calibration", "typical.npz", "-o", "m.pqi", *more)


def test_the_command_writes_the_report_beside_the_model(user: Path) -> None:
    result = quantized("--report", "out.html", "--json", "q.json", "--layer", "1:activation_bits=1")
    assert result.exit_code == 0, result.output
    assert "Wrote out.html: 1 is the first layer to diverge." in result.stdout
    words = " ".join(Page((user / "out.html").read_text(encoding="utf-8")).words)
    assert "reported_network:mlp" in words and "accuracy" in words and "price under additive2" in words
    facts = json.loads((user / "q.json").read_text())
    assert facts["comparison"]["first_diverging"] == "1"
    assert facts["comparison"]["accuracies"]["integer"] == facts["integer_accuracy"]
    assert facts["comparison"]["accuracies"]["floating"] == facts["float_accuracy"]


def test_without_the_option_nothing_is_compared(user: Path) -> None:
    assert quantized("--json", "q.json").exit_code == 0
    assert json.loads((user / "q.json").read_text())["comparison"] is None
    assert not list(user.glob("*.html"))


def test_a_folder_that_does_not_exist_is_refused_before_the_work(user: Path) -> None:
    result = quantized("--report", "nowhere/out.html")
    assert result.exit_code == 2
    assert "there is no folder" in " ".join(result.stderr.split()) and not (user / "m.pqi").exists()


def test_without_matplotlib_the_command_says_what_to_install_before_the_work(
    user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_matplotlib(monkeypatch)
    result = quantized("--report", "out.html")
    assert result.exit_code == 2
    assert "private-quantized-inference[pictures]" in "".join(result.stderr.split()).replace("│", "")
    assert not (user / "m.pqi").exists()
