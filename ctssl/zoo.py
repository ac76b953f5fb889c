"""List the models that exist. Standard library only, so `import` takes no time."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, NamedTuple


class Channel(NamedTuple):
    """A channel beside the CT: its name, and the values that become 0 and 1, in its own units (SUV of a PET)."""

    name: str
    low: float
    high: float


def channels_of(model: Any) -> int:
    """Return how many channels the images of an encoder or a segmenter have."""
    return getattr(model, "in_channels", getattr(model, "config", {}).get("in_channels", 1))


def beside(channels: Iterable[Any]) -> str:
    """Say the windows of channels beside the CT, for a sentence that ends with that of the CT.

    >>> beside([("PET", 0.0, 20.0)])
    '; PET 0 to 20'
    """
    return "".join(f"; {name} {low:g} to {high:g}" for name, low, high in channels)


@dataclass(frozen=True)
class Preprocess:
    """How a scan becomes an input: RAS+ axes, isotropic spacing in mm, HU window mapped to 0..1.

    `channels`: those that the model takes beside the CT.
    """

    spacing_mm: float = 2.0
    window_hu: tuple[float, float] = (-500.0, 500.0)
    channels: tuple[Channel, ...] = ()

    def entry(self) -> dict[str, Any]:
        """Return what `config.json` holds of it."""
        return {key: value for key, value in asdict(self).items() if value != ()}


@dataclass(frozen=True)
class ModelSpec:
    """One set of weights.

    Attributes:
        name: name of the model, an opaque key.
        kind: "encoder" or "segmenter".
        encoder: key of `ctssl.encoders.ENCODERS`.
        encoder_args: arguments that the encoder is built with.
        preprocess: working spacing and HU window.
        corpus: pretraining corpus: "wild", "self" or "" (not pretrained).
        pretext: pretext task; "" if not pretrained.
        parameters: number of parameters.
        repo: Hub repository; None until published.
        revision: Hub commit; None until published.
        sha256: sha256 of `model.safetensors`.
        licence: licence of the weights.
        data: the scans that they were trained on.
        head: key of `ctssl.heads.HEADS`, for a segmenter.
        labels: name of each label, `{"1": "tumour"}`, for a segmenter.
        baseline_only: with frozen weights it separates tumours from other tissue no better than the same
            encoder with random weights (`training.experiments.probe`): use it for comparison only.
        in_package: whether an installed package holds the weights; otherwise they are in the folder `model_cards` of
            the repository alone, because few people need them or their licence is not free.
    """

    name: str
    kind: str
    encoder: str
    encoder_args: dict[str, Any] = field(default_factory=dict)
    preprocess: Preprocess = Preprocess()
    corpus: str = ""
    pretext: str = ""
    parameters: int = 0
    repo: str | None = None
    revision: str | None = None
    sha256: str = ""
    licence: str = ""
    data: str = ""
    head: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    baseline_only: bool = False
    in_package: bool = True


_ARGS: dict[str, dict[str, Any]] = {
    "swin": {
        "width": 48,
        "depths": (2, 2, 6),
        "heads": (3, 6, 12),
        "window": 4,
        "patch": 4,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "patch_norm": True,
        "merge_last": False,
        "maps": "before",
        "sliced_bias": False,
    },
    "vit": {
        "width": 144,
        "depth": 6,
        "heads": 4,
        "patch": 8,
        "grid": (8, 8, 8),
        "mlp_ratio": 4.0,
        "qkv_bias": False,
        "maps": 4,
    },
}
_PARAMETERS = {"swin": 3_170_790, "vit": 1_649_520}
LUNG = Preprocess(1.5, (-1000.0, 400.0))
"""A grid and a window that show lung and soft tissue."""


DEFAULT = "vit-wild-lesions"
"""What a training of a segmenter starts from, and the encoder for features, unless told otherwise: the highest gain on
`training.experiments.lung`, and better frozen features than the other ViTs in the package (`training.experiments.probe`)."""
SEGMENTER = "lung-tumour-vit-wild-lesions"
"""The segmenter of the demo."""
GAINS = {
    "vit-wild-lesions": 0.222,
    "swin-wild-lesions": 0.216,
    "vit-wild-contrastive": 0.078,
    "swin-wild-contrastive": 0.040,
}
"""DSC gained over the same network from scratch on `training.experiments.lung`, 50 labelled patients, 500 steps."""
USES = {
    "vit-wild-lesions": "fine-tuning, features; the default",
    "swin-wild-lesions": "fine-tuning with a Swin",
    "vit-wild-contrastive": "comparison: no lesions seen, no head",
    "swin-wild-contrastive": "comparison: no lesions seen, no head",
    "lung-tumour-vit-wild-lesions": "lung tumours, in boxes of 64 to 92 mm",
    "lung-tumour-chest-vit-wild-lesions": "lung tumours, in whole chests",
    "sarcoma-swin-wild-smit": "sarcomas of limbs, in boxes around them",
}
"""What to take a model for; the others are for comparisons."""
SCANS = {
    "wild": "26 public CT scans, uncurated",
    "wild46": "46 public CT scans, uncurated",
    "self": "150 CT scans of lung tumours (NSCLC-Radiomics), cubes of 92 mm, the task's own, without labels",
}
"""Description of each pretraining corpus."""


def _pretrained(
    encoder: str, corpus: str, pretext: str, sha256: str, *, baseline_only: bool = False
) -> ModelSpec:
    """Return the spec of one of the small encoders in the package."""
    own = corpus == "self"
    return ModelSpec(
        f"{encoder}-{corpus}-{pretext}",
        "encoder",
        encoder,
        _ARGS[encoder],
        LUNG if own else Preprocess(),
        corpus=corpus,
        pretext=pretext,
        parameters=_PARAMETERS[encoder],
        sha256=sha256,
        licence="CC-BY-NC-3.0" if own else "CC-BY-4.0",  # the strictest licence among the scans
        data=SCANS[corpus],
        baseline_only=baseline_only,
        in_package=not own,  # the package holds nothing that may not be used commercially
    )


def _segmenter(
    name: str,
    encoder: str,
    corpus: str,
    pretext: str,
    parameters: int,
    sha256: str,
    *,
    preprocess: Preprocess,
    licence: str,
    data: str,
    label: str = "tumour",
) -> ModelSpec:
    """Return the spec of a segmenter with the default head and one label.

    `corpus` and `pretext` are those of its starting weights if it was fine-tuned, its own if a pretext task trained
    it.
    """
    return ModelSpec(
        name,
        "segmenter",
        encoder,
        _ARGS[encoder],
        preprocess,
        corpus=corpus,
        pretext=pretext,
        parameters=parameters,
        sha256=sha256,
        licence=licence,
        data=data,
        head="light",
        labels={"1": label},
    )


# --- published: `python -m training.release.publish` writes these lines ---
PUBLISHED: dict[str, tuple[str, str]] = {}
# --- end of what it writes ---
"""Hub repository and commit (40 hex digits) of each published model."""


def _placed(spec: ModelSpec) -> ModelSpec:
    """Return the spec with its Hub repository and revision, if published."""
    repo, revision = PUBLISHED.get(spec.name, (None, None))
    return replace(spec, repo=repo, revision=revision)


MODELS: dict[str, ModelSpec] = {
    spec.name: _placed(spec)
    for spec in [
        _pretrained(
            "swin", "self", "contrastive", "124e22ad112000a789d2f0cc094264a19e7ebdc1adfd103e87fe9f9fe64c2ea5"
        ),
        _pretrained(
            "swin", "self", "mim", "dd286d08a4a923570a2bafd3c74328d34ecd2ed42309fc6456039a06eb1ed173"
        ),
        _pretrained(
            "swin", "self", "smit", "7b4e2cc688302af421cca65621eb3aba4284e9a1e3f5f5ffcc257395af39f466"
        ),
        _pretrained(
            "vit", "self", "contrastive", "2ea6dcf2731b36041d03d21e5948c0e6a3091ac934d6eb5f2eefad324f0036c7"
        ),
        _pretrained("vit", "self", "mim", "26a8ec4f12189ec27f2676b341ee02b30b3ae92c3c9c53f4fcf8216a1a94febf"),
        _pretrained(
            "vit", "self", "smit", "4cf2e22cdfa5c93d58c89e8d496d44489abec763f958ccd45f87b22741b4938b"
        ),
        _pretrained(
            "swin", "wild", "contrastive", "aaca6fad9be7840fd661a72fa409c6f1b0344ff3fea7664521d614aff2faea84"
        ),
        _pretrained(
            "swin", "wild", "mim", "8226b5d29cd3e9967be962043f5f811f148cb08ac2af1819c1e9f121a213224d"
        ),
        _pretrained(
            "swin", "wild", "smit", "bd2ca93cdb2d79117d2e1bc3e7c7c0eb1254917e838d458d30846801175df394"
        ),
        _pretrained(
            "vit", "wild", "contrastive", "25a7a1b99c734896ffb051be36abbb5e471cd8e9e08cb31290819608b63b7c97"
        ),
        _pretrained("vit", "wild", "mim", "54195a29b8ccb5b59496faee57e72674e20d7b79d8f16b11fea15ddc2dc613e6"),
        _pretrained(
            "vit",
            "wild",
            "smit",
            "56c3b056f7b70200500445d81b1fda62b4274230b4a25942c223a6a9b4988c4b",
            baseline_only=True,
        ),
        _segmenter(
            "swin-wild-lesions",
            "swin",
            "wild",
            "lesions",
            4009654,
            "5d90b9d63f52bbbde21e7a5f0f3d2adc0e026253682fa21bf5e5ee5e3de010f7",
            preprocess=LUNG,
            licence="CC-BY-4.0",
            data=SCANS["wild46"],
            label="lesion",
        ),
        _segmenter(
            "vit-wild-lesions",
            "vit",
            "wild",
            "lesions",
            1994944,
            "e0f1c7adbd9d70900b079354907f9db4584d54433b970a89e90a6725f0ebdd8d",
            preprocess=LUNG,
            licence="CC-BY-4.0",
            data=SCANS["wild46"],
            label="lesion",
        ),
        _segmenter(
            "lung-tumour-vit-wild-lesions",
            "vit",
            "wild",
            "lesions",
            1994944,
            "1b072d423ab59fd146c532d8a6d56cb787371ae8809e4c0b0926de26fa98bb48",
            preprocess=LUNG,
            licence="CC-BY-4.0",
            data="NSCLC-Radiogenomics (TCIA, CC BY 3.0), cubes of 92 mm around the tumours, semi-automatic "
            "masks; and twelve public chest CTs without a known tumour (COVID-CT-MD, ACRIN-FLT-Breast, "
            "CPTAC-PDA, RIDER Pilot and others, CC BY 4.0, CC BY 3.0, Apache-2.0), whose masks are empty",
        ),
        _segmenter(
            "lung-tumour-chest-vit-wild-lesions",
            "vit",
            "wild",
            "lesions",
            1994944,
            "f25322e536b8bee74d0ac1ec984d9a9d2a69ad65dce15c2be851a96b51a12d6f",
            preprocess=LUNG,
            licence="CC-BY-4.0",
            data="NSCLC-Radiogenomics (TCIA, CC BY 3.0), cubes of 92 mm around the tumours, semi-automatic "
            "masks; and, for half of the crops, eighteen public CTs of chests, abdomens and a head without a "
            "known lung tumour (COVID-CT-MD, ACRIN-FLT-Breast, CPTAC-PDA, RIDER Pilot, "
            "Colorectal-Liver-Metastases, TCGA and others; CC BY 4.0, CC BY 3.0, Apache-2.0, BSD-3-Clause), "
            "whose masks are empty",
        ),
        _segmenter(
            "sarcoma-swin-wild-smit",
            "swin",
            "wild",
            "smit",
            4009654,
            "519c0ccdf20dccee98e460aafeb94115d8cd9d329c1dd7540bf608e3bcf3b857",
            preprocess=Preprocess(4.0, (-150.0, 190.0)),
            licence="CC-BY-4.0",
            data="Soft-tissue-Sarcoma (TCIA), GTV drawn by physicians",
        ),
    ]
}


def best_first(names: list[str]) -> list[str]:
    """Return model names with those of the highest measured gain (`GAINS`) first, then those for a use of their own
    (`USES`), then the others as they come.

    >>> best_first(["swin-wild-mim", "vit-wild-lesions"])
    ['vit-wild-lesions', 'swin-wild-mim']
    """
    uses = list(USES)

    def place(name: str) -> tuple[float, int]:
        return -GAINS.get(name, -1.0), uses.index(name) if name in uses else len(uses)

    return sorted(names, key=place)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the models that match a pattern, in alphabetical order.

    >>> list_models("swin-wild-m*")
    ['swin-wild-mim']
    """
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def info(name: str) -> ModelSpec:
    """Return the spec of a model without loading it.

    Raises `ValueError` for an unknown name and suggests the nearest ones.

    >>> info("swin-wild-mim").parameters
    3170790
    """
    if name not in MODELS:
        raise ValueError(explain_unknown(name))
    return MODELS[name]


def explain_unknown(name: str) -> str:
    """Return the error message for a name that is not in the table."""
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"use one of {', '.join(list_models())}."
    return (
        f"unknown model {name!r}; {hint} A folder with config.json, or a Hub repository owner/name, "
        "also works"
    )


def pair(encoder: str, pretext: str) -> tuple[ModelSpec, ModelSpec]:
    """Return the same encoder and pretext task pretrained on the two corpora, as `(wild, self)`.

    Grid, window and recipe differ too (`preprocess`, the cards): `model_cards/STUDY.md` compares encoders that differ in the
    corpus alone.

    Args:
        encoder: "swin" or "vit".
        pretext: pretext task, such as "mim".

    Raises:
        ValueError: one of the two is missing; the message lists the pairs that exist.

    >>> [spec.name for spec in pair("swin", "mim")]
    ['swin-wild-mim', 'swin-self-mim']
    """
    specs: dict[tuple[str, str], dict[str, ModelSpec]] = {}
    for spec in MODELS.values():
        if spec.kind == "encoder":
            specs.setdefault((spec.encoder, spec.pretext), {})[spec.corpus] = spec
    pairs = {key: sides for key, sides in specs.items() if {"wild", "self"} <= set(sides)}
    if (encoder, pretext) not in pairs:
        known = ", ".join(f"({e!r}, {p!r})" for e, p in sorted(pairs))
        raise ValueError(f"no pair of models for ({encoder!r}, {pretext!r}); use one of {known}")
    return pairs[encoder, pretext]["wild"], pairs[encoder, pretext]["self"]
