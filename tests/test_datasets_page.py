"""The report of `ctssl check --out`: what it measures, shows and refuses."""

import re
import signal
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest

from ctssl.cli.main import main
from ctssl.datasets import page
from ctssl.datasets.case import Case, read_case
from ctssl.datasets.checks import Problem
from ctssl.datasets.contacts import cut_tile
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.records import SHARES, Record, record_case, summarise_labels, window_of
from ctssl.metrics import dsc
from ctssl.volume.volume import Volume
from tests.support import kill


def records_of(folder) -> list[Record]:
    return [record_case(case, *read_case(case)) for case in find_cases(folder).cases]


def a_case(name: str, folder) -> Case:
    return Case(name, folder / "scan.nii.gz", folder / "mask.nii.gz")


def ellipsoid(shape: tuple[int, ...], share: float) -> np.ndarray:
    """That of `training.experiments.middle`, written on its own."""
    places = [(np.arange(n) - (n - 1) / 2) / (n / 2) for n in shape]
    return sum(x**2 for x in np.meshgrid(*places, indexing="ij")) <= share**2  # type: ignore[operator]


def test_the_number_to_beat_is_the_dsc_of_an_ellipsoid(tmp_path):
    rng = np.random.default_rng(0)
    for shape in ((20, 15, 8), (9, 9, 9)):
        mask = ellipsoid(shape, 0.5) * 2 + (rng.random(shape) > 0.97)
        scan = Volume(rng.normal(0, 50, shape).astype(np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
        one = record_case(a_case("a", tmp_path), scan, Volume(mask.astype(np.uint8), scan.affine))
        for label, found in one.middle.items():
            expected = [dsc(ellipsoid(shape, share), mask == label) for share in SHARES]
            np.testing.assert_allclose(found, expected, atol=1e-12)
        best = {row.label: row for row in summarise_labels([one])}[2]
        assert best.share == 0.5 and best.dsc == max(one.middle[2])
        assert one.volumes_ml[2] == pytest.approx((mask == 2).sum() * 0.012) and one.centre in (2, 3)


def test_labels_that_are_missing_and_voxels_outside_the_body_are_counted(labelled, ball):
    mask = ball[1]
    two = mask.array.copy()
    two[15:18, 14:17, 7] = 2
    Volume(two, mask.affine).save(labelled / "labels" / "case1.nii.gz", overwrite=True)
    air = np.zeros_like(two)
    air[:2, :2, :4], air[18:20, 14:16, :4] = 1, 1  # as many in the corner as in the body
    Volume(air, mask.affine).save(labelled / "labels" / "case2.nii.gz", overwrite=True)
    records = records_of(labelled)
    first, second = summarise_labels(records)
    assert first.missing == [] and second.missing == ["case0", "case2"] and second.cases == ["case1"]
    assert [one.outside for one in records] == [0, 0, 0.5]
    assert window_of(records) == (pytest.approx(-160, abs=1), pytest.approx(310, abs=20))


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1)])
def test_a_slice_has_the_patients_right_on_the_left_and_the_front_up(axes, flips):
    """However the scan lies in its file; through the most of the first label, without the air around the body."""
    array, mask = np.full((40, 30, 20), -1000.0, np.float32), np.zeros((40, 30, 20), np.uint8)
    array[4:36, 3:27] = 40
    mask[28:34, 20:25, 12] = 1  # right and front, in RAS+
    mask[28:34, 20:22, 13] = 1
    affine = np.eye(4)
    affine[:3, :3] = np.diag(flips)[:, axes]
    turned = [np.transpose(a[:: flips[0], :: flips[1], :: flips[2]], axes) for a in (array, mask)]
    tile = cut_tile(Volume(turned[0], affine), Volume(turned[1], affine), [1])
    rows, columns = np.nonzero(tile.labels == 1)
    high, wide = tile.ct.shape
    assert (high, wide) == (144, 192) and tile.ct.min() > 0
    assert rows.max() < high / 2 and columns.max() < wide / 2
    assert (tile.labels == 1).mean() == pytest.approx(6 * 5 / (32 * 24), abs=0.01)


def test_a_page_holds_its_pictures_and_escapes_what_it_shows(labelled, capsys):
    out = labelled.parent / "report.html"
    (labelled / "images" / "case1.nii.gz").write_bytes(b"broken")
    assert main(["check", str(labelled), "--out", str(out)]) == 2  # an error, and a report of it
    assert "1 errors" in capsys.readouterr().out
    text = out.read_text()
    pictures = re.findall(r'src="([^"]*)"', text)
    assert len(pictures) == 1 and not re.search(r"https?://|<script|<link", text)
    assert b64decode(pictures[0].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert "2 cases could be read, 1 errors" in text and "error: case1: " in text
    assert "2 x 2 x 3" in text and "72 x 60 x 48" in text and "number to beat" in text
    odd = Problem("warning", "x", "<script>alert(1)</script>", "<b>")
    names = {1: "<i>$x_$</i>"}
    page.write_report(out, records_of_readable(labelled), [odd], names=names, title="</title><script>")
    assert not re.search(r"<script|<b>|<i>", out.read_text())


def records_of_readable(folder) -> list[Record]:
    cases = [case for case in find_cases(folder).cases if case.name != "case1"]
    return [record_case(case, *read_case(case)) for case in cases]


def test_a_png_is_one_picture_of_all_cases(labelled, ball, capsys):
    from matplotlib.image import imread

    ball[1].save(labelled / "labels" / "case2.nii.gz", overwrite=True)
    out = labelled.parent / "report.png"
    assert main(["check", str(labelled), "--out", str(out), "--json"]) == 0
    assert f'"out": "{out}"' in capsys.readouterr().out
    picture = imread(BytesIO(out.read_bytes()))
    red = (picture[..., 0] > 0.85) & (picture[..., 1] < 0.3) & (picture[..., 2] < 0.3)
    columns = np.flatnonzero(red[: len(red) * 3 // 4].any(0))  # contours, not the legend
    assert picture.shape[1] == 1452 and (np.diff(columns) > 60).sum() == 2  # three apart


def test_a_report_is_refused_before_scans_are_read(labelled, capsys, monkeypatch):
    out = labelled.parent / "report.html"
    out.write_text("mine")
    monkeypatch.setattr("ctssl.datasets.checks.read_case", lambda case: pytest.fail("a scan was read"))
    for path, words in (
        (out, "--overwrite"),
        (labelled / "no" / "a.html", "no folder"),
        ("a.pdf", ".html or"),
    ):
        assert main(["check", str(labelled), "--out", str(path)]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr(page, "LARGEST_PNG", 2)
    assert main(["check", str(labelled), "--out", str(labelled.parent / "a.png")]) == 2
    assert "at most 2 cases, these are 3; write an .html instead" in capsys.readouterr().err
    assert out.read_text() == "mine" and not list(labelled.parent.glob("*.png"))


@pytest.mark.filterwarnings("error")
def test_a_label_that_fills_its_slice_and_a_body_of_one_row_are_drawn(tmp_path):
    for shape in ((6, 6, 3), (200, 2, 3)):
        scan = Volume(np.full(shape, 40, np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
        scan.array[:, 1:] = 40 if shape[1] > 2 else -1000
        mask = Volume((scan.array > 0).astype(np.uint8), scan.affine)
        one = record_case(a_case("a", tmp_path), scan, mask)
        page.write_report(tmp_path / "a.png", [one], [], names={}, title="t")


def test_nothing_that_can_be_read_makes_a_report_too(tmp_path):
    for name in ("a.html", "a.png"):
        page.write_report(tmp_path / name, [], [Problem("error", "x", "broken", "c")], names={}, title="t")
    assert "error: c: broken" in (tmp_path / "a.html").read_text()


@pytest.mark.slow
def test_a_report_that_was_killed_is_written_by_the_same_command(labelled):
    out = labelled.parent / "report.html"
    command = ["check", str(labelled), "--out", str(out)]
    assert kill.run(command, at_rename=1) == -signal.SIGKILL and not out.exists()
    assert kill.run(command) == 0 and out.read_text().endswith("</html>\n")
    assert kill.run(command) == 2 and kill.run([*command, "--overwrite"]) == 0
