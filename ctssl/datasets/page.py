"""A report on labelled scans: one HTML file with its pictures in it, or one picture."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from pathlib import Path
from statistics import median

from ctssl.datasets.checks import Problem
from ctssl.datasets.contacts import draw_sheet
from ctssl.datasets.records import LabelSummary, Record, summarise_labels, window_of
from ctssl.files.atomic import write_whole

ENDINGS = (".html", ".png")
LARGEST_PNG = 300  # cases in one picture
PER_SHEET = 24  # cases in each picture of a page
NAMED = 8  # cases that a cell of a table names
STYLE = (
    "body{font:14px sans-serif;margin:2em auto;max-width:1460px;padding:0 1em}table{border-collapse:collapse}"
    "td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}img{max-width:100%}.error{color:#b00}"
)
NOTES = """<p>Outside the body: the share of the labelled voxels that lie in air below -900 HU that no tissue encloses
in its axial slice; in a scan that cuts through a lung, thin lung counts too. Number to beat: the mean DSC of an
ellipsoid that is drawn in the middle of every scan without looking at it; the length of its axes, as a share of the
extent of the scan, is the one that suits these cases best. A model that is no better has learned no more than where
the label lies. Slices: through the largest area of the largest label of each case, seen from the feet, front up.</p>"""


def check_size(path: Path, cases: int) -> None:
    """Raise `ValueError` for a picture of more cases than one can show."""
    if path.suffix == ".png" and cases > LARGEST_PNG:
        raise ValueError(
            f"a .png shows at most {LARGEST_PNG} cases, these are {cases}; write an .html instead"
        )


def write_report(
    path: Path,
    records: list[Record],
    problems: list[Problem],
    *,
    names: Mapping[int, str],
    title: str,
    progress: bool = False,
) -> Path:
    """Write what `record_case` has measured, and what `problems` has found, to an `.html` or `.png` file; an existing
    one is replaced.

    Args:
        names: names of the labels that have one.
        title: what was checked.
    """
    labels = summarise_labels(records)
    if path.suffix != ".png":
        return write_whole(path, _page(records, problems, labels, names, title, progress))
    lines = [
        title,
        _counts(records, problems),
        *(
            f"{_name(one.label, names)}: {_middle(one)}; missing in {len(one.missing)} cases"
            for one in labels[:NAMED]
        ),
    ]
    return write_whole(path, _sheet(records, names, window_of(records), title="\n".join(lines)))


def _page(
    records: list[Record],
    problems: list[Problem],
    labels: list[LabelSummary],
    names: Mapping[int, str],
    title: str,
    progress: bool,
) -> str:
    from tqdm import tqdm

    window, sheets = window_of(records), []
    for first in tqdm(range(0, len(records), PER_SHEET), desc="drawing slices", disable=not progress):
        picture = b64encode(_sheet(records[first : first + PER_SHEET], names, window)).decode()
        sheets.append(f'<p><img alt="slices of cases" src="data:image/png;base64,{picture}"></p>')
    found = [
        f'<li class="{escape(p.level)}">{escape(f"{p.level}: {p.case}: {p.message}")}</li>' for p in problems
    ]
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>',
        f"<h1>{escape(title)}</h1><p>{escape(_counts(records, problems))}</p>",
        f"<h2>What was found</h2><ul>{''.join(found) or '<li>nothing</li>'}</ul>",
        f"<h2>Labels</h2>{_labels_table(labels, names)}",
        f"<h2>Slices</h2><p>Window {window[0]:.0f} to {window[1]:.0f} HU.</p>{''.join(sheets)}",
        f"<h2>Cases</h2>{_cases_table(records, names)}{NOTES}</html>\n",
    ]
    return "\n".join(parts)


def _labels_table(labels: list[LabelSummary], names: Mapping[int, str]) -> str:
    rows = []
    for one in labels:
        low, high = one.volumes_ml[0], one.volumes_ml[-1]
        missing = ", ".join(one.missing[:NAMED]) + (" ..." if len(one.missing) > NAMED else "")
        rows.append(
            [
                _name(one.label, names),
                str(len(one.cases)),
                f"{len(one.missing)}: {missing}" if missing else "none",
                f"{_ml(median(one.volumes_ml))} ({_ml(low)} to {_ml(high)})",
                f"{one.hu:.0f}",
                _middle(one),
            ]
        )
    columns = ("label", "cases", "missing in", "volume in ml: median (range)", "median HU", "number to beat")
    return _table(columns, rows)


def _cases_table(records: list[Record], names: Mapping[int, str]) -> str:
    rows = []
    for one in records:
        extent = [n * s for n, s in zip(one.shape, one.spacing_mm, strict=True)]
        volumes = [f"{_name(k, names)}: {_ml(one.volumes_ml[k])}" for k in sorted(one.volumes_ml)]
        rows.append(
            [
                one.name,
                _product(one.spacing_mm),
                _product(one.shape),
                _product(round(mm) for mm in extent),
                "; ".join(volumes) or "none",
                f"{one.outside:.1%}" if one.outside else "none",
                _name(one.centre, names) if one.centre else "background",
            ]
        )
    columns = (
        "case",
        "spacing in mm",
        "voxels",
        "size in mm",
        "labels, in ml",
        "outside the body",
        "in the middle",
    )
    return _table(columns, rows)


def _sheet(
    records: list[Record], names: Mapping[int, str], window_hu: tuple[float, float], *, title: str = ""
) -> bytes:
    """Draw cases in one picture, as PNG."""
    notes, content = {}, BytesIO()
    for one in records:
        largest = [f"{_name(k, names)}: {_ml(one.volumes_ml[k])} ml" for k in one.labels[:1]]
        notes[one.name] = [*largest, f"{_product(one.spacing_mm)} mm"]
    tiles = {one.name: one.tile for one in records}
    draw_sheet(tiles, content, notes=notes, names=names, window_hu=window_hu, title=title)
    return content.getvalue()


def _counts(records: list[Record], problems: list[Problem]) -> str:
    errors = sum(problem.level == "error" for problem in problems)
    middle = sum(one.centre > 0 for one in records)
    return (
        f"{len(records)} cases could be read, {errors} errors, {len(problems) - errors} warnings. The voxel in the middle "
        f"of the scan is labelled in {middle} of {len(records)} cases."
    )


def _middle(one: LabelSummary) -> str:
    return f"DSC {one.dsc:.3f}, an ellipsoid in the middle, {one.share:.0%} of the extent"


def _name(label: int, names: Mapping[int, str]) -> str:
    return names.get(label, f"label {label}")


def _ml(volume: float) -> str:
    return f"{volume:.0f}" if volume >= 100 else f"{volume:.3g}"


def _product(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values)


def _table(columns: Sequence[str], rows: list[list[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in columns)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
