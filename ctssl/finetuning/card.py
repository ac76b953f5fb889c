"""The model card of a fine-tuned segmenter, from its report."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from ctssl.files.text import markdown_table
from ctssl.finetuning.report import TOLERANCE_MM, Facts, Judged, Report
from ctssl.finetuning.settings import Settings
from ctssl.hub.card import Card, pictures
from ctssl.zoo import beside


def write_card(
    report: Report,
    judged: dict[str, Judged],
    facts: Facts,
    settings: Settings,
    labels: dict[int, str],
    files: list[str],
) -> str:
    """Return the `README.md` of the segmenter. Every number was measured on the held-out cases."""
    name = report.folder.resolve().name
    start = f"`{facts.model or 'an encoder'}`" + (", initial weights" if facts.from_scratch else "")
    start += f" (licence {facts.licence})" if facts.licence else ""
    low, high = facts.window_hu
    others = [channel.name for channel in facts.channels]
    names = ", ".join(["CT", *others])
    files_of_scan = ", ".join(
        f'"{file}.nii.gz"' for file in ("ct", *(f"channel{n}" for n in range(2, 2 + len(others))))
    )
    scan = f"ctssl.Channels({files_of_scan})" if others else '"scan.nii.gz"'
    limits = (
        "Made by `ctssl finetune` from few labelled scans. It is not a medical device and must not be used for "
        "diagnosis.\n"
    )
    if "-NC" in facts.licence:
        limits += "**Not for commercial use**: so says the licence of its starting weights.\n"
    limits += (
        f"It was judged on {len(judged)} held-out cases of the same data, which says little about scans from "
        "elsewhere."
        if judged
        else "**It has not been judged: no case was held out.**"
    )
    sections = [("Training", _training(report, facts, settings))]
    if report.warnings:
        sections.append(("Warnings", "\n".join(f"- {note}" for note in report.warnings)))
    if judged:
        text = f"Whole scans on their own grid; NSD at {TOLERANCE_MM:g} mm. All rows: `cases.csv`.\n\n"
        sections.append(("Held-out cases", text + markdown_table(_summary(judged, labels))))
    return Card(
        title=name,
        front={"pipeline_tag": "image-segmentation", **_results(report, name)},
        limits=limits,
        about=f"It segments {', '.join(labels.values())} in {names}. Encoder: {start}; head: {facts.head}; working "
        f"spacing {facts.spacing_mm:g} mm, windows of {settings.crop} voxels, {low:g} to {high:g} HU{beside(facts.channels)}.",
        code=f'mask = ctssl.load_segmenter("{name}").segment({scan})',
        sections=[*sections, ("", pictures(files))],
    ).render()


def _training(report: Report, facts: Facts, settings: Settings) -> str:
    """Return how it was trained, in a sentence or two."""
    text = f"{len(report.train) - len(report.validated)} training cases, {report.seconds / 60:.0f} minutes."
    if report.validated:
        best = max(row["dsc"] for row in report.curve)
        text += (
            f" {len(report.validated)} validation cases (best DSC of {len(report.curve)} evaluations: {best:.3f}); "
            f"threshold {facts.threshold:g}."
        )
    usual = asdict(type(settings)())
    changed = [f"{key} {value}" for key, value in asdict(settings).items() if value != usual[key]]
    return text + (f" Settings other than the defaults: {', '.join(changed)}." if changed else "")


def _summary(judged: dict[str, Judged], labels: dict[int, str]) -> list[dict[str, Any]]:
    """Return mean and median of each score and label. Cases without a distance (an empty mask) are counted."""
    table = []
    for name in labels.values():
        rows = [row for one in judged.values() for row in one.rows if row["label"] == name]
        if not rows:
            continue
        column = {key: np.array([row[key] for row in rows]) for key in ("dsc", "hd95_mm", "nsd")}
        known = column["hd95_mm"][np.isfinite(column["hd95_mm"])]
        missing = f" ({len(rows) - len(known)} without)" if len(known) < len(rows) else ""
        table.append(
            {
                "label": name,
                "cases": len(rows),
                "mean DSC": f"{column['dsc'].mean():.3f}",
                "median DSC": f"{np.median(column['dsc']):.3f}",
                "median HD95 (mm)": f"{np.median(known):.1f}{missing}" if len(known) else "-",
                "mean NSD": f"{column['nsd'].mean():.3f}",
            }
        )
    return table


def _results(report: Report, name: str) -> dict[str, Any]:
    """Return the mean DSC of the held-out cases, for the Hub."""
    from huggingface_hub import EvalResult

    if math.isnan(report.mean_dsc):
        return {}
    result = EvalResult(
        "image-segmentation",
        "own",
        f"{len(report.held_out)} held-out cases of the user's own data",
        "dice",
        round(report.mean_dsc, 4),
        metric_name="mean DSC",
    )
    return {"eval_results": [result], "model_name": name}
