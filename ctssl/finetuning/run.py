"""From labelled scans to a segmenter: which cases, at what spacing, from which weights, and how good it
became."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from ctssl.finetuning.outcome import WRITTEN, Judged, files, judge
from torch import distributed as dist
from torch import nn
from tqdm import tqdm

from ctssl.datasets.case import Case, Dataset, read_case
from ctssl.datasets.checks import problems, refuse
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.seen import SEEN, seen_after, seen_by
from ctssl.datasets.splits import astride, part, validation
from ctssl.finetuning.loop import fit
from ctssl.finetuning.plan import plan
from ctssl.finetuning.prepare import named, prepare_cases, sides, survey
from ctssl.finetuning.report import Report
from ctssl.finetuning.request import content_of, finished, refuse_request, request
from ctssl.finetuning.settings import Settings
from ctssl.finetuning.start import BASELINES, fresh, start
from ctssl.finetuning.threshold import choose
from ctssl.hub.provenance import facts as metadata_of
from ctssl.hub.provenance import fingerprint_of
from ctssl.inference.masks import plan as room_for
from ctssl.inference.masks import segment
from ctssl.inference.windows import MEMORY_GB, Windows
from ctssl.loading import choose_device, segmenter
from ctssl.zoo import ModelSpec

PATIENCE = timedelta(days=1)  # for which the other devices wait while the first one judges whole scans
RECIPE = ("head", "spacing_mm", "window_hu", "from_scratch")  # beside the settings


def finetune(
    data: str | os.PathLike | None = None,
    *,
    out: str | os.PathLike,
    model: Any = "swin-wild-mim",
    images: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    roi: str | None = None,
    head: str = "light",
    hold_out: float | list[str] | None = None,
    few_shot: int | None = None,
    folds: int | None = None,
    fold: int = 0,
    spacing_mm: float | None = None,
    window_hu: tuple[float, float] | None = None,
    names: dict[int, str] | None = None,
    settings: Settings | None = None,
    from_scratch: bool = False,
    device: str = "auto",
    max_memory_gb: float = MEMORY_GB,
    overwrite: bool = False,
    keep: bool = False,
    progress: bool = True,
) -> Report:
    """Train a segmenter on labelled scans, and score it on cases it has not seen, whole and on their own grid.

    Args:
        data: folder or CSV in a layout that `ctssl.datasets.find_cases` knows; or give `images` and `labels`
            apart.
        roi: the structure to learn, where RTSTRUCT or SEG files hold several.
        out: folder for the segmenter (`ctssl.load_segmenter(out)`). Started again, an interrupted training
            goes on.
        model: a name, folder or repository for `ctssl.load`, an encoder, or a baseline: `swin-scratch`,
            `vit-scratch` (the published encoders, untrained) or `dynunet` (nnU-Net's network), under the same
            recipe.
        hold_out: share of the patients to hold out (drawn by `settings.seed`), or names of cases; 0 trains on
            all. None: what the table's column `split` calls test (then what it calls val chooses the
            weights), or a fifth.
        few_shot: train on so many of the patients only, drawn by `settings.seed`; the held-out cases stay the
            same.
        folds, fold: hold out part `fold` of `folds` equal parts of the patients instead.
        spacing_mm: at which the segmenter works. None: a tenth of the median tumour's diameter, between the
            scans' own and twice the encoder's (and `settings.crop` follows from both).
        window_hu: from which to which HU it sees contrast, `(low, high)`. None: what 99% of the labelled
            voxels are and a quarter of that more on either side; the encoder's own for `freeze`.
        names: of the labels, `{1: "tumour"}`.
        from_scratch: forget the pretrained weights, to see what they are worth.
        max_memory_gb: that segmenting a held-out scan may take.
        overwrite: replace a finished segmenter in `out`.
        keep: where `out` holds the segmenter of this very request (encoder, cases, settings), return its
            report and do nothing.

    Raises `ValueError` or `FileNotFoundError` for data that cannot be used, before any training.
    """
    settings, out = settings or Settings(), Path(out)
    refuse_request(
        out,
        overwrite=overwrite or keep,
        head=head,
        folds=folds,
        hold_out=hold_out,
        spacing_mm=spacing_mm,
        window_hu=window_hu,
    )
    rank, where = device_of(device)
    progress = progress and rank == 0
    dataset = find_cases(data, images=images, labels=labels, roi=roi)
    chosen = part(dataset.cases, folds, fold, settings.seed) if folds else hold_out
    if chosen is None and astride(dataset.cases):
        refuse(problems(dataset, progress=progress), len(dataset.cases))  # everything that is wrong, at once
    train, held, told = sides(dataset.cases, chosen, few_shot, settings.seed)
    encoder, origin, head = start(model, head)
    from_scratch = from_scratch or origin in BASELINES
    known = encoder.spec or ModelSpec("", "encoder", encoder.architecture)
    how = asdict(replace(settings, save_minutes=0.0))  # which changes nothing
    weights = known.sha256 or (origin if origin in BASELINES else fingerprint_of(encoder))
    content = content_of([*train, *held])
    asked = request(
        train,
        held,
        weights,
        data=content,
        validated=told,
        settings=how,
        head=head,
        spacing_mm=spacing_mm,
        window_hu=window_hu,
        names=names,
        from_scratch=from_scratch,
    )
    if keep and (kept := finished(out, asked, overwrite=overwrite)):
        return kept
    parent = None if from_scratch or isinstance(model, nn.Module) else model
    before = seen_by(parent)
    salt = before.get("salt", out.resolve().name)
    found = survey(
        Dataset([*train, *held], names or dataset.names),
        held,
        whole=few_shot is None,
        model=parent,
        salt=salt,
        progress=progress,
    )
    if settings.freeze:  # what it was trained on
        window_hu = window_hu or known.preprocess.window_hu
    preprocess, crop = plan(
        [found.tumours[case.name] for case in train],
        known.preprocess,
        spacing_mm=spacing_mm,
        window_hu=window_hu,
        crop=settings.crop,
    )
    settings = replace(settings, crop=crop, batch=settings.batch or max(1, round(4 * (64 / crop) ** 2)))
    encoder.spec = replace(known, preprocess=preprocess)
    judges = told or validation(train, settings.validation, settings.seed)
    taught, judging = ([case for case in train if (case.name in judges) == side] for side in (False, True))
    learn, classes = prepare_cases(
        taught, preprocess, copies=settings.shift_augment, seed=settings.seed, progress=progress
    )
    test, more = prepare_cases(judging, preprocess, progress=progress)
    if classes == 1:
        raise ValueError(f"all {len(taught)} masks are empty: nothing to learn from")
    names, classes = named(names, dataset.names, max(classes, more))
    if from_scratch:
        encoder = fresh(encoder, settings.seed)
    torch.manual_seed(settings.seed)
    net = segmenter(encoder, head=head, classes=classes, labels=names, window=settings.crop)
    net.parent = "" if from_scratch else origin
    for case in [*held, *judging]:  # what will be segmented whole: now, not after hours of work
        room_for(net, found.grids[case.name], max_memory_gb)
    unheard = [
        f"label {k}: only held-out cases have it, so it is neither learned nor judged"
        for k in sorted(found.labels - set(net.labels))
    ]
    began = time.monotonic()
    facts = {
        "train": [c.name for c in train],
        "data": content,
        "validated": judges,
        "model": origin,
        "from_scratch": from_scratch,
        "head": head,
        "spacing_mm": preprocess.spacing_mm,
        "window_hu": list(preprocess.window_hu),
    }
    (out / ".unfinished").mkdir(parents=True, exist_ok=True)  # from here on the folder is ours
    curve = fit(
        net.to(where), learn, test, settings, unfinished=out / ".unfinished", facts=facts, progress=progress
    )
    seconds = time.monotonic() - began
    net.eval()
    if rank == 0:
        net.threshold = facts["threshold"] = choose(
            net, judging, [mask for _, mask in test], progress=progress
        )
    judgeable = {
        k: name for k, name in net.labels.items() if k in found.labels
    }  # nothing can be said of what nobody has
    judged = (
        judged_cases(net, held, judgeable, max_memory_gb=max_memory_gb, progress=progress)
        if rank == 0
        else {}
    )
    scores = {name: one.dsc for name, one in judged.items()}
    report = Report(out, scores, facts["train"], judges, curve, seconds, found.doubts + unheard)
    if rank == 0:
        extra = files(
            report,
            judged,
            settings,
            facts,
            cases={case.name: case for case in held},
            labels=judgeable,
            asked=asked,
        )
        extra[SEEN] = seen_after(before, [found.hashes[case.name] for case in train], salt=salt)
        net.cpu().save_pretrained(
            out, overwrite=True, extra=extra, metadata=provenance(report, known, facts, settings)
        )
        for name in set(WRITTEN) - set(extra):  # of the model that was there before
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / ".unfinished", ignore_errors=True)
    if dist.is_initialized():
        dist.barrier()
    return report


def provenance(
    report: Report, parent: ModelSpec, facts: dict[str, Any], settings: Settings
) -> dict[str, str]:
    """The metadata of the segmenter: its recipe, its cases (a hash of their names), its parent, and how good
    it is."""
    steps = report.curve[-1]["step"] if report.curve else settings.steps if settings.minutes is None else None
    world = dist.get_world_size() if dist.is_initialized() else 1
    scratch = facts["from_scratch"]
    found = metadata_of(
        recipe={**asdict(settings), **{key: facts[key] for key in RECIPE}},
        manifest=report.train,
        parent=""
        if scratch
        else f"{facts['model']} sha256:{parent.sha256}"
        if parent.sha256
        else facts["model"],
        pretext="" if scratch else parent.pretext,
        licence="" if scratch else parent.licence,
        samples="" if steps is None else int(steps) * settings.batch * world,
    )
    judged = (
        {"held_out": str(len(report.held_out)), "mean_dsc": f"{report.mean_dsc:.3f}"}
        if report.held_out
        else {}
    )
    return found | {"cases": str(len(report.train))} | judged


def device_of(device: str) -> tuple[int, torch.device]:
    """This process's rank (0 unless torchrun started several) and its device."""
    where, local = choose_device(device), int(os.environ.get("LOCAL_RANK", 0))
    if where.type == "cuda":
        where = torch.device("cuda", local if where.index is None else where.index)
        torch.cuda.set_device(where)  # what NCCL takes for objects
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    return dist.get_rank() if dist.is_initialized() else 0, where


def judged_cases(
    net: Any, cases: list[Case], labels: dict[int, str], *, max_memory_gb: float, progress: bool
) -> dict[str, Judged]:
    """What the segmenter says of these labels in each held-out case, on the case's own grid."""
    found = {}
    for case in tqdm(cases, desc="held-out cases", disable=not progress or not cases):
        scan, mask = read_case(case)
        found[case.name] = judge(segment(net, scan, Windows(max_memory_gb=max_memory_gb)), mask, labels)
    return found
