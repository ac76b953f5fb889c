"""The paper's claims: what it says, and which contestants of the study are to show it."""

from typing import NamedTuple

from training.experiments.measured import LOST, SHIFTED
from training.experiments.study_cases import CLEAN


class Claim(NamedTuple):
    """A claim of the paper: the sum of `terms` (factor, contestant) at a `place` has the sign `expected`, or is nothing (0)."""

    text: str
    paper: str
    terms: list[tuple[int, str]]
    place: str = CLEAN
    expected: int = 1


def over(first: str, second: str) -> list[tuple[int, str]]:
    return [(1, first), (-1, second)]


WILD, SELF, SCRATCH = "swin-wild-smit", "swin-self-smit", "swin-scratch"
VIT_WILD, VIT_SELF, VIT_SCRATCH = "vit-wild-smit", "vit-self-smit", "vit-scratch"
ABSTRACT = [
    Claim(
        "Swin pretrained in the wild is better than self-pretrained under imaging differences",
        "abstract; 0.68 against 0.60 without contrast, 0.70 against 0.66 with",
        over(WILD, SELF),
        SHIFTED,
    ),
    Claim(
        "ViT is similar pretrained in the wild and self-pretrained",
        "abstract; 0.66 against 0.64",
        over(VIT_WILD, VIT_SELF),
        expected=0,
    ),
    *(
        Claim(
            f"Masked image prediction is better than contrastive ({encoder}, {corpus})",
            "abstract, of no encoder in particular"
            + ("; both 0.64 in the full paper" if both == "swin-wild" else ""),
            over(f"{both}-mim", f"{both}-contrastive"),
        )
        for encoder, corpus, both in (
            ("Swin", "wild", "swin-wild"),
            ("Swin", "self", "swin-self"),
            ("ViT", "wild", "vit-wild"),
            ("ViT", "self", "vit-self"),
        )
    ),
    Claim(
        "Swin gains more from pretraining in the wild than ViT",
        "abstract; 0.69 - 0.54 against 0.66 - 0.55",
        [(1, WILD), (-1, SCRATCH), (-1, VIT_WILD), (1, VIT_SCRATCH)],
    ),
    Claim(
        "Swin pretrained in the wild loses less to imaging differences than self-pretrained",
        "abstract: more robust",
        over(WILD, SELF),
        LOST,
    ),
    Claim(
        "Swin pretrained in the wild loses less to imaging differences than from scratch",
        "the title: improves robustness",
        over(WILD, SCRATCH),
        LOST,
    ),
    Claim(
        "ViT pretrained in the wild loses less to imaging differences than from scratch",
        "the title: improves robustness",
        over(VIT_WILD, VIT_SCRATCH),
        LOST,
    ),
]
TABLES = [
    Claim("Swin: wild is better than from scratch", "0.69 against 0.54", over(WILD, SCRATCH)),
    Claim("Swin: self is better than from scratch", "0.63 against 0.54", over(SELF, SCRATCH)),
    Claim("Swin: wild is better than self", "0.69 against 0.63", over(WILD, SELF)),
    Claim("ViT: wild is better than from scratch", "0.66 against 0.55", over(VIT_WILD, VIT_SCRATCH)),
    Claim("ViT: self is better than from scratch", "0.64 against 0.55", over(VIT_SELF, VIT_SCRATCH)),
    Claim("Swin is better than ViT, both wild", "0.69 against 0.66", over(WILD, VIT_WILD)),
    Claim(
        "SMIT is better than masked image prediction (Swin, wild)",
        "0.69 against 0.64",
        over(WILD, "swin-wild-mim"),
    ),
    Claim(
        "SMIT is better than contrastive (Swin, wild)",
        "0.69 against 0.64",
        over(WILD, "swin-wild-contrastive"),
    ),
    Claim(
        "Wild is better than wild, then self (Swin)",
        "0.69 against 0.65",
        over(WILD, "swin-wild-self-smit"),
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
    ),
    Claim(
        "Contrast, Swin: wild is better than self",
        "0.70 against 0.66",
        over(WILD, SELF),
        "contrast",
    ),
    Claim(
        "Contrast, ViT: wild is better than from scratch",
        "0.67 against 0.60",
        over(VIT_WILD, VIT_SCRATCH),
        "contrast",
    ),
    Claim(
        "Thick slices, Swin: wild is better than from scratch",
        "0.62 against 0.57 (5 mm, sharp, 20 internal patients)",
        over(WILD, SCRATCH),
        "thickness",
    ),
    Claim(
        "Thick slices, Swin: wild is better than self",
        "0.62 against 0.52 (5 mm, sharp, 20 internal patients)",
        over(WILD, SELF),
        "thickness",
    ),
    Claim(
        "Thick slices, ViT: wild is better than from scratch",
        "0.62 against 0.49 (5 mm, sharp, 20 internal patients)",
        over(VIT_WILD, VIT_SCRATCH),
        "thickness",
    ),
]
