"""From labelled scans to a segmenter: which cases, at what spacing, from which weights, and how good it became."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed as dist
from torch import nn
from tqdm import tqdm

from ctssl.datasets.case import Case, Dataset, read_case
from ctssl.datasets.checks import Problem, problems, refuse
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.seen import SEEN, seen_after, seen_by
from ctssl.datasets.splits import astride, divide, few, part, side_of, validation
from ctssl.encoders import ENCODERS
from ctssl.encoders.pixels import Pixels
from ctssl.files.atomic import file_sha256
from ctssl.files.text import read_json
from ctssl.fitting import Settings, fit
from ctssl.heads import HEADS
from ctssl.hub.client import WEIGHTS
from ctssl.hub.provenance import facts as metadata_of
from ctssl.hub.provenance import fingerprint_of
from ctssl.inference.masks import segment
from ctssl.inference.memory import MEMORY_GB
from ctssl.inference.memory import plan as room_for
from ctssl.lint import check
from ctssl.loading import device_named, load, segmenter
from ctssl.outcome import WRITTEN, Judged, files, judge
from ctssl.planning import Tumours, measure, plan
from ctssl.shifts.copies import shifted_copies
from ctssl.thresholds import choose
from ctssl.volume.grids import prepare, resample
from ctssl.volume.volume import Volume, voxel_hash
from ctssl.zoo import ModelSpec, Preprocess, info, list_models

BASELINES: dict[str, Callable[[], Any]] = {
    "swin-scratch": lambda: published("swin"),
    "vit-scratch": lambda: published("vit"),
    "dynunet": Pixels,
}
"""What can be trained without any pretraining, by name."""
PATIENCE = timedelta(days=1)  # for which the other devices wait while the first one judges whole scans
RECIPE = ("head", "spacing_mm", "window_hu", "from_scratch")  # beside the settings


@dataclass(frozen=True)
class Report:
    """What came out: the folder of the segmenter, the DSC of every held-out case for every label, and how it got there.

    `curve`: step, loss and (with validation cases) their DSC at each evaluation; `validated`: the patients' cases that chose
    the weights; `warnings`: what is doubtful about the cases.
    """

    folder: Path
    held_out: dict[str, dict[str, float]]
    train: list[str]
    validated: list[str]
    curve: list[dict[str, float]]
    seconds: float
    warnings: list[str] = field(default_factory=list)

    @property
    def mean_dsc(self) -> float:
        """Mean over held-out cases of each case's mean over labels; NaN when none was held out."""
        return (
            float(np.mean([np.mean(list(case.values())) for case in self.held_out.values()]))
            if self.held_out
            else math.nan
        )


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
        data: folder or CSV in a layout that `ctssl.datasets.find_cases` knows; or give `images` and `labels` apart.
        roi: the structure to learn, where RTSTRUCT or SEG files hold several.
        out: folder for the segmenter (`ctssl.load_segmenter(out)`). Started again, an interrupted training goes on.
        model: a name, folder or repository for `ctssl.load`, an encoder, or a baseline: `swin-scratch`, `vit-scratch` (the
            published encoders, untrained) or `dynunet` (nnU-Net's network), under the same recipe.
        hold_out: share of the patients to hold out (drawn by `settings.seed`), or names of cases; 0 trains on all. None: what the
            table's column `split` calls test (then what it calls val chooses the weights), or a fifth.
        few_shot: train on so many of the patients only, drawn by `settings.seed`; the held-out cases stay the same.
        folds, fold: hold out part `fold` of `folds` equal parts of the patients instead.
        spacing_mm: at which the segmenter works. None: a tenth of the median tumour's diameter, between the scans' own
            and twice the encoder's (and `settings.crop` follows from both).
        window_hu: from which to which HU it sees contrast, `(low, high)`. None: what 99% of the labelled voxels are and a
            quarter of that more on either side; the encoder's own for `freeze`.
        names: of the labels, `{1: "tumour"}`.
        from_scratch: forget the pretrained weights, to see what they are worth.
        max_memory_gb: that segmenting a held-out scan may take.
        overwrite: replace a finished segmenter in `out`.
        keep: where `out` holds the segmenter of this very request (encoder, cases, settings), return its report and do nothing.

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
    known = encoder.spec or ModelSpec("", "encoder", type(encoder).__name__.lower())
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


def sides(
    cases: list[Case], hold_out: float | list[str] | None, few_shot: int | None, seed: int
) -> tuple[list[Case], list[Case], list[str]]:
    """Cases to train on and cases held out; and the names of those to train on that are to choose the weights, where the table
    says so (they come on top of the few of `few_shot`)."""
    train, held = divide(cases, hold_out, seed)
    told = [case for case in train if hold_out is None and case.split and side_of(case) == "val"]
    rest = [case for case in train if case not in told]
    if not rest:
        raise ValueError(
            f"all {len(told)} cases are to choose the weights (split val), and none is left to learn from"
        )
    rest = few(rest, few_shot, seed) if few_shot is not None else rest
    return rest + told, held, [case.name for case in told]


class Survey(NamedTuple):
    """Of every case: its tumours, the salted hash of its voxels, and its grid (a scan without voxels). The labels that occur, and
    what is doubtful."""

    tumours: dict[str, Tumours]
    hashes: dict[str, str]
    grids: dict[str, Volume]
    labels: set[int]
    doubts: list[str]


def survey(
    dataset: Dataset, held: list[Case], *, whole: bool, model: Any, salt: str, progress: bool
) -> Survey:
    """Read every case once. Raises for what is wrong."""
    tumours: dict[str, Tumours] = {}
    hashes: dict[str, str] = {}
    grids: dict[str, Volume] = {}
    there: set[int] = set()

    def look(case: Case, scan: Volume, mask: Volume, labels: set[int]) -> None:
        tumours[case.name], hashes[case.name] = measure(scan, mask), voxel_hash(scan, salt)
        grids[case.name] = replace(scan, array=np.broadcast_to(np.float32(0), scan.shape))
        there.update(labels)

    found = problems(dataset, model=model, whole=whole, progress=progress, look=look)
    refuse(found, len(dataset.cases))
    return Survey(tumours, hashes, grids, there, doubtful(found, {case.name for case in held}))


def content_of(cases: list[Case]) -> str:
    """A hash of the files of these cases, and of the structures that are taken from them."""
    digest = hashlib.sha256()
    for case in sorted(cases, key=lambda case: case.name):
        for path in (case.image, case.label):
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            digest.update("".join(file_sha256(file) for file in files if file.is_file()).encode())
        digest.update(f"{case.name} {case.roi} {case.series}".encode())
    return digest.hexdigest()


def request(train: list[Case], held: list[Case], encoder: str, **how: Any) -> dict[str, Any]:
    """What a segmenter follows from, as JSON has it: cases, encoder (by its weights, or the name of a baseline), and all else."""
    text = json.dumps(
        {
            "train": [case.name for case in train],
            "held_out": [case.name for case in held],
            "encoder": encoder,
            **how,
        }
    )
    return json.loads(text)


def finished(out: Path, asked: dict[str, Any], *, overwrite: bool) -> Report | None:
    """The report of a segmenter that an earlier call left, if it was the same request. Of another one: None if it may be
    overwritten, `FileExistsError` if not."""
    if not (out / WEIGHTS).exists() or not (out / "config.json").exists():
        return None
    found = read_json(out / "report.json") if (out / "report.json").exists() else {}
    before = found.get("asked") if isinstance(found, dict) else None
    if before == asked:
        return Report(
            out, *(found[key] for key in ("held_out", "train", "validated", "curve", "seconds", "warnings"))
        )
    if overwrite:
        return None
    other = sorted(key for key, value in asked.items() if before and before.get(key) != value)
    raise FileExistsError(
        f"{out} holds a model that was trained with another {' and '.join(other) or 'request'}; choose "
        "another --out, or overwrite it on purpose"
    )


def doubtful(found: list[Problem], held: set[str]) -> list[str]:
    """The warnings that concern a training: that an encoder has seen a scan matters for those it is judged on."""
    return [
        f"{p.case}: {p.message}"
        for p in found
        if p.level == "warning"
        and p.code != "unknown-pretraining"
        and (p.code != "pretrained" or p.case in held)
    ]


def refuse_request(
    out: Path,
    *,
    overwrite: bool,
    head: str,
    folds: int | None,
    hold_out: float | list[str] | None,
    spacing_mm: float | None,
    window_hu: tuple[float, float] | None,
) -> None:
    """Raise for what cannot be done, whatever the data."""
    if head not in HEADS:
        raise ValueError(f"no head is called {head!r}; there are {', '.join(sorted(HEADS))}")
    ours = (out / WEIGHTS).exists() and (out / "config.json").exists()
    if ours and not overwrite:
        raise FileExistsError(
            f"{out} holds a finished model; choose another --out, or overwrite it on purpose"
        )
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another --out")
    began = ours or (out / ".unfinished").is_dir()
    foreign = [name for name in ("config.json", WEIGHTS, *WRITTEN) if not began and (out / name).exists()]
    if foreign:
        raise FileExistsError(
            f"{out} holds a {foreign[0]} that is not of a model, and would be replaced; choose another --out"
        )
    if folds is not None and folds < 2:
        raise ValueError(f"folds={folds}: give at least 2")
    if folds is not None and hold_out is not None:
        raise ValueError("give folds or hold_out, not both")
    if spacing_mm is not None and not 0.1 <= spacing_mm <= 20:
        raise ValueError(
            f"spacing_mm={spacing_mm:g} is no spacing to work at; give 0.1 to 20 mm, or leave it out"
        )
    if window_hu is not None and not -math.inf < window_hu[0] < window_hu[1] < math.inf:
        raise ValueError(f"window_hu={window_hu}: give a lower and a higher HU, or leave the window out")


def provenance(
    report: Report, parent: ModelSpec, facts: dict[str, Any], settings: Settings
) -> dict[str, str]:
    """The metadata of the segmenter: its recipe, its cases (a hash of their names), its parent, and how good it is."""
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
    where, local = device_named(device), int(os.environ.get("LOCAL_RANK", 0))
    if where.type == "cuda":
        where = torch.device("cuda", local if where.index is None else where.index)
        torch.cuda.set_device(where)  # what NCCL takes for objects
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    return dist.get_rank() if dist.is_initialized() else 0, where


def start(model: Any, head: str) -> tuple[Any, str, str]:
    """The encoder to train, what it is called, and the head that belongs on it."""
    if isinstance(model, str) and model in BASELINES:
        return BASELINES[model](), model, model if model in HEADS else head
    encoder: Any = (
        copy.deepcopy(model) if isinstance(model, nn.Module) else load(model)
    )  # the caller's stays as it is
    return encoder, encoder.spec.name if encoder.spec else "", head


def named(
    given: dict[int, str] | None, found: dict[int, str], classes: int
) -> tuple[dict[int, str] | None, int]:
    """Names of the labels, and how many classes there are with the background."""
    if given and sorted(given) != list(range(1, classes)):
        raise ValueError(f"names for labels {sorted(given)}, but the masks hold labels 1..{classes - 1}")
    if given or not found:
        return given, classes
    classes = max(classes, max(found) + 1)
    return {k: found.get(k, f"class {k}") for k in range(1, classes)}, classes


def published(kind: str) -> Any:
    """An encoder of the shape that is published, untrained."""
    name = next(name for name in list_models() if info(name).kind == "encoder" and info(name).encoder == kind)
    return ENCODERS[kind](**info(name).encoder_args)


def fresh(encoder: Any, seed: int) -> Any:
    """An encoder of the same shape with initial weights, for the same kind of input."""
    torch.manual_seed(seed)
    untrained = type(encoder)(**encoder.config)
    untrained.spec = encoder.spec
    return untrained


def prepare_cases(
    cases: list[Case], preprocess: Preprocess, *, progress: bool, copies: int = 0, seed: int = 0
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """(image 0..1 float16, labels uint8) of each case and its shifted copies on the model's grid; the number of classes."""
    done, top = [], 0
    for number, case in enumerate(tqdm(cases, desc="preparing scans", disable=not progress)):
        scan, mask = read_case(case)
        image = prepare(check(scan), preprocess)
        labels = onto_grid(mask, image)
        images = [image, *(prepare(c, preprocess) for c in shifted_copies(scan, copies, seed=seed + number))]
        done += [(one.array.astype(np.float16), labels) for one in images]
        top = max(top, int(mask.array.max()))
    return done, top + 1


def onto_grid(mask: Volume, grid: Volume) -> np.ndarray:
    """Labels on another grid, each voxel the label that fills most of it."""
    classes = int(mask.array.max()) + 1
    shares = np.stack(
        [
            resample(mask.array == k, mask.affine, grid.shape, grid.affine, fill=float(k == 0))
            for k in range(classes)
        ]
    )
    return shares.argmax(0).astype(np.uint8)


def judged_cases(
    net: Any, cases: list[Case], labels: dict[int, str], *, max_memory_gb: float, progress: bool
) -> dict[str, Judged]:
    """What the segmenter says of these labels in each held-out case, on the case's own grid."""
    found = {}
    for case in tqdm(cases, desc="held-out cases", disable=not progress or not cases):
        scan, mask = read_case(case)
        found[case.name] = judge(segment(net, scan, max_memory_gb=max_memory_gb), mask, labels)
    return found
