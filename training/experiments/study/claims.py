"""The paper's claims: what it says, and which contestants of the study are to show it."""

from typing import NamedTuple

from training.experiments.study.measured import LOST, SHIFTED
from training.experiments.study.patients import CLEAN


class Claim(NamedTuple):
    """A claim of the paper: the sum of `terms` (factor, contestant) at a `place` has the sign `expected`, or is nothing (0);
    `size`: the paper's difference of means, where it has one; `short`: what README calls the claim, of those that it tells."""

    text: str
    paper: str
    terms: list[tuple[float, str]]
    place: str = CLEAN
    expected: int = 1
    size: float | None = None
    short: str = ""


def over(first: str, second: str) -> list[tuple[float, str]]:
    return [(1, first), (-1, second)]


def mean(factor: float, names: list[str]) -> list[tuple[float, str]]:
    """Return the terms of a mean over contestants, times a factor."""
    return [(factor / len(names), name) for name in names]


def pretexts(start: str) -> list[str]:
    """Return a start with each pretext that was trained alike in the wild and on the own scans."""
    return [f"{start}-{pretext}" for pretext in ALIKE]


ALIKE = ("smit", "mim", "contrastive")


WILD, SELF, SCRATCH = "swin-wild-smit", "swin-self-smit", "swin-scratch"
VIT_WILD, VIT_SELF, VIT_SCRATCH = "vit-wild-smit", "vit-self-smit", "vit-scratch"
SIDES = ("swin-wild", "swin-self", "vit-wild", "vit-self")
NAMES = {"swin": "Swin", "vit": "ViT"}
CONVOLUTIONAL = "dynunet-8, 3000 steps"
ABSTRACT = [
    Claim(
        "Swin pretrained in the wild is better than self-pretrained under imaging differences (mean of three pretexts)",
        "abstract; 0.68 against 0.60 without contrast, 0.70 against 0.66 with",
        mean(1, pretexts("swin-wild")) + mean(-1, pretexts("swin-self")),
        SHIFTED,
        size=0.69 - 0.63,
        short="Swin better wild than self",
    ),
    Claim("... with SMIT, the paper's pretext", "the same", over(WILD, SELF), SHIFTED, size=0.69 - 0.63),
    Claim(
        "ViT is similar pretrained in the wild and self-pretrained (mean of three pretexts)",
        "abstract; 0.66 against 0.64",
        mean(1, pretexts("vit-wild")) + mean(-1, pretexts("vit-self")),
        expected=0,
        short="ViT alike wild and self",
    ),
    Claim("... with SMIT", "the same", over(VIT_WILD, VIT_SELF), expected=0),
    Claim(
        "Masked image prediction is better than contrastive (mean of both encoders, wild and self)",
        "abstract, of no encoder in particular; both 0.64 in the full paper (Swin, wild)",
        mean(1, [f"{side}-mim" for side in SIDES]) + mean(-1, [f"{side}-contrastive" for side in SIDES]),
        short="masked image prediction better than contrastive",
    ),
    *(
        Claim(
            f"... ({NAMES[side.partition('-')[0]]}, {side.partition('-')[2]})",
            "the same",
            over(f"{side}-mim", f"{side}-contrastive"),
        )
        for side in SIDES
    ),
    Claim(
        "Swin gains more from pretraining in the wild than ViT (mean of three pretexts)",
        "abstract; 0.69 - 0.54 against 0.66 - 0.55",
        [*mean(1, pretexts("swin-wild")), (-1, SCRATCH), *mean(-1, pretexts("vit-wild")), (1, VIT_SCRATCH)],
        size=(0.69 - 0.54) - (0.66 - 0.55),
        short="Swin gaining more than ViT",
    ),
    Claim(
        "... with SMIT",
        "the same",
        [(1, WILD), (-1, SCRATCH), (-1, VIT_WILD), (1, VIT_SCRATCH)],
        size=(0.69 - 0.54) - (0.66 - 0.55),
    ),
    Claim(
        "Swin pretrained in the wild loses less to imaging differences than self-pretrained (mean of three pretexts)",
        "abstract: more robust",
        mean(1, pretexts("swin-wild")) + mean(-1, pretexts("swin-self")),
        LOST,
        short="Swin more robust wild than self",
    ),
    Claim("... with SMIT", "the same", over(WILD, SELF), LOST),
    *(
        claim
        for encoder in ("swin", "vit")
        for claim in (
            Claim(
                f"{NAMES[encoder]} pretrained in the wild loses less to imaging differences than from scratch (mean of three "
                "pretexts)",
                "the title: improves robustness",
                [*mean(1, pretexts(f"{encoder}-wild")), (-1, f"{encoder}-scratch")],
                LOST,
                short=f"{NAMES[encoder]} more robust than from scratch",
            ),
            Claim("... with SMIT", "the same", over(f"{encoder}-wild-smit", f"{encoder}-scratch"), LOST),
        )
    ),
]
TABLES = [
    Claim(
        "Swin: wild is better than from scratch", "0.69 against 0.54", over(WILD, SCRATCH), size=0.69 - 0.54
    ),
    Claim(
        "Swin: self is better than from scratch", "0.63 against 0.54", over(SELF, SCRATCH), size=0.63 - 0.54
    ),
    Claim("Swin: wild is better than self", "0.69 against 0.63", over(WILD, SELF), size=0.69 - 0.63),
    Claim(
        "ViT: wild is better than from scratch",
        "0.66 against 0.55",
        over(VIT_WILD, VIT_SCRATCH),
        size=0.66 - 0.55,
    ),
    Claim(
        "ViT: self is better than from scratch",
        "0.64 against 0.55",
        over(VIT_SELF, VIT_SCRATCH),
        size=0.64 - 0.55,
    ),
    *(
        Claim(
            f"{NAMES[encoder]} is better than a convolutional network, both from scratch (3,000 steps; `dynunet-8`)",
            paper,
            over(f"{encoder}-scratch, 3000 steps", CONVOLUTIONAL),
            size=size,
        )
        for encoder, paper, size in (
            ("swin", "0.54 against 0.42", 0.54 - 0.42),
            ("vit", "0.55 against 0.42", 0.55 - 0.42),
        )
    ),
    Claim("Swin is better than ViT, both wild", "0.69 against 0.66", over(WILD, VIT_WILD), size=0.69 - 0.66),
    Claim(
        "SMIT is better than masked image prediction (Swin, wild)",
        "0.69 against 0.64",
        over(WILD, "swin-wild-mim"),
        size=0.69 - 0.64,
    ),
    Claim(
        "SMIT is better than contrastive (Swin, wild)",
        "0.69 against 0.64",
        over(WILD, "swin-wild-contrastive"),
        size=0.69 - 0.64,
    ),
    Claim(
        "Wild is better than wild, then self (Swin)",
        "0.69 against 0.65",
        over(WILD, "swin-wild-self-smit"),
        size=0.69 - 0.65,
    ),
    Claim(
        "Wild is better than wild, then self (ViT, lesions)",
        "0.69 against 0.65 (Swin, SMIT)",
        over("vit-wild-lesions", "vit-wild-self-lesions"),
    ),
    Claim(
        "Sharp kernels, Swin: wild is better than from scratch",
        "medians about 0.71 and 0.61",
        over(WILD, SCRATCH),
        "kernel_sharp",
    ),
    Claim(
        "Smooth kernels, Swin: wild is better than from scratch",
        "medians about 0.78 and 0.67",
        over(WILD, SCRATCH),
        "kernel_smooth",
    ),
    Claim(
        "Smooth kernels, Swin: wild is better than self",
        "medians about 0.78 and 0.76",
        over(WILD, SELF),
        "kernel_smooth",
    ),
    Claim(
        "Contrast, Swin: wild is better than from scratch",
        "0.70 against 0.58",
        over(WILD, SCRATCH),
        "contrast",
        size=0.70 - 0.58,
    ),
    Claim(
        "Contrast, Swin: wild is better than self",
        "0.70 against 0.66",
        over(WILD, SELF),
        "contrast",
        size=0.70 - 0.66,
    ),
    Claim(
        "Contrast, ViT: wild is better than from scratch",
        "0.67 against 0.60",
        over(VIT_WILD, VIT_SCRATCH),
        "contrast",
        size=0.67 - 0.60,
    ),
    Claim(
        "Thick slices, Swin: wild is better than from scratch",
        "0.62 against 0.57 (5 mm, sharp, 20 internal patients)",
        over(WILD, SCRATCH),
        "thickness",
        size=0.62 - 0.57,
    ),
    Claim(
        "Thick slices, Swin: wild is better than self",
        "0.62 against 0.52 (5 mm, sharp, 20 internal patients)",
        over(WILD, SELF),
        "thickness",
        size=0.62 - 0.52,
    ),
    Claim(
        "Thick slices, ViT: wild is better than from scratch",
        "0.62 against 0.49 (5 mm, sharp, 20 internal patients)",
        over(VIT_WILD, VIT_SCRATCH),
        "thickness",
        size=0.62 - 0.49,
    ),
]
