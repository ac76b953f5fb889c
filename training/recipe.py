"""The settings of a pretraining run: the record, the shared recipes, finding and changing a run."""

import ast
import contextlib
import importlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ctssl.zoo import Preprocess
from training.data.views import Views

SMALL = {
    "swin": dict(width=48, depths=(2, 2, 6), heads=(3, 6, 12), window=4, patch=4, merge_last=False),
    "vit": dict(width=144, depth=6, heads=4, patch=8, grid=(8, 8, 8), maps=4),
}
"""Arguments of the encoders that ctssl ships: a few million parameters, trained on two CPU cores."""

STEPS = {
    "mim": 4500,
    "contrastive": 2300,
    "itd": 1800,
    "itd_mpd": 1700,
    "smit": 1800,
    "mae": 4500,
    "rotate_inpaint_contrast": 2250,
    "lesions": 8000,
    "fusion": 8000,
}
"""Steps with about equal compute: a step of `contrastive` costs two of `mim`, one of `smit` about 2.5."""

CONTRASTIVE: dict[str, Any] = dict(crop=32, batch=32, views=Views(intensity=0.05, gamma=1.15, noise=0.02))
"""As many voxels per step as four crops of 64, but 62 negative views instead of six, and values that stay
near their HU: with four crops and SimCLR's stronger intensity changes no contrastive encoder beat its random
twin (`training.experiments.probe`)."""

DISTILLED: dict[str, Any] = dict(
    task_args=dict(standardise=True, momentum=0.99, teacher_temperature=(0.04, 0.04))
)
"""For runs of 1,800 steps. With the published settings (tokens not standardised, momentum 0.996, temperature
rising to 0.07) the targets of the Swins' teachers were uniform from the first hundred steps to the last
(entropy 6.93, the log of 1024), so SMIT was reduced to masked image prediction."""
LESIONS: dict[str, Any] = dict(
    crop=32,
    batch=8,
    preprocess=Preprocess(1.5, (-1000.0, 400.0)),
    views=Views(intensity=0.05, gamma=1.1, noise=0.02, blur=0.7, spacing=(0.9, 3.0), thick=3.0),
)
"""A window that shows lung and soft tissue, and the spacings of users' scans."""
STUDY: dict[str, Any] = dict(
    preprocess=LESIONS["preprocess"],
    views=replace(LESIONS["views"], spacing=(0.9, 1.9)),
    batch=8,
)
"""The same grid, window and views for every pretext and corpus, so that they can be compared: crops of 48 voxels, the
largest that fit into the cubes of the lung task at the coarsest spacing (of 32 for `contrastive`, which needs many)."""
RECIPES = {
    "lesions": LESIONS,
    "contrastive": CONTRASTIVE,
    "itd": DISTILLED,
    "itd_mpd": DISTILLED,
    "smit": DISTILLED,
}
"""Settings that the small runs of a task change."""


@dataclass(frozen=True)
class Run:
    """The settings of one pretraining run.

    Attributes:
        name: name of the model.
        encoder: key of `ctssl.encoders.ENCODERS`.
        task: key of `training.pretext.TASKS`.
        corpus: "wild", "wild46", "lung", "sarcoma", a CSV or a folder; see `training.data.manifest`.
        encoder_args: arguments of the encoder.
        task_args: arguments of the task.
        preprocess: working spacing and HU window.
        views: how crops become views.
        init: the starting weights; "" starts from random weights.
        crop: side of a crop in voxels of `preprocess.spacing_mm`.
        batch: samples per device and piece.
        accumulate: pieces per step.
        steps: number of optimiser steps.
        minutes: train for so long instead, if `steps` are not done before; all schedules follow the clock.
        lr: peak learning rate.
        weight_decay: weight decay of AdamW.
        warmup: share of `steps` with rising learning rate.
        clip: largest norm of the gradient.
        seed: seed of everything random.
        bf16: mixed precision; on a CPU it is faster with AVX512_BF16 or AMX.
        checkpointing: recompute activations: less memory, about a third more time.
        compile: `torch.compile` the encoder's blocks; needs a C++ compiler and takes minutes at the start.
        workers: processes that load data.
        resident: keep all scans in the memory of each device and draw the crops there; no loader.
        save_minutes: minutes between two checkpoints.
    """

    name: str
    encoder: str
    task: str
    corpus: str
    encoder_args: dict[str, Any] = field(default_factory=dict)
    task_args: dict[str, Any] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    views: Views = field(default_factory=Views)
    init: str = ""
    crop: int = 64
    batch: int = 4
    accumulate: int = 1
    steps: int = 4500
    minutes: float = 0.0
    lr: float = 8e-4
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0
    bf16: bool = False
    checkpointing: bool = False
    compile: bool = False
    workers: int = 1
    resident: bool = False
    save_minutes: float = 3.0


PAPER: dict[str, Any] = dict(
    encoder="swin",
    encoder_args=dict(width=48, depths=(2, 2, 8, 2), heads=(4, 4, 8, 16), window=4, patch=2, drop_path=0.1),
    corpus="wild",
    crop=128,
    batch=8,
    steps=162_700,
    bf16=True,
    checkpointing=True,
    workers=8,
)
"""The paper's Swin and settings, on 4 GPUs: batch 32, 500 epochs of 10,412 scans."""


def find_run(name: str) -> Run:
    """Return the `run` of `training/runs/<name>.py`. Exits, listing the runs, if there is none."""
    path = Path(__file__).parent / "runs" / f"{name.replace('-', '_')}.py"
    if not path.is_file():
        known = sorted(p.relative_to(path.parent).with_suffix("") for p in path.parent.rglob("[a-z]*.py"))
        raise SystemExit(f"unknown run {name!r}; use one of {', '.join(map(str, known))}")
    return importlib.import_module(f"training.runs.{name.replace('-', '_').replace('/', '.')}").run


def parse_run(settings: dict[str, Any]) -> Run:
    """Return a run from the JSON of a checkpoint or of a card's `training.json`."""
    views: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in settings["views"].items()
    }
    how = settings["preprocess"]  # tuples again: tables and caches compare them
    preprocess = Preprocess(how["spacing_mm"], tuple(how["window_hu"]), tuple(how.get("channels", ())))
    parts = {"preprocess": preprocess, "views": Views(**views)}
    return Run(**{**settings, **parts})


def own_run(data: str, encoder: str, task: str, name: str) -> Run:
    """Return the published recipe for other scans. A task or an encoder without one takes the usual settings and its own
    defaults."""
    usual = {"steps": STEPS[task]} if task in STEPS else {}
    size = SMALL.get(encoder, {})
    return Run(name, encoder, task, data, encoder_args=size, **usual, **RECIPES.get(task, {}))


def study_run(encoder: str, start: str, task: str) -> Run:
    """Return a run of the study of corpora and pretexts. `start`: "wild", "self" (the scans of the lung task), or
    "wild-self", which goes on from what the run of "wild" left in `runs`."""
    how: dict[str, Any] = LESIONS
    if task != "lesions":
        own = DISTILLED if task == "smit" else {}
        how = {**STUDY, **own, "crop": 32 if task == "contrastive" else 48}
    init = f"runs/{encoder}-wild-{task}" if start == "wild-self" else ""
    corpus = "wild46" if start == "wild" else "lung"
    return Run(
        f"{encoder}-{start}-{task}",
        encoder,
        task,
        corpus,
        SMALL[encoder],
        init=init,
        steps=STEPS[task],
        **how,
    )


def override(run: Run, changes: list[str]) -> Run:
    """Return a run with changed settings. Exits for an unknown setting or a value of the wrong type.

    >>> run = own_run("scans", "swin", "mim", "mine")
    >>> override(run, ["steps=100", "views.blur=0.0"]).steps
    100
    """
    for change in changes:
        key, _, text = change.partition("=")
        key, _, inner = key.partition(".")
        names = [f.name for f in fields(Run)]
        if key not in names or not text:
            raise SystemExit(
                f"cannot set {change!r}; write FIELD=VALUE with one of the fields {', '.join(names)}"
            )
        value: Any = text
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(text)
        old = getattr(run, key)
        if inner and isinstance(old, dict):
            value = {**old, inner: value}
        elif inner and hasattr(old, inner):
            value = replace(old, **{inner: value})
        elif inner:
            raise SystemExit(f"cannot set {change!r}: {key} has no field {inner!r}")
        if not isinstance(value, type(old)) and not (isinstance(value, int) and isinstance(old, float)):
            raise SystemExit(f"cannot set {change!r}: {key} must be of type {type(old).__name__}")
        run = replace(run, **{key: value})
    return run
