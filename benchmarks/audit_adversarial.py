"""Adversarial examples on published networks: robust accuracy over epsilon, and where masked gradients fool PGD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import process_time

import data
import numpy as np
import torch
from numpy.typing import NDArray
from parts import Part
from torch import Tensor, nn

import pqi
from pqi.audit import attacks
from pqi.audit.attack import Budget
from pqi.audit.case import Case, Data
from pqi.audit.defences.precision import NAME, RandomPrecision, RandomPrecisionSubject, over_draws
from pqi.audit.defences.price import private
from pqi.audit.evasion import Evasion
from pqi.audit.statistics import bootstrap, paired_difference, share
from pqi.audit.subjects import FLOAT, INTEGERS, STRAIGHT_THROUGH, IntegerSubject, Subject
from pqi.graph.model import IntegerModel
from pqi.quant.scheme import Recipe, Scheme
from pqi.quant.train.loop import Schedule
from tests import networks

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PIXELS, BINARY = (1, 2, 4), (16, 64)  # strengths in 255ths
FIRST = 1000  # of the test images: the first 60 were looked at while settings were chosen
SEED = 0
GRADIENTS = ("fgsm", "pgd", "apgd-ce", "apgd-dlr")
WIDTHS = (4, 5, 6, 7)
INPUT = {"norm.requantize": {"activation_bits": 8}}  # the normalised image keeps eight bits at every width
NOTES = """\
The published CIFAR-10 ResNet-20 with its normalisation as its first layer, so that the client's input is the image of
8 bits and epsilon is in 255ths of a pixel; the published binarised MNIST network on raw pixels. Seed 0, test images
from number 1000 on; settings (strengths, steps, the two-bit network's training) were chosen on the first 60 images.
A/B: A bits for weights, B for activations. "2 bits": 8-bit weights and 2-bit activations after one epoch of
`pqi.finetune` on some training images. PGD: 20 steps of epsilon/4 from one random start, cross-entropy. APGD: 20
steps. Square: so many questions an image, asked of the integer engine itself. What was crafted straight through the
rounding is scored on the integers. Robust accuracy: right before and after, on the client's grid; 95 % intervals.
Random precision: one of 4/4 to 7/7 drawn for each question (8/8 needs 25-bit accumulators, where gradients are eight
times slower)."""


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    images: int = 50
    queries: int = 200
    steps: int = 20
    trained: int = 10000
    binary: int = 30
    labels: int = 12
    priced: int = 200


Flags = NDArray[np.bool_]


class Pixels(nn.Module):
    """A network of normalised images as one of pixels: (x - mean) / deviation per channel is its first layer.

    It pads behind the normalisation, as the network was trained: with zeros, which are the mean colour.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(3, eps=0.0, affine=False), net
        self.norm.running_mean = torch.tensor(MEAN)
        self.norm.running_var = torch.tensor(DEVIATION) ** 2

    def forward(self, x: Tensor) -> Tensor:
        """Logits for pixels from 0 to 1."""
        logits: Tensor = self.net(self.norm(x))
        return logits


class Images(nn.Module):
    """A network of rows as one of images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits for pixels (N, 1, 28, 28) from 0 to 255."""
        logits: Tensor = self.net(torch.flatten(x, 1))
        return logits


class Cifar:
    """ResNet-20 on pixels, quantized as wished, with the test images from FIRST on."""

    def __init__(self) -> None:
        folder = data.load()
        self.net = Pixels(networks.resnet20(folder.npz("cifar10_resnet/resnet20.npz"))).eval()
        self.train, self.labels = folder.cifar10("train_a")
        self.images, self.truth = folder.cifar10("test")

    @staticmethod
    def pixels(images: NDArray[np.uint8]) -> Tensor:
        """(N, 32, 32, 3) bytes as (N, 3, 32, 32) from 0 to 1."""
        return torch.from_numpy(images.astype(np.float32) / 255).permute(0, 3, 1, 2).contiguous()

    def test(self, n: int) -> Data:
        """n images."""
        rows = slice(FIRST, FIRST + n)
        x = self.images[rows].transpose(0, 3, 1, 2) / 255
        return Data(x, self.truth[rows].astype(np.int64))

    def quantized(self, weights: int, activations: int) -> IntegerModel:
        """After training."""
        calibration = self.pixels(self.train[:512])
        return pqi.quantize(self.net, calibration, weights, activations, input_range=(0, 1), layers=INPUT)

    def trained(self, activations: int, n: int) -> IntegerModel:
        """With few bits for activations, retrained on n images for one epoch."""
        truth = torch.from_numpy(self.labels[:n].astype(np.int64))
        recipe = Recipe(Scheme(8, activation_bits=activations), layers=INPUT)
        calibration, x = self.pixels(self.train[:512]), self.pixels(self.train[:n])
        schedule = Schedule(epochs=1, batch=50, seed=SEED)
        return pqi.finetune(self.net, calibration, x, truth, recipe, schedule, input_range=(0, 1)).model


class Runs:
    """Attacks made so far: rows for the table, flags for the claims."""

    def __init__(self, part: Part, size: Size) -> None:
        self.part, self.size = part, size
        self.flags: dict[tuple[str, str, str], Flags] = {}

    def attack(
        self,
        network: str,
        case: Case,
        name: str,
        made_on: Subject,
        scored: Sequence[tuple[str, Subject]],
        strengths: Sequence[int],
    ) -> list[Flags]:
        """One attack over the strengths, scored on every form given (as "network, form")."""
        settings = {} if name in ("fgsm", "square") else {"steps": self.size.steps}
        attack = attacks.get(name, strengths=[s / 255 for s in strengths], **settings)
        if not isinstance(attack, Evasion):
            raise SystemExit(f"{name} alters no inputs")
        began, budget = process_time(), Budget(samples=len(case.test), queries=self.size.queries, seed=SEED)
        found = attack.survivors(case, case.test, made_on, [form for _, form in scored], budget)
        seconds = process_time() - began
        for (on, _), right in zip(scored, found, strict=True):
            self.flags[f"{network}, {made_on.name}", name, on] = right
            left = "; ".join(f"{s}: {share(flags)}" for s, flags in zip(strengths, right[1:], strict=True))
            self.part.row(f"{network}, {made_on.name}", name, on, share(right[0]), left, f"{seconds:.0f}")
        return found

    def gradients(self, network: str, case: Case, form: str, strengths: Sequence[int]) -> None:
        """The four that follow gradients, on one form; the straight-through one's are scored on the integers too."""
        forms = (STRAIGHT_THROUGH, INTEGERS) if form == STRAIGHT_THROUGH else (form,)
        scored = [(f"{network}, {each}", case.subjects[each]) for each in forms]
        for name in GRADIENTS:
            self.attack(network, case, name, case.subjects[form], scored, strengths)

    def questions(self, network: str, case: Case, form: str, strengths: Sequence[int]) -> None:
        """Square; what was found by asking the straight-through form is scored on the integers too."""
        forms = (STRAIGHT_THROUGH, INTEGERS) if form == STRAIGHT_THROUGH else (form,)
        scored = [(f"{network}, {each}", case.subjects[each]) for each in forms]
        self.attack(network, case, "square", case.subjects[form], scored, strengths)

    def of(self, network: str, form: str, name: str, on: str = INTEGERS) -> Flags:
        """Flags (1 + strengths, n) of an attack crafted on one form and scored on another of the same network."""
        return self.flags[f"{network}, {form}", name, f"{network}, {on}"]


def part(small: bool) -> Part:
    """Every section in turn; each stands alone."""
    made = Part(
        "Adversarial examples",
        NOTES,
        ["crafted on", "attack", "scored on", "clean", "robust accuracy by epsilon (255ths)", "s"],
    )
    size = Size(6, 20, 3, 100, 4, 4, 20) if small else Size()
    for section in SECTIONS.values():
        section(made, size)
    return made


def eight_bits(part: Part, size: Size) -> None:
    """Float and 8/6: gradients are honest, and what fools one form fools the other."""
    cifar, runs = Cifar(), Runs(part, size)
    model, coarser = cifar.quantized(8, 6), cifar.quantized(8, 4)
    case = Case(cifar.net, model, cifar.test(size.images), name="ResNet-20")
    other = ("8/4, integers", IntegerSubject(coarser))
    runs.gradients("ResNet-20", case, FLOAT, PIXELS)
    runs.gradients("8/6", case, STRAIGHT_THROUGH, PIXELS)
    runs.questions("ResNet-20", case, FLOAT, PIXELS)
    for form in (STRAIGHT_THROUGH, INTEGERS):
        runs.questions("8/6", case, form, PIXELS)
    across = [("8/6, integers", case.subjects[INTEGERS]), other, ("ResNet-20, float", case.subjects[FLOAT])]
    runs.attack("transfer: ResNet-20", case, "pgd", case.subjects[FLOAT], across[:2], PIXELS)
    runs.attack("transfer: 8/6", case, "pgd", case.subjects[STRAIGHT_THROUGH], across[1:], PIXELS)
    four = case.with_model(coarser).subjects[STRAIGHT_THROUGH]
    runs.attack("transfer: 8/4", case, "pgd", four, [across[1], across[0], across[2]], PIXELS)
    _same(part, runs, "8/6")
    gap = paired_difference(runs.of("8/6", INTEGERS, "square")[1], runs.of("8/6", STRAIGHT_THROUGH, "pgd")[1])
    what = "ResNet-20 8/6 at 1/255: what PGD leaves less what Square leaves (no masking)"
    part.claim(what, str(gap), "the whole interval below 0.05", gap.high < 0.05)


def two_bits(part: Part, size: Size) -> None:
    """Coarse steps: PGD straight through the rounding is misled, questions are not."""
    cifar, runs = Cifar(), Runs(part, size)
    case = Case(cifar.net, cifar.trained(2, size.trained), cifar.test(size.images))
    runs.gradients("2 bits", case, STRAIGHT_THROUGH, PIXELS)
    runs.questions("2 bits", case, INTEGERS, PIXELS)
    _same(part, runs, "2 bits")
    pgd, square = runs.of("2 bits", STRAIGHT_THROUGH, "pgd"), runs.of("2 bits", INTEGERS, "square")
    gap = paired_difference(square[1], pgd[1])
    what = "ResNet-20 with 2-bit activations at 1/255: what PGD leaves less what Square leaves (masking)"
    part.claim(what, str(gap), "the whole interval above 0", gap.low > 0)


def binary(part: Part, size: Size) -> None:
    """Sign activations and scores in the hundreds: no gradient at all, or a softmax that is 1 in every digit."""
    folder, runs = data.load(), Runs(part, size)
    (train, _), (images, labels) = folder.mnist()
    net = Images(networks.BinaryMLP(folder.bnn_layers())).eval()
    model = pqi.quantize(net, torch.from_numpy(train[:512, None].astype(np.float32)))
    rows = slice(FIRST, FIRST + size.binary)
    test = Data(images[rows, None].astype(np.float64), labels[rows].astype(np.int64))
    case = Case(net, model, test, low=0.0, high=255.0)
    runs.attack("binary", case, "pgd", case.subjects[FLOAT], [("binary, float", case.subjects[FLOAT])], BINARY)
    scored = [(f"binary, {each}", case.subjects[each]) for each in (STRAIGHT_THROUGH, INTEGERS)]
    for name in ("pgd", "apgd-dlr"):
        runs.attack("binary", case, name, case.subjects[STRAIGHT_THROUGH], scored, BINARY)
    runs.questions("binary", case, INTEGERS, BINARY[-1:])
    _same(part, runs, "binary")
    pgd = runs.of("binary", STRAIGHT_THROUGH, "pgd")[-1]
    for against, right in (
        ("APGD-DLR", runs.of("binary", STRAIGHT_THROUGH, "apgd-dlr")[-1]),
        ("Square", runs.of("binary", INTEGERS, "square")[-1]),
    ):
        gap = paired_difference(right, pgd)
        what = f"binarised MNIST at {BINARY[-1]}/255: what PGD leaves less what {against} leaves (masking)"
        part.claim(what, str(gap), "the whole interval above 0", gap.low > 0)


def labels_and_differences(part: Part, size: Size) -> None:
    """Labels alone; and inputs that are right in float and wrong in integers."""
    cifar = Cifar()
    case = Case(cifar.net, cifar.quantized(8, 6), cifar.test(size.labels))
    began = process_time()
    for finding in attacks.get("hopskipjump", rounds=5).run(case, Budget(size.labels, size.queries, 600, SEED)):
        figure = finding.figures["median L2"]
        on = f"8/6, {finding.subject}" if finding.subject == INTEGERS else "ResNet-20, float"
        part.row(on, "hopskipjump", on, "", f"median L2 {figure}", f"{process_time() - began:.0f}")
    case = replace(case, test=cifar.test(size.images))
    for name, model in (("8/6", case.model), ("8/4", cifar.quantized(8, 4))):
        attack, began = attacks.get("differential", strengths=(1 / 255,), steps=size.steps), process_time()
        (found,) = attack.run(case.with_model(model), Budget(size.images, seed=SEED))
        apart = f"1: driven apart {found.figures['driven apart']}"
        part.row(f"{name} and float", "differential", f"{name}, integers", "", apart, f"{process_time() - began:.0f}")


def random_precision(part: Part, size: Size) -> None:
    """One of four widths drawn for each question: crafted at one width, and at the mean of all."""
    cifar, runs = Cifar(), Runs(part, size)
    models = {width: cifar.quantized(width, width) for width in WIDTHS}
    case = Case(cifar.net, models[7], cifar.test(size.images))
    scored = [(f"{w}/{w}, integers", IntegerSubject(model)) for w, model in models.items()]
    subject = RandomPrecisionSubject(RandomPrecision(models, seed=SEED))
    found = {}
    for name, made_on in (("7/7", case.subjects[STRAIGHT_THROUGH]), ("all widths", subject)):
        found[name] = np.stack(runs.attack(name, case, "pgd", made_on, scored, PIXELS[:2]))
        for at, strength in enumerate(PIXELS[:2], 1):
            drawn, every = over_draws(found[name][:, at], SEED)
            told = f"{strength}: {drawn}; asked until fooled: {every}"
            part.row(f"{name}, {made_on.name}", "pgd", NAME, over_draws(found[name][:, 0])[0], told, "")
    transfer, adaptive = (found[name][:, 1].mean(axis=0) for name in ("7/7", "all widths"))
    alone = found["7/7"][WIDTHS.index(7), 1].astype(float)
    gain = bootstrap(lambda a, b: float((a - b).mean()), transfer, alone, seed=SEED)
    what = "random precision at 1/255, crafted at 7/7: left more than by 7/7 alone"
    part.claim(what, str(gain), "the whole interval above 0", gain.low > 0)
    undone = bootstrap(lambda a, b: float((a - b).mean()), transfer, adaptive, seed=SEED)
    what = "random precision at 1/255: what the transferred attack leaves less what the one on the mean leaves"
    part.claim(what, str(undone), "the whole interval above 0", undone.low > 0)
    _prices(part, replace(case, test=cifar.test(size.priced)), models)


def _prices(part: Part, case: Case, models: dict[int, IntegerModel]) -> None:
    for width, cost in RandomPrecision(models).prices(case).items():
        spent = cost.private_defended
        told = (
            f"{spent.exchanges} exchanges, {spent.online / 2**20:.1f} MiB online, {spent.dealt / 2**20:.1f} MiB dealt"
        )
        change = f"change {cost.change}, p {cost.p:.2g}"
        part.row(f"{width}/{width}", "price beside 7/7", change, cost.defended, told, "")
    base = private(case.model)
    part.row("7/7", "price", "", "", f"{base.exchanges} exchanges, {base.online / 2**20:.1f} MiB online", "")


def _same(part: Part, runs: Runs, network: str) -> None:
    """The two forms of the integers agree on every input that was scored."""
    names = [name for made, name, on in runs.flags if on == f"{network}, {STRAIGHT_THROUGH}"]
    pairs = [[runs.of(network, STRAIGHT_THROUGH, n, on) for on in (STRAIGHT_THROUGH, INTEGERS)] for n in names]
    equal = all(np.array_equal(*pair) for pair in pairs)
    what = f"{network}: straight-through and integers are right on the same inputs"
    part.claim(what, f"{len(pairs)} attacks", "all of them", equal and bool(pairs))


SECTIONS = {
    "eight bits": eight_bits,
    "two bits": two_bits,
    "binary": binary,
    "labels and differences": labels_and_differences,
    "random precision": random_precision,
}
