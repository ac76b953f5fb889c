"""What models exist. Standard library only, so that asking is instant."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Preprocess:
    """How a scan becomes an input: RAS+ axes, isotropic spacing in mm, HU window mapped to 0..1."""

    spacing_mm: float = 2.0
    window_hu: tuple[float, float] = (-500.0, 500.0)


@dataclass(frozen=True)
class ModelSpec:
    """One set of weights. `sha256` is that of `model.safetensors`; `repo` and `revision` are None until
    published.

    `kind`: "encoder" or "segmenter". `encoder` and `encoder_args`: a key of `ctssl.encoders.ENCODERS` and
    what it is called with. `corpus`: "wild", "self", "wild-self" (one after the other) or "" (not
    pretrained). `licence`: of the weights; `data`: what they saw. `head` and `labels` (`{"1": "tumour"}`): of
    a segmenter. `baseline_only`: frozen, it tells tumours from other tissue no better than the same encoder
    with random weights (`training.experiments.probe`): for comparing, not for use.
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


SCANS = {
    "wild": "26 public CT scans, uncurated",
    "self": "26 sarcoma CT scans of the task itself",
    "wild-self": "26 public CT scans, uncurated, then 26 sarcoma CT scans of the task itself",
}
"""What each corpus is, in words."""


def _pretrained(
    encoder: str, corpus: str, pretext: str, sha256: str, *, baseline_only: bool = False
) -> ModelSpec:
    """One of the small encoders that the package carries."""
    licence = "CC-BY-3.0" if corpus == "self" else "CC-BY-4.0"  # the strictest of the scans' own
    return ModelSpec(
        f"{encoder}-{corpus}-{pretext}",
        "encoder",
        encoder,
        _ARGS[encoder],
        corpus=corpus,
        pretext=pretext,
        parameters=_PARAMETERS[encoder],
        sha256=sha256,
        licence=licence,
        data=SCANS[corpus],
        baseline_only=baseline_only,
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
) -> ModelSpec:
    """A fine-tuned one, with the default head and one label; `corpus` and `pretext` of the encoder that it
    started from."""
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
        labels={"1": "tumour"},
    )


# --- published: `python -m training.release.publish` writes these lines ---
PUBLISHED: dict[str, tuple[str, str]] = {}
# --- end of what it writes ---
"""Where a model is on the Hub: repository and commit (40 hex digits) by name."""


def _placed(spec: ModelSpec) -> ModelSpec:
    """With its repository and revision, once it is published."""
    repo, revision = PUBLISHED.get(spec.name, (None, None))
    return replace(spec, repo=repo, revision=revision)


MODELS: dict[str, ModelSpec] = {
    spec.name: _placed(spec)
    for spec in [
        _pretrained(
            "swin", "self", "contrastive", "85f564dffacff0375936ba0c44c63eaa989a7b1346e42db09824cde89d1872ba"
        ),
        _pretrained(
            "swin", "self", "mim", "2a494f06a19ff8e06f357da09c4cc1ce7ebebdbf7264c4f6e7279c1febb2341d"
        ),
        _pretrained(
            "swin", "self", "smit", "5bc9b4de3994ca17bd75e5bce4a38d7705139fe1658ec192af86167f4c8f94f5"
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
            "swin", "wild-self", "smit", "3a5c842e776104dcac1220183dc0304eba1c8941fcbf8f03cb340c2f802535ec"
        ),
        _pretrained(
            "vit", "self", "contrastive", "253c90dbf5536c248a83c8391f851536b950c63579aa0627fe5b21ed33f301ab"
        ),
        _pretrained(
            "vit",
            "self",
            "mim",
            "5418b184c3c663bbed0af6fcc889e2f9d0b17dbf2a37c510ecc6f861ecff1eaa",
            baseline_only=True,
        ),
        _pretrained(
            "vit",
            "self",
            "smit",
            "72f7ed57c01ba2163f5877df368b96ef11e3a7ede4b7cf4e8738c62adde37b93",
            baseline_only=True,
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


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models that match, e.g. `"*mim*"`, in alphabetical order."""
    return sorted(name for name in MODELS if fnmatchcase(name, pattern))


def info(name: str) -> ModelSpec:
    """What is known of a model, without loading it. Raises `ValueError`, with the nearest names, for an
    unknown one."""
    if name not in MODELS:
        raise ValueError(unknown(name))
    return MODELS[name]


def unknown(name: str) -> str:
    """What to say about a name that is not in the table."""
    near = difflib.get_close_matches(name, MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(list_models())}."
    return f"no model is called {name!r}; {hint} A folder with config.json, or a Hub repository owner/name, also works"


def pair(encoder: str, pretext: str) -> tuple[ModelSpec, ModelSpec]:
    """The same encoder with the same pretext, pretrained in the wild and on the task's own scans: `(wild,
    self)`.

    `ctssl.load(spec.name)` loads each. Raises `ValueError`, with the pairs that exist, where one of the two
    is missing.
    """
    found: dict[tuple[str, str], dict[str, ModelSpec]] = {}
    for spec in MODELS.values():
        if spec.kind == "encoder":
            found.setdefault((spec.encoder, spec.pretext), {})[spec.corpus] = spec
    pairs = {key: sides for key, sides in found.items() if {"wild", "self"} <= set(sides)}
    if (encoder, pretext) not in pairs:
        known = ", ".join(f"({e!r}, {p!r})" for e, p in sorted(pairs))
        raise ValueError(f"no pair of models for ({encoder!r}, {pretext!r}); there are {known}")
    return pairs[encoder, pretext]["wild"], pairs[encoder, pretext]["self"]
