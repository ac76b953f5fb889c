"""What follows the last step of a training: held-out cases are judged, the report is made, the folder written.

`judging_seconds` is asked before the first one, since the judging counts towards the minutes.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import asdict
from typing import Any

from tqdm import tqdm

from ctssl.datasets.case import Case
from ctssl.datasets.seen import SEEN, seen_after, seen_by
from ctssl.devices import rank_and_world
from ctssl.finetuning.card import write_card
from ctssl.finetuning.job import Job
from ctssl.finetuning.loop import CHOOSING
from ctssl.finetuning.plan import training_range
from ctssl.finetuning.prepare import survey_warnings
from ctssl.finetuning.report import WRITTEN, Facts, Judged, Report, judge, result_files
from ctssl.hub.provenance import facts as metadata_of
from ctssl.inference.masks import onto, probabilities_of, slices_within_memory
from ctssl.volume.grids import prepare


def judge_cases(net: Any, job: Job) -> dict[str, Judged]:
    """Segment and score the held-out cases, each on its own grid."""
    cases = job.sides.held_out
    bar = tqdm(cases, desc="held-out cases", disable=not job.request.progress or not cases)
    return {case.name: judge_case(net, job, case) for case in bar}


def judge_case(net: Any, job: Job, case: Case) -> Judged:
    """Segment and score one case on its own grid."""
    scan, truth = job.survey.read(case)
    slices = slices_within_memory(net, scan, job.request.max_memory_gb)
    found, affine = probabilities_of(net, prepare(scan, job.plan.preprocess))
    array = onto(found, affine, scan, slices, threshold=net.threshold)
    return judge(scan.on_grid(array), truth, scan, judged_labels(net.labels, job))


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
    """Return the labels that occur in the training cases; only these are scored."""
    known = job.survey.labels(job.sides.learning)
    return {k: name for k, name in labels.items() if k in known}


def report_of(
    job: Job, judged: dict[str, Judged], curve: list[dict[str, float]], seconds: float, lost: list[str]
) -> Report:
    """Return the report of a training, with warnings about its cases, its labels (`lost`) and its result."""
    learned = job.survey.labels(job.sides.learning)
    warnings = survey_warnings(job.survey, job.sides) + lost
    warnings += [
        f"label {k}: only held-out and validation cases have it, so it is neither learned nor judged"
        for k in sorted(job.survey.labels([*job.sides.held_out, *job.sides.validating]) - learned)
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
        empty=not job.survey.labels(job.sides.held_out),
    )
    if not report.learned:
        warnings.append(
            "NOTHING WAS LEARNED: every measured DSC is 0.000. Train longer (--steps, --minutes), check the "
            "masks (ctssl check), and try smaller crops (--crop) or a finer spacing (--spacing)"
        )
    return report


def save(net: Any, job: Job, report: Report, judged: dict[str, Judged], *, device: str) -> None:
    """Write the segmenter and everything beside it, and remove the state of the training. `device`: where it was trained."""
    request, start, pre = job.request, job.start, job.plan.preprocess
    facts = Facts(
        train=report.train,
        data=job.content,
        validated=report.validated,
        model=start.name,
        licence="" if start.from_scratch else start.spec.licence,
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
    before = None if start.from_scratch else seen_by(start.folder)
    hashes = [job.survey.records.cases[case.name].scan_hash for case in job.sides.training]
    files[SEEN] = seen_after(before, hashes, salt=job.survey.salt)
    net.training_range = training_range(
        [job.survey.structures[case.name] for case in job.sides.training], net.labels
    )
    data = f"{len(report.train)} labelled scans of its own"
    if not start.from_scratch and start.spec.data:
        data += f"; the starting weights ({start.name}): {start.spec.data}"
    metadata = _metadata(report, job, facts)
    net.save_pretrained(request.out, overwrite=True, extra=files, config={"data": data}, metadata=metadata)
    for name in set(WRITTEN) - set(files):  # of the model that was there before
        (request.out / name).unlink(missing_ok=True)
    shutil.rmtree(request.unfinished, ignore_errors=True)


def _metadata(report: Report, job: Job, facts: Facts) -> dict[str, str]:
    """Return the metadata of the segmenter: its recipe, its cases (a hash of their names), its starting weights, and
    its mean DSC on the held-out cases."""
    settings, spec = job.settings, job.start.spec
    steps = report.curve[-1]["step"] if report.curve else settings.steps if settings.minutes is None else None
    _, world = rank_and_world()
    recipe = {key: asdict(facts)[key] for key in ("head", "spacing_mm", "window_hu", "from_scratch")}
    parent = f"{facts.model} sha256:{spec.sha256}" if spec.sha256 else facts.model
    told = metadata_of(
        recipe={**asdict(settings), **recipe},
        manifest=report.train,
        parent="" if facts.from_scratch else parent,
        pretext=spec.pretext,
        licence=facts.licence,
        samples="" if steps is None else int(steps) * settings.batch * world,
    )
    if report.held_out:
        told |= {"held_out": str(len(report.held_out)), "mean_dsc": f"{report.mean_dsc:.3f}"}
    return told | {"cases": str(len(report.train))}
