"""What a training is made of, before its first step: cases, starting weights, plan, network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ctssl.datasets.case import Case, Dataset
from ctssl.datasets.checks import check_problems, problems
from ctssl.datasets.manifest import patients_in_several
from ctssl.datasets.seen import seen_by
from ctssl.datasets.splits import patients
from ctssl.encoders.layers import widen
from ctssl.finetuning.crops import PreparedCase
from ctssl.finetuning.loop import CHOOSING
from ctssl.finetuning.plan import Plan, make_plan
from ctssl.finetuning.prepare import (
    Sides,
    Survey,
    choose_sides,
    name_labels,
    prepare_cases,
    sub_dataset,
    survey_cases,
)
from ctssl.finetuning.request import Request, identity_of
from ctssl.finetuning.settings import Settings
from ctssl.finetuning.start import Start, check_interpolation, open_start, take_head
from ctssl.inference.masks import slices_within_memory
from ctssl.loading import segmenter
from ctssl.zoo import Preprocess, beside, channels_of


@dataclass(frozen=True)
class Job:
    """A request with everything that is derived from it before a training: who trains, from what, and how."""

    request: Request
    dataset: Dataset
    sides: Sides
    start: Start
    survey: Survey
    plan: Plan
    identity: dict[str, Any]

    @property
    def settings(self) -> Settings:
        """The user's, with crop and batch as planned."""
        return replace(self.request.settings, crop=self.plan.crop, batch=self.plan.batch)

    @property
    def content(self) -> str:
        """Hash of the content of all cases."""
        return self.survey.content([*self.sides.training, *self.sides.held_out])

    def plain(self) -> dict[str, Any]:
        """Return the plan for JSON: names of cases, labels, model, grid, crops and length."""
        sides, settings, pre = self.sides, self.settings, self.plan.preprocess
        names = {
            key: [case.name for case in getattr(sides, key)] for key in ("learning", "validating", "held_out")
        }
        return {
            **{"train": names["learning"], "validation": names["validating"], "held_out": names["held_out"]},
            "labels": sorted(self.survey.labels([*sides.training, *sides.held_out])),
            "model": self.start.name,
            "from_scratch": self.start.from_scratch,
            "head": self.start.head,
            **pre.entry(),
            **{key: getattr(settings, key) for key in ("crop", "batch", "steps", "minutes")},
        }

    def describe(self) -> str:
        """Describe the plan in a few lines of text, before any training."""
        pre, sides, settings = self.plan.preprocess, self.sides, self.settings
        labels = sorted(self.survey.labels([*sides.training, *sides.held_out]))
        length = f"{settings.minutes:g} minutes" if settings.minutes else f"{settings.steps} steps"
        start = self.start.name or "an encoder"
        note = (
            ""
            if len(sides.validating) >= CHOOSING
            else (f" (fewer than {CHOOSING}: the last weights are kept)" if sides.validating else "")
        )
        return (
            f"cases     {len(sides.learning)} to train on, {len(sides.validating)} for validation{note}, "
            f"{len(sides.held_out)} held out; labels {', '.join(map(str, labels)) or 'none'}\n"
            f"model     {start}{' (initial weights)' if self.start.from_scratch else ''}, head {self.start.head}\n"
            f"scans     {pre.spacing_mm:g} mm, {pre.window_hu[0]:g} to {pre.window_hu[1]:g} HU{beside(pre.channels)}\n"
            f"training  {length}, {settings.batch} crops of {settings.crop} voxels a step"
        )


def prepare_job(request: Request, dataset: Dataset, survey: Survey | None = None) -> Job:
    """Derive everything that a training needs from a request; every case is read once.

    Raises as `finetune` does.
    """
    if (
        request.folds is None
        and request.hold_out is None
        and patients_in_several((case.patient, case.split) for case in dataset.cases)
    ):
        check_problems(problems(dataset, progress=request.progress), len(dataset.cases))
    sides = choose_sides(dataset.cases, request)
    cases = [*sides.training, *sides.held_out]
    start = open_start(
        request.model, request.head, from_scratch=request.from_scratch, seed=request.settings.seed
    )
    planned = dataset.cases if request.folds else sides.training
    survey = survey or survey_of(request, dataset, dataset.cases if request.folds else cases, start)
    own = start.spec.preprocess
    kept = request.settings.freeze or start.segmenter is not None  # what is trained already knows this window
    window = request.window_hu or (own.window_hu if kept else None)
    channels = check_channels(request, dataset, start)
    made = make_plan(
        # one plan for all folds, as nnU-Net makes it, so that their models can be averaged
        [survey.structures[case.name] for case in planned],
        own,
        spacing_mm=request.spacing_mm,
        window_hu=window,
        crop=request.settings.crop,
        batch=request.settings.batch,
        channels=channels,
        channel_windows=request.channel_windows or (known_windows(own, channels) if kept else None),
    )
    identity = identity_of(
        request,
        train=[case.name for case in sides.training],
        held_out=[case.name for case in sides.held_out],
        validated=sides.named,
        data=survey.content(cases),
        weights=start.weights,
        head=start.head,
    )
    return Job(request, dataset, sides, start, survey, made, identity)


def known_windows(own: Preprocess, channels: tuple[str, ...]) -> list[tuple[float, float]] | None:
    """Return the windows of a model's channels if the cases have the same channels: of the same names, or as many where
    names are missing; else None."""
    names = tuple(channel.name for channel in own.channels)
    nameless = any(name.startswith("channel ") for name in (*names, *channels))
    same = names == channels or (nameless and len(names) == len(channels))
    return [(low, high) for _, low, high in own.channels] if same else None


def check_channels(request: Request, dataset: Dataset, start: Start) -> tuple[str, ...]:
    """Return the names of the channels beside the CT. Raises `ValueError` for channels that the model or the settings
    cannot take."""
    given, count = request.channel_windows, len(dataset.channels)
    have = channels_of(start.encoder)
    if have not in (1, 1 + count):
        raise ValueError(f"{start.name or 'the encoder'} takes {have} channels, the cases have {1 + count}")
    known = tuple(channel.name for channel in start.spec.preprocess.channels)
    if sorted(known) == sorted(dataset.channels) and known != dataset.channels:
        raise ValueError(
            f"{start.name} takes the channels CT, {', '.join(known)}, the cases have CT, {', '.join(dataset.channels)}; "
            "number them in the same order"
        )
    if given and len(given) != count:
        raise ValueError(
            f"{len(given)} channel windows, but the cases have {count} channels beside the CT; give one for each"
        )
    if count and request.settings.shift_augment:
        raise ValueError("shift_augment changes a CT alone, not its other channels; leave it out")
    return dataset.channels


def survey_of(request: Request, dataset: Dataset, cases: list[Case], start: Start | None = None) -> Survey:
    """Read and check the cases once, also for scans that the starting weights have seen."""
    if start is None:
        start = open_start(
            request.model, request.head, from_scratch=request.from_scratch, seed=request.settings.seed
        )
    return survey_cases(
        sub_dataset(dataset, cases, request.names),
        seen=None if start.from_scratch else seen_by(start.folder),
        model=start.name or "the model",
        whole=request.few_shot is None,
        progress=request.progress,
    )


def check_job(job: Job) -> None:
    """Raise `ValueError` for a job that cannot be trained, before any scan is prepared."""
    if not job.survey.labels(job.sides.learning):
        raise ValueError(f"all {len(job.sides.learning)} masks are empty: nothing to learn from")
    cases = (job.survey.records.cases[case.name] for case in job.sides.learning)
    if job.settings.empty and all(case.labels for case in cases):
        raise ValueError(
            f"empty={job.settings.empty:g}, but no training case has an empty mask; add scans of healthy people with masks of "
            "zeros, or leave it out"
        )


def prepare_scans(job: Job) -> tuple[list[Any], list[Any]]:
    """Bring the training cases, and those for validation, onto the working grid.

    Raises `ValueError` as `check_job` does.
    """
    preprocess, settings = job.plan.preprocess, job.settings
    check_job(job)
    learning = prepare_cases(
        job.sides.learning,
        preprocess,
        copies=settings.shift_augment,
        seed=settings.seed,
        progress=job.request.progress,
        read=job.survey.read,
    )
    validating = prepare_cases(
        job.sides.validating, preprocess, progress=job.request.progress, read=job.survey.read
    )
    return learning, validating


def build_network(job: Job) -> Any:
    """Build the segmenter: the head on the encoder. Raises `ValueError` for held-out scans that do not fit into the
    memory: now, not after hours of work."""
    labels = job.survey.labels(job.sides.training)
    names = name_labels(job.request.names, job.dataset.names, labels, whole=job.request.few_shot is None)
    classes = 1 + (len(names) if names else max(labels))
    encoder = widen(job.start.encoder, 1 + len(job.plan.preprocess.channels))
    encoder.spec = replace(job.start.spec, preprocess=job.plan.preprocess)
    torch.manual_seed(job.settings.seed)
    net = segmenter(encoder, head=job.start.head, classes=classes, labels=names, window=job.plan.crop)
    take_head(net, job.start)
    if job.settings.interpolate:
        check_interpolation(net, job.start)
    net.parent = "" if job.start.from_scratch else job.start.name
    for case in job.sides.held_out:
        slices_within_memory(net, job.survey.records.cases[case.name].grid, job.request.max_memory_gb)
    return net


def few_patients(job: Job) -> list[str]:
    """Return a warning if a trained segmenter would be fine-tuned on one patient; [] otherwise."""
    if job.start.segmenter is None or len(patients(job.sides.training)) > 1:
        return []
    return [
        "one labelled patient: on lung tumours a model that brings its head got worse by it, a DSC of 0.29 instead of 0.50 as it "
        "comes (docs/finetuning.md); compare both with `ctssl evaluate`"
    ]


def lost_labels(job: Job, learning: list[PreparedCase]) -> list[str]:
    """Return, as sentences, which labels are too small for the working grid in some training cases.

    Raises `ValueError` where no voxel of any label is left.
    """
    spacing = job.plan.preprocess.spacing_mm
    there = {scan.name: set(np.unique(scan.labels).tolist()) for scan in learning}
    if not set().union(*there.values()) - {0}:
        raise ValueError(
            f"no labelled voxel is left at {spacing:g} mm, the structures are too small; give a finer spacing_mm "
            "(--spacing)"
        )
    notes = []
    for label in sorted(job.survey.labels(job.sides.learning)):
        having = [case.name for case in job.sides.learning if label in job.survey.labels([case])]
        if gone := [name for name in having if label not in there[name]]:
            notes.append(
                f"label {label} is too small for a working spacing of {spacing:g} mm: no voxel of it is left in "
                f"{len(gone)} of {len(having)} training cases; give a finer one (--spacing)"
            )
    return notes
