"""From labelled scans to a segmenter: `finetune`, one training, and a training for each fold."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import distributed as dist
from tqdm import tqdm

from ctssl.datasets.case import Dataset
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.splits import count_folds
from ctssl.devices import device_name, join_devices
from ctssl.files.running import clear_parts, only_process
from ctssl.finetuning.finish import judge_cases, judging_seconds, report_of, save
from ctssl.finetuning.job import (
    Job,
    build_network,
    few_patients,
    lost_labels,
    prepare_job,
    prepare_scans,
    survey_of,
)
from ctssl.finetuning.loop import fit
from ctssl.finetuning.prepare import Survey, choose_sides
from ctssl.finetuning.report import Judged, Report
from ctssl.finetuning.request import Request, check_request, finished
from ctssl.finetuning.settings import Settings
from ctssl.finetuning.start import check_model, mix
from ctssl.finetuning.threshold import choose_threshold
from ctssl.inference.windows import MEMORY_GB
from ctssl.precision import deterministic
from ctssl.zoo import DEFAULT


def finetune(
    data: str | os.PathLike | None = None,
    *,
    out: str | os.PathLike,
    model: Any = DEFAULT,
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
        window_hu: window in HU, `(low, high)`. None: the range of 99% of the labelled voxels, widened by a quarter on
            either side; the model's own for `freeze`, and where the model brings its head.
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
    lost = [*few_patients(job), *lost_labels(job, learning)]
    for note in lost:
        say(f"warning: {note}")
    net = build_network(job)
    with ExitStack() as stack:
        stack.enter_context(deterministic(enabled=job.settings.deterministic))
        if rank == 0:
            stack.enter_context(only_process(request.unfinished))  # from here on the folder is ours
            clear_parts(request.out)
            clear_parts(request.unfinished)
        report = train_and_save(net.to(device), learning, validating, job, rank=rank, lost=lost)
    if dist.is_initialized():
        dist.barrier()
    return report


def train_and_save(
    net: Any, learning: list[Any], validating: list[Any], job: Job, *, rank: int, lost: list[str]
) -> Report:
    """Train a network on its device, judge it, and (the first device) write it. `lost`: see `lost_labels`."""
    request, device = job.request, device_name(next(net.parameters()).device)
    scoring = (
        judging_seconds(net, job) if rank == 0 else 0.0
    )  # the first device decides how many steps there are
    before = {k: v.clone() for k, v in net.state_dict().items()} if job.settings.interpolate else {}
    done = fit(
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
    if before:
        mix(net, before, job.settings.interpolate)
    net.eval()
    judged: dict[str, Judged] = {}
    if rank == 0:
        net.threshold = choose_threshold(net, validating, progress=request.progress)
        judged = judge_cases(net, job)
    report = report_of(job, judged, done.curve, done.seconds, lost)
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
    summary = request.out / "folds.json"
    if summary.exists() and not request.overwrite and not (request.out / "fold0").exists():
        raise FileExistsError(
            f"{summary} is not of an earlier call and would be replaced; choose another folder (--out)"
        )
    requests = [
        replace(request, fold=i, out=request.out / f"fold{i}", keep=not request.overwrite)
        for i in range(count_folds(request.folds))
    ]
    for one in requests:
        check_request(one)
        choose_sides(dataset.cases, one)
    survey = survey_of(request, dataset, dataset.cases)
    reports = [run(one, dataset, survey=survey) for one in requests]
    if join_devices(request.device)[0] == 0:
        save_folds(summary, reports)
    return reports
