"""Where masks come from: a segmenter, or a folder that another tool filled."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ctssl.datasets.case import Case, read_case
from ctssl.datasets.scans import list_scans
from ctssl.evaluation.scores import check_same_grid, labels_in, read_mask
from ctssl.files.atomic import file_sha256
from ctssl.files.text import read_json
from ctssl.shifts.stamps import shift_name
from ctssl.volume.volume import Volume


@dataclass(frozen=True)
class Source:
    """`mask(scan, case, place)` gives a mask; `key(case, place)` changes when the weights, the threshold or
    the file do.

    `place` is "clean" or "dose-3". `model` is None for a folder; `trained_on`: names of cases, where they are
    known.
    """

    name: str
    key: Callable[[str, str], str]
    mask: Callable[[Volume, str, str], Volume]
    model: Any = None
    trained_on: frozenset[str] = frozenset()


def find_sources(model: Any, against: Any, predictions: Any, device: str) -> list[Source]:
    """Return the sources of masks, the models first; equal names get a number.

    Raises `ValueError` where there is none, or only one to compare with.
    """
    found = [from_model(one, device) for one in (model, against) if one is not None]
    if predictions is not None:
        found.append(from_folder(Path(predictions)))
    if not found:
        raise ValueError("whose masks? give a segmenter (--model) or a folder of masks (--predictions)")
    if model is None and against is not None:
        raise ValueError("--against needs a --model to compare with")
    names = [source.name for source in found]
    return [
        replace(s, name=f"{s.name} ({i + 1})") if names.count(s.name) > 1 else s for i, s in enumerate(found)
    ]


def from_model(model: Any, device: str) -> Source:
    """Make a source of a segmenter: a name, a folder, a repository or the object."""
    from ctssl.inference.masks import segment

    key, name, trained = "", type(model).__name__, frozenset()
    if isinstance(model, (str, os.PathLike)):
        from ctssl.hub.client import CONFIG
        from ctssl.hub.lookup import open_model
        from ctssl.loading import load_segmenter

        folder, name = open_model(model), Path(model).name
        key = f"{folder.config['sha256']} {file_sha256(folder.path / CONFIG)[:16]}"
        if (folder.path / "report.json").is_file():
            report = read_json(folder.path / "report.json")  # it came with the model, from anywhere
            named_there = report.get("train") if isinstance(report, dict) else None
            trained = frozenset(map(str, named_there if isinstance(named_there, list) else []))
        model = load_segmenter(folder, device=device)
    else:
        from ctssl.heads.segmenter import Segmenter
        from ctssl.hub.provenance import fingerprint_of

        if not isinstance(model, Segmenter):
            raise ValueError(
                f"a {type(model).__name__} is no segmenter of ctssl: let it write masks of the shifted scans, and "
                "give their folder (predictions, --predictions), as examples/robustness.py does"
            )
        key = f"{fingerprint_of(model)} {model.spec} {model.window} {model.labels}"
    if model.threshold != 0.5:
        key += f" threshold {model.threshold:g}"
    return Source(name, lambda *_: key, lambda scan, *_: segment(model, scan), model, trained)


def from_folder(folder: Path) -> Source:
    """Make a source of a folder with `clean/CASE.nii.gz` and `dose-3/CASE.nii.gz`. A file with other bytes counts
    as another."""

    @cache
    def masks_of(place: str) -> dict[str, Path]:
        return list_scans(folder / place, unlabelled=False)

    def find(case: str, place: str) -> Path:
        return masks_of(place)[case]

    def key(case: str, place: str) -> str:
        return file_sha256(find(case, place))

    return Source(folder.name, key, lambda _, case, place: read_mask(find(case, place)))


def check_complete(folder: Path, cases: list[Case], places: list[tuple[str, int]]) -> None:
    """Raise `FileNotFoundError` unless there is a mask of every case at every place."""
    missing = []
    for place in places:
        inside = folder / shift_name(*place)
        there = list_scans(inside, unlabelled=False) if inside.is_dir() else {}
        missing += [f"{shift_name(*place)}/{case.name}.nii.gz" for case in cases if case.name not in there]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {len(missing)} masks, first {', '.join(missing[:3])}; `ctssl shift IMAGES SCANS --every` writes "
            "the scans to make them of; or choose --shifts and --severities"
        )


def check_labels(folder: Path, cases: list[Case], places: list[tuple[str, int]]) -> list[str]:
    """Raise `ValueError` for a mask on another grid than the true one, and where no label of the masks is one of
    the true ones; return warnings about their labels."""
    notes: list[str] = []
    true: set[int] = set()
    found: dict[Path, set[int]] = {}
    files = {place: list_scans(folder / shift_name(*place), unlabelled=False) for place in places}
    for case in cases:
        truth = read_case(case)[1]
        true |= labels_in(truth)
        for place in places:
            mask, file = read_mask(files[place][case.name]), files[place][case.name]
            found[file] = labels_in(mask)
            check_same_grid(mask, truth, name=str(file))
    every = set().union(*found.values())
    if every and true and not every & true:
        raise ValueError(
            f"the masks of {folder} hold the labels {sorted(every)[:9]}, and the true ones {sorted(true)[:9]}: give "
            "them the same numbers"
        )
    if lost := [file for file, mine in found.items() if mine and not mine & true]:
        first = f"{lost[0].parent.name}/{lost[0].name}"
        notes.append(
            f"{len(lost)} masks of {folder.name} hold labels, but none that a true mask has (first {first}): they count "
            "as empty; is their numbering the one of the others?"
        )
    if more := sorted(every - true):
        notes.append(
            f"masks of {folder.name} hold labels that no true mask has ({more[:9]}); these do not count"
        )
    return notes
