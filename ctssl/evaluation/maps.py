"""Probability maps of a folder: which belongs to which case and label, and whether they can be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.scans import require_scans
from ctssl.evaluation.froc import (
    Candidates,
    Froc,
    check_floor,
    check_probabilities,
    find_candidates,
    measure_froc,
)
from ctssl.evaluation.scores import MaskReader, check_same_grid, labels_in
from ctssl.files.names import safe_label
from ctssl.volume.volume import read, read_grid

Maps = dict[str, dict[str, Path]]  # by case, then by what follows the case in the name of the file


def list_maps(folder: Path, cases: Sequence[str]) -> Maps:
    """List the maps of each case in a folder.

    `ctssl segment --probabilities` names them `CASE_LABEL.nii.gz`; of one label alone a map may be `CASE.nii.gz`.

    Raises `FileNotFoundError` for a case without any map, and where there is no folder.
    """
    found: Maps = {case: {} for case in cases}
    longest = sorted(cases, key=len, reverse=True)  # a_b_tumour is a map of a_b, not of a
    for stem, path in require_scans(folder, unlabelled=False).items():
        whose = next((case for case in longest if stem == case or stem.startswith(f"{case}_")), None)
        if whose is not None:
            found[whose][stem[len(whose) + 1 :]] = path
    without = [case for case in cases if not found[case]]
    if without:
        raise FileNotFoundError(
            f"{len(without)} cases have no probability map in {folder} ({', '.join(without[:5])}); write the maps with "
            "`ctssl segment --probabilities`, as CASE_LABEL.nii.gz"
        )
    return found


def choose_maps(
    maps: Maps, labels: Sequence[int], names: Mapping[int, str], *, folder: Path
) -> dict[str, dict[int, Path]]:
    """Choose the map of each case and label.

    Args:
        maps: result of `list_maps`.
        labels: labels to find.
        names: names of the labels, as they are in the names of the files; a label that is alone needs none.
        folder: folder of the maps, for the messages.

    Raises:
        FileNotFoundError: a map is missing.
        ValueError: several maps of a case could be meant.
    """
    if len(labels) > 1 and (unnamed := [label for label in labels if label not in names]):
        raise ValueError(
            f"label {unnamed[0]} has no name, so its maps in {folder} cannot be told from those of the other labels; "
            "name every label as in CASE_LABEL.nii.gz, such as --names 1=liver 2=tumour"
        )
    wanted = {label: safe_label(names[label]) if label in names else "" for label in labels}
    chosen = {
        case: {
            label: _choose(case, there, wanted[label], alone=len(labels) == 1, folder=folder)
            for label in labels
        }
        for case, there in maps.items()
    }
    if unnamed := [label for label in labels if label not in names]:
        _check_endings(maps, {case: files[unnamed[0]] for case, files in chosen.items()}, folder)
    return chosen


def _check_endings(maps: Maps, chosen: dict[str, Path], folder: Path) -> None:
    """Raise `ValueError` where the maps of a label without a name end differently: one may be of another scan."""
    endings = {
        next(end for end, one in maps[case].items() if one == path): path.name
        for case, path in chosen.items()
    }
    if len(endings) > 1:
        raise ValueError(
            f"the maps in {folder} have different endings ({', '.join(list(endings.values())[:3])}), so it is not clear which "
            "are of these cases; name the label as in CASE_LABEL.nii.gz, such as --names 1=tumour"
        )


def _choose(case: str, there: dict[str, Path], wanted: str, *, alone: bool, folder: Path) -> Path:
    """Return the map of one case and label, of those that are `there`."""
    if wanted in there:
        return there[wanted]
    if alone and "" in there:
        return there[""]
    listed = ", ".join(path.name for path in there.values())
    if not wanted and len(there) == 1:
        return next(iter(there.values()))
    if not wanted:
        raise ValueError(
            f"{folder} holds {len(there)} maps of {case} ({listed}); name the label that is scored, such as "
            f"--names 1={next(iter(there))}"
        )
    raise FileNotFoundError(
        f"no probability map {case}_{wanted}.nii.gz in {folder}, which holds {listed}; give the labels the names that "
        "the files have (--names 1=tumour), or write the maps with `ctssl segment --probabilities`"
    )


def check_grids(maps: Maps, truth: Mapping[str, Path]) -> None:
    """Raise `ValueError` for a map on another grid than the truth of its case; only headers are read."""
    for case, files in maps.items():
        true = read_grid(truth[case])
        for path in files.values():
            grid = read_grid(path)
            assert true is not None and grid is not None  # both are NIfTI
            check_same_grid(grid, true, name=f"{case} ({path.name})")


def labels_of_all(files: Sequence[Path], read_one: MaskReader) -> list[int]:
    """Return the labels that occur in any of the masks; [1] if there is none."""
    return sorted(set().union(*(labels_in(read_one(path)) for path in files))) or [1]


def froc_of_folder(
    folder: Path,
    truth: Mapping[str, Path],
    *,
    patients: Mapping[str, str],
    names: Mapping[int, str],
    floor: float,
    progress: bool = False,
) -> list[Froc]:
    """Compute the free-response curve of each label from the maps of a folder.

    Args:
        folder: folder of the maps, see `list_maps`.
        truth: file of the true mask of each case.
        patients: patient of each case.
        names: names of the labels.
        floor: probability above which a voxel belongs to a candidate.
        progress: show a progress bar.

    Raises:
        FileNotFoundError: a map is missing.
        ValueError: a map is on another grid than the truth, or holds values outside 0 to 1.
    """
    from tqdm import tqdm

    check_floor(floor)
    listed = list_maps(folder, list(truth))
    check_grids(listed, truth)
    read_one = MaskReader(names)
    labels = labels_of_all(list(truth.values()), read_one)
    maps = choose_maps(listed, labels, names, folder=folder)
    found: dict[int, list[Candidates]] = {label: [] for label in labels}
    for case in tqdm(sorted(truth), desc="FROC", disable=not progress):
        true = read_one(truth[case])
        for label, path in maps[case].items():
            found[label].append(find_candidates(_read_map(path), true.array == label, floor=floor))
    whose = [patients[case] for case in sorted(truth)]
    return [
        measure_froc(found[label], patients=whose, label=names.get(label, f"label {label}"), floor=floor)
        for label in labels
    ]


def _read_map(path: Path) -> np.ndarray:
    values: Any = read(path).array
    check_probabilities(values, str(path))
    return np.clip(values, 0.0, 1.0)
