"""What a fine-tuning leaves beside the weights: scores of every held-out case, curves, pictures, and a
card."""

from __future__ import annotations

import csv
import io
import json
import zlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ctssl.datasets.case import Case, read_case
from ctssl.datasets.seen import SEEN
from ctssl.evaluation.scores import score_masks
from ctssl.finetuning.settings import Settings
from ctssl.volume.volume import Volume

if TYPE_CHECKING:
    from ctssl.finetuning.report import Report

TOLERANCE_MM = 2.0
WRITTEN = ("README.md", "best.png", "cases.csv", "curves.png", "median.png", "report.json", SEEN, "worst.png")


@dataclass(frozen=True)
class Judged:
    """A held-out case: DSC of each label, a row of scores for each, and the mask (packed)."""

    dsc: dict[str, float]
    rows: list[dict[str, Any]]
    mask: bytes


def judge(found: Volume, truth: Volume, labels: dict[int, str]) -> Judged:
    """A mask against the truth on the same grid, label by label; see `ctssl.evaluation` for the columns."""
    scores = score_masks(found, truth, name=truth.name, tolerance_mm=TOLERANCE_MM, labels=list(labels))
    rows: list[dict[str, Any]] = []
    for row in scores:
        row["label"] = labels[row["label"]]
        del row["case"]
        rows.append(row)
    return Judged({row["label"]: row["dsc"] for row in rows}, rows, zlib.compress(found.array.tobytes(), 1))


def files(
    report: Report,
    judged: dict[str, Judged],
    settings: Settings,
    facts: dict[str, Any],
    *,
    cases: dict[str, Case],
    labels: dict[int, str],
    asked: dict[str, Any],
) -> dict[str, str | bytes]:
    """Name and content of every file for the segmenter's folder, some of `WRITTEN`."""
    mean = report.mean_dsc if report.held_out else None
    text = {
        "held_out": report.held_out,
        "mean_dsc": mean,
        **facts,
        "warnings": report.warnings,
        "curve": report.curve,
        "seconds": round(report.seconds, 1),
        "settings": asdict(settings),
        "asked": asked,
    }
    found: dict[str, str | bytes] = {"report.json": json.dumps(text, indent=1) + "\n"}
    if judged:
        found["cases.csv"] = table(judged)
        ranked = sorted(report.held_out, key=lambda name: np.mean(list(report.held_out[name].values())))
        for place, name in (("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])):
            found[f"{place}.png"] = portrait(
                cases[name], judged[name], title=f"{place} held-out case, {name}"
            )
    if report.curve:
        found["curves.png"] = curves(report.curve)
    return found | {"README.md": card(report, judged, settings, facts, labels, pictures=list(found))}


def table(judged: dict[str, Judged]) -> str:
    """`cases.csv`: a row for each case and label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for number, (case, one) in enumerate(judged.items()):
        for row in one.rows:
            if number == 0 and row is one.rows[0]:
                writer.writerow(["case", *row])
            writer.writerow([case, *(round(v, 4) if isinstance(v, float) else v for v in row.values())])
    return text.getvalue()


def portrait(case: Case, judged: Judged, *, title: str) -> bytes:
    """PNG of a case: its mask in colour, the truth as a white line."""
    from ctssl.pictures import overlay

    scan, truth = read_case(case)
    mask = Volume(
        np.frombuffer(zlib.decompress(judged.mask), np.uint8).reshape(scan.shape), scan.affine, scan.name
    )
    scores = ", ".join(f"{name} DSC {value:.2f}" for name, value in judged.dsc.items())
    picture = io.BytesIO()
    overlay(scan, mask, picture, title=f"{title}: {scores}", outline=truth)
    return picture.getvalue()


def curves(curve: list[dict[str, float]]) -> bytes:
    """PNG of the loss, and the validation DSC where there is one, over the steps."""
    from matplotlib.figure import Figure

    titles = {
        key: title for key, title in (("loss", "training loss"), ("dsc", "validation DSC")) if key in curve[0]
    }
    figure, picture = Figure(figsize=(3.2 * len(titles), 2.6), layout="constrained"), io.BytesIO()
    for axes, (key, title) in zip(
        figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True
    ):
        axes.plot([row["step"] for row in curve], [row[key] for row in curve], lw=1.4, marker=".")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=100, format="png")
    return picture.getvalue()


def card(
    report: Report,
    judged: dict[str, Judged],
    settings: Settings,
    facts: dict[str, Any],
    labels: dict[int, str],
    *,
    pictures: list[str],
) -> str:
    """`README.md` of the segmenter, with what the Hub reads on top. Every number was measured on the held-out
    cases."""
    name = report.folder.resolve().name
    start = (
        f"`{facts['model']}`, from initial weights"
        if facts["from_scratch"]
        else f"`{facts['model'] or 'an encoder'}`"
    )
    lines = [
        f"---\n{front_matter(report, name)}\n---",
        f"# {name}\n",
        "**Limits first.** Made by `ctssl finetune` from few labelled scans. It is not a medical device and must not be used "
        "for diagnosis.\n"
        + (
            f"It was judged on {len(judged)} held-out cases of the same data, which says little about "
            "scans from elsewhere.\n"
            if judged
            else "**It has not been judged: no case was held out.**\n"
        ),
        f"It finds {', '.join(labels.values())} in CT. Encoder: {start}; head: {facts['head']}; it works at "
        f"{facts['spacing_mm']:g} mm in windows of {settings.crop} voxels, {facts['window_hu'][0]:g} to "
        f"{facts['window_hu'][1]:g} HU.\n",
        f'```python\nimport ctssl\n\nmask = ctssl.load_segmenter("{name}").segment("scan.nii.gz")\n```\n',
        f"## Training\n{len(report.train) - len(report.validated)} cases, {report.seconds / 60:.0f} minutes"
        + (
            f"; {len(report.validated)} more chose among the weights of the last {len(report.curve)} evaluations "
            f"(DSC on crops: {max(row['dsc'] for row in report.curve):.3f}), and from which probability on a voxel counts "
            f"({facts['threshold']:g})"
            if report.validated
            else ""
        )
        + (f". Other than by default: {chosen}" if (chosen := other_than_default(settings)) else "")
        + ".\n",
    ]
    if report.warnings:
        lines.append("## Doubtful cases\n" + "".join(f"- {note}\n" for note in report.warnings))
    if judged:
        lines.append(
            f"## What it is worth\nWhole scans on their own grid; NSD at {TOLERANCE_MM:g} mm. All rows: `cases.csv`.\n"
        )
        lines.append(summary(judged, labels))
    lines += [f"![{p.removesuffix('.png')}]({p})\n" for p in pictures if p.endswith(".png")]
    return "\n".join(lines)


def other_than_default(settings: Settings) -> str:
    """`name value, name value` of what was set."""
    usual = asdict(type(settings)())
    return ", ".join(f"{key} {value}" for key, value in asdict(settings).items() if value != usual[key])


def summary(judged: dict[str, Judged], labels: dict[int, str]) -> str:
    """Mean and median of each score and label as Markdown. Cases without a distance (an empty mask) are
    counted."""
    lines = [
        "| label | cases | mean DSC | median DSC | median HD95 (mm) | mean NSD |",
        "|---|---|---|---|---|---|",
    ]
    for name in labels.values():
        rows = [row for one in judged.values() for row in one.rows if row["label"] == name]
        column = {key: np.array([row[key] for row in rows]) for key in ("dsc", "hd95_mm", "nsd")}
        known = column["hd95_mm"][np.isfinite(column["hd95_mm"])]
        missing = f" ({len(rows) - len(known)} without)" if len(known) < len(rows) else ""
        distance = f"{np.median(known):.1f}{missing}" if len(known) else "-"
        lines.append(
            f"| {name} | {len(rows)} | {column['dsc'].mean():.3f} | {np.median(column['dsc']):.3f} | "
            f"{distance} | {column['nsd'].mean():.3f} |"
        )
    return "\n".join(lines) + "\n"


def front_matter(report: Report, name: str) -> str:
    """What the Hub reads, with the mean DSC of the held-out cases."""
    from huggingface_hub import EvalResult, ModelCardData

    found = None
    if report.held_out:
        found = [
            EvalResult(
                "image-segmentation",
                "own",
                f"{len(report.held_out)} held-out cases of the user's own data",
                "dice",
                round(report.mean_dsc, 4),
                metric_name="mean DSC",
            )
        ]
    data = ModelCardData(
        library_name="ctssl",
        pipeline_tag="image-segmentation",
        tags=["ct", "medical-imaging", "3d"],
        eval_results=found,
        model_name=name if found else None,
    )
    return data.to_yaml().strip()
