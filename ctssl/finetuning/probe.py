"""Compare frozen encoders on your own labels without any fine-tuning: a linear probe of single voxels.

From each patient up to 200 labelled voxels and 200 others, 25 and 25 from each of 8 cubes of 32 voxels; the feature of a voxel
is every map of the encoder on that cube, interpolated at its place. The cubes lie so that the structure may be anywhere in
them; what its place tells all the same is measured beside the models.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ctssl.datasets.layouts import find_cases
from ctssl.datasets.splits import patients
from ctssl.devices import choose_device
from ctssl.evaluation.statistics import add_holm, gained, mean_interval, with_interval
from ctssl.files.atomic import write_whole
from ctssl.files.names import check_writable
from ctssl.files.text import as_plain, markdown
from ctssl.finetuning.probe_fits import by_patient, measure_each
from ctssl.finetuning.probe_voxels import encoded, intensity, position, read_scans
from ctssl.finetuning.start import BASELINES, open_start
from ctssl.heads import WHOLE
from ctssl.zoo import Preprocess

FEWEST = 6  # patients
REPORT = "report.md"
PLACE, GREY = "position alone", "intensity alone"


@dataclass(frozen=True)
class Probe:
    """How well frozen features tell labelled voxels from others.

    Attributes:
        runs: for each contestant and seed what `measure` returns.
        spacing_mm: working spacing in mm.
    """

    runs: dict[str, list[dict[str, Any]]]
    spacing_mm: float

    def rows(self) -> list[dict[str, Any]]:
        """Return for each contestant the mean AUROC over patients, its 95% interval and, for all models but the last, the
        difference from the last one with an interval and p (paired by patient; Holm over the table)."""
        values = {name: by_patient(runs, "linear", "auroc") for name, runs in self.runs.items()}
        models = [name for name in values if name not in (PLACE, GREY)]
        result: list[dict[str, Any]] = []
        for name, mine in values.items():
            low, high = mean_interval(mine)
            row = {"model": name, "auroc": float(mine.mean()), "low": low, "high": high}
            if name in models[:-1]:
                pairs = [
                    {"patient": n, "auroc": one, "other_auroc": two}
                    for n, (one, two) in enumerate(zip(mine, values[models[-1]], strict=True))
                ]
                found = gained(pairs, "auroc")
                row |= {
                    "gain": found["difference"],
                    "gain_low": found["low"],
                    "gain_high": found["high"],
                    "p": found["p"],
                }
            result.append(row)
        add_holm(result, into="p")
        return result

    def table(self) -> str:
        """Return `rows` as Markdown."""
        rows = self.rows()
        last = [row["model"] for row in rows if row["model"] not in (PLACE, GREY)][-1]
        lines = []
        for row in rows:
            cells = [row["model"], f"{row['auroc']:.3f} ({row['low']:.3f} to {row['high']:.3f})", "", ""]
            if "gain" in row:
                cells[2] = with_interval(row["gain"], row["gain_low"], row["gain_high"])
                cells[3] = "too few" if np.isnan(row["p"]) else f"{row['p']:.3f}"
            lines.append(cells)
        return markdown(["frozen features", "AUROC (95% interval)", f"against {last}", "p"], lines)


def probe(
    data: str | os.PathLike,
    *,
    models: Sequence[str],
    out: str | os.PathLike | None = None,
    seeds: int = 3,
    label: int | None = None,
    spacing_mm: float = 1.5,
    device: str = "auto",
    progress: bool = True,
) -> Probe:
    """Measure how well the frozen features of each model tell labelled voxels from others, patient by patient.

    For each seed a third of the patients is held out, and a logistic regression is fitted on the others.

    Args:
        data: folder or CSV in a layout that `ctssl.datasets.find_cases` knows.
        models: starting points as for `ctssl.finetune`, each with its own HU window; `vit-scratch` and `swin-scratch` have other
            random weights for each seed, and the window of the first pretrained model. All are compared with the last one.
        out: folder for `report.md` and `probe.json`.
        seeds: how often patients and voxels are drawn.
        label: the label to tell from everything else; None: any label.
        spacing_mm: working spacing of all models in mm; a structure should be several voxels wide.
        device: "cpu", "cuda", "auto".

    Raises:
        ValueError: fewer than six patients with labelled voxels, or invalid arguments.
        FileExistsError: `out` holds a file that would be replaced and is not of an earlier call.
    """
    if not 0 < spacing_mm < math.inf:
        raise ValueError(f"spacing_mm={spacing_mm}: give a size above 0 mm")
    if not models or len(set(models)) != len(models):
        raise ValueError(
            f"models={list(models)}: give one or more different ones, such as vit-wild-lesions, vit-scratch"
        )
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: give at least 1")
    if out is not None:
        check_writable(Path(out))
        there = [name for name in (REPORT, "probe.json") if (Path(out) / name).exists()]
        if len(there) == 1:
            raise FileExistsError(
                f"{out} holds a {there[0]} that is not of `ctssl probe`; choose another folder (--out)"
            )
    cases, where = find_cases(data).of_one_channel("probe"), choose_device(device)
    encoders = {
        name: [_encoder(name, seed, where) for seed in range(seeds if name in BASELINES else 1)]
        for name in models
    }
    windows = {name: found[0].spec.preprocess.window_hu for name, found in encoders.items()}
    shared = next((window for name, window in windows.items() if name not in BASELINES), None)
    windows |= {name: shared for name in windows if name in BASELINES and shared}
    groups = {
        window: read_scans(cases, Preprocess(spacing_mm, window), label=label, progress=progress)
        for window in dict.fromkeys(windows.values())
    }
    first = next(iter(groups.values()))
    if len(patients(first)) < FEWEST:
        raise ValueError(
            f"{len(first)} scans with labelled voxels are too few for a probe; give at least {FEWEST} patients"
        )
    runs = {
        name: measure_each(first, [features] * seeds)
        for name, features in ((PLACE, position), (GREY, intensity))
    }
    for name, found in tqdm(encoders.items(), desc="models", disable=not progress):
        features = [encoded(one) for one in found]
        runs[name] = measure_each(groups[windows[name]], features if len(found) > 1 else features * seeds)
    result = Probe(runs, spacing_mm)
    if out is not None:
        write_probe(result, Path(out))
    return result


def _encoder(name: str, seed: int, device: torch.device) -> Any:
    """Return a frozen encoder; random weights are drawn anew for each seed."""
    start = open_start(name, "", from_scratch=False, seed=seed)
    if start.head in WHOLE:
        raise ValueError(f"{name} has no features to probe; give an encoder")
    start.encoder.spec = start.spec
    return start.encoder.to(device).eval()


def write_probe(found: Probe, folder: Path) -> None:
    """Write `report.md` and `probe.json`."""
    count = len(by_patient(found.runs[PLACE], "linear", "auroc"))
    text = f"""# Linear probe of frozen features

How well single voxels of the labelled structures can be told from others, by a logistic regression on frozen features at
{found.spacing_mm:g} mm: mean AUROC of {count} patients, each held out from the fit. Intervals over patients; p by Wilcoxon's
test, corrected by Holm. Features worth having are better than random weights, intensity and position.

{found.table()}"""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / REPORT, text)
    facts = {"spacing_mm": found.spacing_mm, "rows": found.rows(), "runs": found.runs}
    write_whole(folder / "probe.json", json.dumps(as_plain(facts)) + "\n")
