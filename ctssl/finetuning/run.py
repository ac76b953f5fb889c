"""From labelled scans to a segmenter: which cases, at what spacing, from which weights, and how good it became."""

from __future__ import annotations

import math
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from tqdm import tqdm

from ctssl.datasets.case import Case, Dataset, read_case
from ctssl.datasets.checks import check_problems, problems
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.seen import SEEN, seen_after, seen_by
from ctssl.datasets.splits import astride, count_folds
from ctssl.encoders.layers import widen
from ctssl.files.running import alone, clear_parts
from ctssl.finetuning.card import write_card
from ctssl.finetuning.loop import CHOOSING, fit
from ctssl.finetuning.plan import Plan, make_plan, training_range
from ctssl.finetuning.prepare import (
    Sides,
    Survey,
    choose_sides,
    name_labels,
    prepare_cases,
    sub_dataset,
    survey_cases,
    survey_warnings,
)
from ctssl.finetuning.report import WRITTEN, Facts, Judged, Report, judge, result_files
from ctssl.finetuning.request import Request, check_request, finished, identity_of
from ctssl.finetuning.settings import Settings
from ctssl.finetuning.start import Start, check_interpolation, check_model, mix, open_start, take_head
from ctssl.finetuning.threshold import choose_threshold
from ctssl.hub.provenance import facts as metadata_of
from ctssl.inference.masks import onto, plan, probabilities_of
from ctssl.inference.windows import MEMORY_GB
from ctssl.loading import choose_device, device_name, segmenter
from ctssl.precision import deterministic
from ctssl.volume.grids import prepare
from ctssl.zoo import START, Preprocess, beside

PATIENCE = timedelta(days=1)  # for which the other devices wait while the first one judges whole scans


def finetune(
    data: str | os.PathLike | None = None,
    *,
    out: str | os.PathLike,
    model: Any = START,
    images: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    roi: str | None = None,
    head: str = "",
    hold_out: float | list[str] | None = None,
    few_shot: int | None = None,
    folds: int | str | os.PathLike | None = None,
    fold: int = 0,
    spacing_mm: float | None = None,
    window_hu: tuple[float, float] | None = None,
    channel_windows: list[tuple[float, float]] | None = None,
    names: dict[int, str] | None = None,
    settings: Settings | None = None,
    from_scratch: bool = False,
    device: str = "auto",
    max_memory_gb: float = MEMORY_GB,
    overwrite: bool = False,
    keep: bool = False,
    progress: bool = True,
) -> Report:
    """Train a segmenter on labelled scans, and score it on held-out cases, whole and on their own grid.

    Args:
        data: folder or CSV in a layout that `ctssl.datasets.find_cases` knows; or give `images` and `labels`
            apart.
        roi: the structure to learn, where RTSTRUCT or SEG files hold several.
        out: folder for the segmenter (`ctssl.load_segmenter(out)`). Called again, an interrupted training
            goes on.
        model: starting weights: a name, folder or repository for `ctssl.load`, an encoder, or a baseline:
            `swin-scratch`, `vit-scratch` (the published encoders, untrained) or `dynunet` (nnU-Net's network). A
            segmenter brings its head too.
        head: key of `ctssl.heads.HEADS`; "" is the head that the model brings, otherwise `light`.
        hold_out: share of the patients to hold out (drawn by `settings.seed`), or names of cases; 0 trains on
            all. None: the cases that a column `split` calls test (those it calls val are the validation set),
            or a fifth.
        few_shot: train on this many patients only, drawn by `settings.seed`; the held-out cases stay the same.
        folds, fold: hold out fold number `fold` of `folds` equal parts of the patients instead, or of the folds in
            nnU-Net's `splits_final.json`.
        spacing_mm: working spacing in mm. None: a tenth of the median tumour's diameter, between the scans'
            own and twice the encoder's.
        window_hu: window in HU, `(low, high)`. None: what 99% of the labelled voxels are and a quarter of that
            more on either side; the model's own for `freeze`, and where the model brings its head.
        channel_windows: of cases with several channels, `(low, high)` of each beside the CT, in its own units. None: as
            for `window_hu`.
        names: of the labels, `{1: "tumour"}`.
        from_scratch: use initial weights, to see what the pretrained ones are worth.
        max_memory_gb: memory limit in GB for segmenting a held-out scan.
        overwrite: replace a finished segmenter in `out`.
        keep: where `out` holds the segmenter of this very request (starting weights, cases, settings), return
            its report and do nothing.

    Raises:
        FileNotFoundError: data or model are missing.
        FileExistsError: `out` holds something that would be replaced, or another process is at work there.
        ValueError: data or arguments cannot be used; before any training.
        KeyboardInterrupt: SIGINT or SIGTERM came; the state is kept, and the same call goes on.
    """
    request = Request(
        Path(out),
        model,
        settings or Settings(),
        head=head,
        hold_out=hold_out,
        few_shot=few_shot,
        folds=folds,
        fold=fold,
        spacing_mm=spacing_mm,
        window_hu=window_hu,
        channel_windows=channel_windows,
        names=names,
        from_scratch=from_scratch,
        device=device,
        max_memory_gb=max_memory_gb,
        overwrite=overwrite,
        keep=keep,
        progress=progress,
    )
    check_request(request)
    check_model(model)
    return run(request, find_cases(data, images=images, labels=labels, roi=roi))


def run(request: Request, dataset: Dataset, *, survey: Survey | None = None) -> Report:
    """Carry out a request; see `finetune`. `survey`: of all cases, where it was made before."""
    rank, device = join_devices(request.device)
    request = request if rank == 0 else replace(request, progress=False)
    job = prepare_job(request, dataset, survey)
    if report := finished(request, job.identity):
        return report
    say = tqdm.write if request.progress else (lambda _: None)
    say(job.describe())
    learning, validating = prepare_scans(job)
    net = build_network(job)
    with ExitStack() as stack:
        stack.enter_context(deterministic(enabled=job.settings.deterministic))
        if rank == 0:
            stack.enter_context(alone(request.unfinished))  # from here on the folder is ours
            clear_parts(request.out)
            clear_parts(request.unfinished)
        report = train(net.to(device), learning, validating, job, rank=rank)
    if dist.is_initialized():
        dist.barrier()
    return report


def train(net: Any, learning: list[Any], validating: list[Any], job: Job, *, rank: int) -> Report:
    """Train a network on its device, judge it, and (the first device) write it."""
    request, device = job.request, device_name(next(net.parameters()).device)
    scoring = (
        judging_seconds(net, job) if rank == 0 else 0.0
    )  # the first device decides how many steps there are
    before = {k: v.clone() for k, v in net.state_dict().items()} if job.settings.interpolate else {}
    began = time.monotonic()
    curve = fit(
        net,
        learning,
        validating,
        job.settings,
        folder=request.unfinished,
        identity=job.identity,
        from_scratch=job.start.from_scratch,
        reserve=scoring,
        progress=request.progress,
    )
    seconds = time.monotonic() - began
    if before:
        mix(net, before, job.settings.interpolate)
    net.eval()
    judged: dict[str, Judged] = {}
    if rank == 0:
        net.threshold = choose_threshold(net, validating, progress=request.progress)
        judged = judge_cases(net, job)
    report = report_of(job, judged, curve, seconds)
    if rank == 0:
        save(net.cpu(), job, report, judged, device=device)
    return report


def finetune_folds(request: Request, dataset: Dataset) -> list[Report]:
    """Train a segmenter for every fold, each into `out/foldI`, from one survey of the cases.

    Folds that are finished are kept; call it again to go on. `out/folds.json` gets the summary.

    Args:
        request: with `folds`; `fold` and `keep` are set here.
        dataset: all cases.
    """
    from ctssl.finetuning.folds import save_folds

    check_request(request)
    if not request.folds:
        raise ValueError("folds: give the number of folds, at least 2")
    requests = [
        replace(request, fold=i, out=request.out / f"fold{i}", keep=not request.overwrite)
        for i in range(count_folds(request.folds))
    ]
    for one in requests:
        check_request(one)
        choose_sides(dataset.cases, one)
    survey = _survey(request, dataset, dataset.cases)
    reports = [run(one, dataset, survey=survey) for one in requests]
    if join_devices(request.device)[0] == 0:
        save_folds(request.out / "folds.json", reports)
    return reports


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

    def describe(self) -> str:
        """The plan, for people, before any training."""
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
    if request.folds is None and request.hold_out is None and astride(dataset.cases):
        check_problems(problems(dataset, progress=request.progress), len(dataset.cases))
    sides = choose_sides(dataset.cases, request)
    cases = [*sides.training, *sides.held_out]
    start = open_start(
        request.model, request.head, from_scratch=request.from_scratch, seed=request.settings.seed
    )
    survey = survey or _survey(request, dataset, cases, start)
    own = start.spec.preprocess
    kept = request.settings.freeze or start.segmenter is not None  # what is trained already knows this window
    window = request.window_hu or (own.window_hu if kept else None)
    channels = check_channels(request, dataset, start)
    made = make_plan(
        # one plan for all folds, as nnU-Net makes it, so that their models can be averaged
        [survey.structures[case.name] for case in (cases if request.folds else sides.training)],
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
    """Return the windows of a model's channels where they are those of the cases: of the same names, or without names."""
    names = tuple(channel.name for channel in own.channels)
    nameless = any(name.startswith("channel ") for name in (*names, *channels))
    same = names == channels or (nameless and len(names) == len(channels))
    return [(low, high) for _, low, high in own.channels] if same else None


def check_channels(request: Request, dataset: Dataset, start: Start) -> tuple[str, ...]:
    """Return the names of the channels beside the CT. Raises `ValueError` for what cannot be done with them."""
    given, count = request.channel_windows, len(dataset.channels)
    have = start.encoder.config.get("in_channels", 1)
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


def _survey(request: Request, dataset: Dataset, cases: list[Case], start: Start | None = None) -> Survey:
    """Read the cases once, against what the starting weights have seen."""
    if start is None:
        start = open_start(
            request.model, request.head, from_scratch=request.from_scratch, seed=request.settings.seed
        )
    return survey_cases(
        sub_dataset(dataset, cases, request.names),
        seen=seen_by(start.folder),
        model=str(request.model),
        whole=request.few_shot is None,
        progress=request.progress,
    )


def prepare_scans(job: Job) -> tuple[list[Any], list[Any]]:
    """Bring the training cases, and those for validation, onto the working grid.

    Raises `ValueError` where nothing is labelled.
    """
    preprocess, settings = job.plan.preprocess, job.settings
    if not job.survey.labels(job.sides.learning):
        raise ValueError(f"all {len(job.sides.learning)} masks are empty: nothing to learn from")
    cases = (job.survey.records.cases[case.name] for case in job.sides.learning)
    if settings.empty and all(case.labels for case in cases):
        raise ValueError(
            f"empty={settings.empty:g}, but no training case has an empty mask; add scans of healthy people with masks of "
            "zeros, or leave it out"
        )
    learning = prepare_cases(
        job.sides.learning,
        preprocess,
        copies=settings.shift_augment,
        seed=settings.seed,
        progress=job.request.progress,
    )
    return learning, prepare_cases(job.sides.validating, preprocess, progress=job.request.progress)


def build_network(job: Job) -> Any:
    """Put the head on the encoder. Raises `ValueError` for held-out scans that memory is too small for: now,
    not after hours of work."""
    names = name_labels(job.request.names, job.dataset.names, job.survey.labels(job.sides.training))
    classes = 1 + (len(names) if names else max(job.survey.labels(job.sides.training)))
    encoder = widen(job.start.encoder, 1 + len(job.plan.preprocess.channels))
    encoder.spec = replace(job.start.spec, preprocess=job.plan.preprocess)
    torch.manual_seed(job.settings.seed)
    net = segmenter(encoder, head=job.start.head, classes=classes, labels=names, window=job.plan.crop)
    take_head(net, job.start)
    if job.settings.interpolate:
        check_interpolation(net, job.start)
    net.parent = "" if job.start.from_scratch else job.start.name
    for case in job.sides.held_out:
        plan(net, job.survey.records.cases[case.name].grid, job.request.max_memory_gb)
    return net


def judge_cases(net: Any, job: Job) -> dict[str, Judged]:
    """Segment and score the held-out cases, each on its own grid."""
    cases = job.sides.held_out
    bar = tqdm(cases, desc="held-out cases", disable=not job.request.progress or not cases)
    return {case.name: judge_case(net, job, case) for case in bar}


def judge_case(net: Any, job: Job, case: Case) -> Judged:
    """Segment and score one case on its own grid."""
    scan, truth = read_case(case)
    slices = plan(net, scan, job.request.max_memory_gb)
    found, affine = probabilities_of(net, prepare(scan, job.plan.preprocess))
    array = onto(found, affine, scan, slices, threshold=net.threshold)
    return judge(replace(scan, array=array, extra=()), truth, scan, judged_labels(net.labels, job))


def judging_seconds(net: Any, job: Job) -> float:
    """Estimate how long it takes to score the held-out cases, from the smallest of them; 0 where the training is
    measured in steps."""
    if not job.settings.minutes or not job.sides.held_out:
        return 0.0
    sizes = {
        case.name: math.prod(job.survey.records.cases[case.name].grid.shape) for case in job.sides.held_out
    }
    smallest = min(job.sides.held_out, key=lambda case: sizes[case.name])
    began = time.monotonic()
    judge_case(net, job, smallest)
    return (time.monotonic() - began) * sum(sizes.values()) / sizes[smallest.name]


def judged_labels(labels: dict[int, str], job: Job) -> dict[int, str]:
    """Return the labels of a network that any case has: nothing can be said of the others."""
    known = job.survey.labels([*job.sides.training, *job.sides.held_out])
    return {k: name for k, name in labels.items() if k in known}


def report_of(job: Job, judged: dict[str, Judged], curve: list[dict[str, float]], seconds: float) -> Report:
    """Sum up a training, with what is suspicious about cases and result."""
    learned = job.survey.labels(job.sides.training)
    warnings = survey_warnings(job.survey, job.sides)
    warnings += [
        f"label {k}: only held-out cases have it, so it is neither learned nor judged"
        for k in sorted(job.survey.labels(job.sides.held_out) - learned - set(job.dataset.names))
    ]
    validating = [case.name for case in job.sides.validating]
    if 0 < len(validating) < CHOOSING:
        warnings.append(
            f"{len(validating)} validation cases are too few to choose weights by: the last ones were kept"
        )
    report = Report(
        job.request.out,
        {name: one.dsc for name, one in judged.items()},
        [case.name for case in job.sides.training],
        validating,
        curve,
        seconds,
        warnings,
    )
    if not report.learned:
        warnings.append(
            "NOTHING WAS LEARNED: every measured DSC is 0.000. Train longer (--steps, --minutes), check the "
            "masks (ctssl check), and try smaller crops (--crop) or a finer spacing (--spacing)"
        )
    return report


def save(net: Any, job: Job, report: Report, judged: dict[str, Judged], *, device: str) -> None:
    """Write the segmenter and everything beside it, and remove the state of the training. `device`: it was trained on."""
    request, start, pre = job.request, job.start, job.plan.preprocess
    facts = Facts(
        train=report.train,
        data=job.content,
        validated=report.validated,
        model=start.name,
        from_scratch=start.from_scratch,
        head=start.head,
        spacing_mm=pre.spacing_mm,
        window_hu=pre.window_hu,
        channels=pre.channels,
        threshold=net.threshold,
        device=device,
    )
    labels = judged_labels(net.labels, job)
    files = result_files(report, judged, facts, job.settings, labels=labels, identity=job.identity)
    files["README.md"] = write_card(report, judged, facts, job.settings, labels, list(files))
    before = seen_by(start.folder)
    hashes = [job.survey.records.cases[case.name].scan_hash for case in job.sides.training]
    files[SEEN] = seen_after(before, hashes, salt=job.survey.salt)
    net.training_range = training_range(
        [job.survey.structures[case.name] for case in job.sides.training], net.labels
    )
    net.save_pretrained(request.out, overwrite=True, extra=files, metadata=_metadata(report, job, facts))
    for name in set(WRITTEN) - set(files):  # of the model that was there before
        (request.out / name).unlink(missing_ok=True)
    shutil.rmtree(request.unfinished, ignore_errors=True)


def _metadata(report: Report, job: Job, facts: Facts) -> dict[str, str]:
    """The metadata of the segmenter: its recipe, its cases (a hash of their names), its starting weights, and
    how good it is."""
    settings, spec = job.settings, job.start.spec
    steps = report.curve[-1]["step"] if report.curve else settings.steps if settings.minutes is None else None
    world = dist.get_world_size() if dist.is_initialized() else 1
    recipe = {key: asdict(facts)[key] for key in ("head", "spacing_mm", "window_hu", "from_scratch")}
    parent = f"{facts.model} sha256:{spec.sha256}" if spec.sha256 else facts.model
    told = metadata_of(
        recipe={**asdict(settings), **recipe},
        manifest=report.train,
        parent="" if facts.from_scratch else parent,
        pretext=spec.pretext,
        licence=spec.licence,
        samples="" if steps is None else int(steps) * settings.batch * world,
    )
    if report.held_out:
        told |= {"held_out": str(len(report.held_out)), "mean_dsc": f"{report.mean_dsc:.3f}"}
    return told | {"cases": str(len(report.train))}


def join_devices(device: str) -> tuple[int, torch.device]:
    """Return this process's rank (0 unless torchrun started several) and its device."""
    where, local = choose_device(device), int(os.environ.get("LOCAL_RANK", 0))
    if where.type == "cuda":
        where = torch.device("cuda", local if where.index is None else where.index)
        torch.cuda.set_device(where)  # what NCCL takes for objects
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    return dist.get_rank() if dist.is_initialized() else 0, where
