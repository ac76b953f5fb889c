"""FROC: candidates, curves and intervals by hand, and folders of probability maps."""

import json
import math

import numpy as np
import pytest
from monai.metrics.froc import compute_froc_curve_data

import ctssl
from ctssl.cli.main import main
from ctssl.evaluation import Candidates, find_candidates, measure_froc
from ctssl.evaluation.froc import RATES


def line(*values, like=np.float32):
    """An array `(n, 1, 1)`."""
    return np.array(values, like)[:, None, None]


def scan(found, false, count=0):
    return Candidates(np.array(found, float), np.array(false, float), count)


@pytest.mark.parametrize(
    ("probability", "truth", "found", "false", "count"),
    [
        ([0.2, 0.9, 0.3, 0.8, 0.0], [0, 1, 0, 1, 0], [0.9, 0.9], [], 1),
        ([0.4, 0.0, 0.7, 0.0, 0.0], [1, 1, 1, 0, 0], [0.7], [], 2),
        ([0.4, 0.0, 0.7, 0.0, 0.2], [0, 0, 0, 0, 0], [], [0.4, 0.7, 0.2], 3),
        ([0.1, 0.0, 0.1, 0.0, 0.0], [1, 0, 0, 0, 1], [0.0, 0.0], [], 0),
        ([0.3, 0.9, 0.0, 0.2, 0.0], [1, 0, 0, 0, 1], [0.9, 0.0], [0.2], 2),
    ],
    ids=[
        "two lesions by one candidate",
        "several candidates on one lesion",
        "no lesions",
        "no candidates",
        "the score may lie outside the lesion",
    ],
)
def test_candidates_by_hand(probability, truth, found, false, count):
    one = find_candidates(line(*probability), line(*truth), floor=0.1)
    assert one.found == pytest.approx(found) and one.false == pytest.approx(false) and one.count == count


def test_candidates_are_connected_by_corners_as_lesions_are():
    probability = np.zeros((4, 4, 4), np.float32)
    probability[1, 1, 1], probability[2, 2, 2] = 0.5, 0.6
    truth = np.zeros((4, 4, 4), np.uint8)
    truth[1, 1, 1] = 1
    assert find_candidates(probability, truth).found == pytest.approx([0.6])


def test_a_curve_by_hand():
    """Scores .9 (lesion), .8 (false), .7 (lesion), .6 and .6 (false); a third lesion is missed; two scans."""
    found = measure_froc([scan([0.9, 0.0], [0.6, 0.6], 3), scan([0.7], [0.8], 2)])
    assert found.curve_false_positives == [0, 0, 0.5, 0.5, 1.5]
    assert found.curve_sensitivity == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert found.sensitivity == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert found.score == pytest.approx((2 * 1 / 3 + 5 * 2 / 3) / 7)
    assert (found.scans, found.patients, found.lesions, found.candidates) == (2, 2, 3, 5)


def test_equal_scores_enter_together():
    """One operating point, 1 false positive per scan; below it the line from the origin."""
    found = measure_froc([scan([0.5], [0.5])])
    assert (found.curve_false_positives, found.curve_sensitivity) == ([0, 1], [0, 1])
    assert found.sensitivity == [0.125, 0.25, 0.5, 1, 1, 1, 1] and found.score == pytest.approx(4.875 / 7)


def test_without_lesions_the_sensitivity_is_undefined_and_false_positives_count():
    found = measure_froc([scan([], [0.5, 0.4]), scan([], [])])
    assert found.curve_false_positives == [0, 0.5, 1] and found.lesions == 0
    numbers = [found.score, found.score_low, found.score_high, *found.sensitivity, *found.sensitivity_low]
    assert all(map(math.isnan, numbers)) and found.row()["mean (95% interval)"] == "-"


def test_without_candidates_nothing_is_found():
    found = measure_froc([scan([0.0, 0.0], [])])
    assert (found.curve_false_positives, found.curve_sensitivity) == ([0], [0])
    assert found.sensitivity == [0] * 7 and (found.score, found.score_low, found.score_high) == (0, 0, 0)


def test_intervals_draw_all_scans_of_a_patient_together():
    """Two scans of patient a find their lesion, two of b do not: a sample has both patients, or one twice."""
    scans = [scan([0.9], []), scan([0.8], []), scan([0.0], []), scan([0.0], [])]
    pairs = measure_froc(scans, patients=["a", "a", "b", "b"])
    assert pairs.patients == 2 and (pairs.score, pairs.score_low, pairs.score_high) == (0.5, 0, 1)
    apart = measure_froc(scans)
    assert apart.patients == 4 and apart.score_low == 0 and apart.score_high == 1
    ten = [scan([0.9 if i % 3 else 0.0], [0.5] * (i % 2)) for i in range(10)]
    once = measure_froc(ten)
    fourfold = measure_froc([one for one in ten for _ in range(4)], patients=[str(i // 4) for i in range(40)])
    for key in ("score", "score_low", "score_high", "sensitivity", "sensitivity_low", "sensitivity_high"):
        assert getattr(once, key) == pytest.approx(getattr(fourfold, key)), key
    assert once.score_low < once.score < once.score_high


def test_samples_without_any_lesion_do_not_count():
    found = measure_froc([scan([0.9], []), scan([], [0.5])])
    assert found.score == 1.0 and (found.score_low, found.score_high) == (1.0, 1.0)


def test_curves_of_random_scans_agree_with_counting_and_with_monai():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scans = [
            scan(np.round(rng.random(rng.integers(4)), 1), np.round(rng.uniform(0.1, 1, rng.integers(9)), 1))
            for _ in range(5)
        ]
        lesions = np.concatenate([one.found for one in scans])
        false = np.concatenate([one.false for one in scans])
        if not len(lesions):
            continue
        points = [(0.0, 0.0)]
        for score in sorted({*lesions[lesions > 0], *false}, reverse=True):
            points.append(((false >= score).sum() / 5, (lesions >= score).sum() / len(lesions)))
        found = measure_froc(scans, draws=2)
        mine = list(zip(found.curve_false_positives, found.curve_sensitivity, strict=True))
        assert np.allclose(mine, points)
        assert np.allclose(found.sensitivity, np.interp(RATES, *zip(*points, strict=True)))
        theirs = compute_froc_curve_data(false, lesions[lesions > 0], len(lesions), 5)
        for point in zip(*theirs, strict=True):  # MONAI leaves out the lowest score
            assert np.isclose(mine, point).all(1).any()


@pytest.mark.parametrize("floor", [-0.1, 1.0, math.nan])
def test_a_threshold_that_leaves_no_candidates_is_refused(floor):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        find_candidates(line(0.5), line(1), floor=floor)


def test_arrays_and_patients_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="shape"):
        find_candidates(line(0.5), line(1, 1))
    with pytest.raises(ValueError, match="2 patients"):
        measure_froc([scan([0.5], [])], patients=["a", "b"])
    with pytest.raises(ValueError, match="at least one scan"):
        measure_froc([])


GRID = np.diag([2.0, 1.0, 3.0, 1.0])


@pytest.fixture
def folders(tmp_path):
    """Cases a, a_b, c: one lesion each. Maps find it with .9, .6 and not at all; a_b has a false positive of .7."""
    for kind in ("masks", "truth", "maps"):
        (tmp_path / kind).mkdir()
    for case, score, false in (("a", 0.9, 0.0), ("a_b", 0.6, 0.7), ("c", 0.05, 0.0)):
        mask, probability = np.zeros((12, 6, 6), np.uint8), np.zeros((12, 6, 6), np.float32)
        mask[2:4, 2:4, 2:4], probability[2:4, 2:4, 2:4], probability[8:10, 2, 2] = 1, score, false
        ctssl.Volume(mask, GRID).save(tmp_path / "truth" / f"{case}.nii.gz")
        ctssl.Volume((probability > 0.5).astype(np.uint8), GRID).save(tmp_path / "masks" / f"{case}.nii.gz")
        ctssl.Volume(probability, GRID).save(tmp_path / "maps" / f"{case}_tumour.nii.gz")
    return tmp_path


def ask(folders, **more):
    return ctssl.evaluate(folders / "masks", folders / "truth", froc=folders / "maps", **more)


def test_a_folder_of_maps_gives_a_curve_in_all_reports(folders, capsys):
    command = ["evaluate", str(folders / "masks"), str(folders / "truth"), "--froc", str(folders / "maps")]
    out = folders / "report"
    assert main([*command, "--names", "1=tumour", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "LUNA16" in printed and "above a probability of 0.1" in printed
    assert "| tumour | 3 | 3 | 3 | 0.333 | 0.333 | 0.667 | 0.667 | 0.667 | 0.667 | 0.667 | 0.571 (" in printed
    (told,) = json.loads((out / "report.json").read_text())["froc"]
    assert told["label"] == "tumour" and told["lesions"] == 3 and told["floor"] == 0.1
    assert told["curve_false_positives"] == pytest.approx([0, 0, 1 / 3, 1 / 3])
    assert told["curve_sensitivity"] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3])
    assert (out / "froc.png").read_bytes().startswith(b"\x89PNG") and "LUNA16" in (
        out / "report.md"
    ).read_text()
    assert main([*command, "--froc-threshold", "0.04", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["froc"]
    assert told["sensitivity"][-1] == 1.0 and told["floor"] == 0.04


def test_without_maps_there_is_no_curve(folders, capsys):
    found = ctssl.evaluate(folders / "masks", folders / "truth")
    assert found.froc == [] and "FROC" not in found.markdown()
    assert not (found.save(folders / "out") / "froc.png").exists()
    both = [str(folders / "masks"), str(folders / "truth")]
    assert main(["evaluate", *both, "--froc-threshold", "0.2"]) == 2
    assert "--froc PROBABILITIES" in capsys.readouterr().err


def test_a_picture_without_lesions_is_drawn(folders):
    for path in (folders / "truth").iterdir():
        ctssl.Volume(np.zeros((12, 6, 6), np.uint8), GRID).save(path, overwrite=True)
    found = ask(folders)
    assert math.isnan(found.froc[0].score) and found.plain()["froc"][0]["score"] is None
    assert (found.save(folders / "out") / "froc.png").exists()


def test_the_patients_of_the_table_are_those_of_the_interval(folders):
    (folders / "cases.csv").write_text("id,patient\na,p\na_b,p\nc,q\n")
    assert ask(folders).froc[0].patients == 3
    assert ask(folders, table=folders / "cases.csv").froc[0].patients == 2


def test_each_label_has_its_curve(folders):
    for case in ("a", "a_b", "c"):
        mask = ctssl.read(folders / "truth" / f"{case}.nii.gz")
        mask.array[8:10, 2, 2] = 2
        mask.save(folders / "truth" / f"{case}.nii.gz", overwrite=True)
        ctssl.Volume((mask.array == 2) * np.float32(0.3), GRID).save(
            folders / "maps" / f"{case}_left_node.nii.gz"
        )
    with pytest.raises(ValueError, match=r"label 1 has no name.*--names 1=liver"):
        ask(folders)
    found = ask(folders, names={1: "tumour", 2: "left node"})
    assert [(one.label, one.lesions, one.sensitivity[-1]) for one in found.froc] == [
        ("tumour", 3, pytest.approx(2 / 3)),
        ("left node", 3, 1.0),
    ]
    with pytest.raises(FileNotFoundError, match=r"no probability map a_cyst.nii.gz .* holds a_left_node"):
        ask(folders, names={1: "tumour", 2: "cyst"})


def test_a_map_of_another_scan_is_not_taken_for_one_of_the_case(folders):
    (folders / "maps" / "c_tumour.nii.gz").rename(folders / "maps" / "c_followup_tumour.nii.gz")
    with pytest.raises(ValueError, match="have different endings"):
        ask(folders)
    with pytest.raises(FileNotFoundError, match="no probability map c_tumour.nii.gz"):
        ask(folders, names={1: "tumour"})


def test_one_label_may_have_maps_of_the_names_of_the_cases(folders):
    expected = ask(folders).froc
    for path in (folders / "maps").iterdir():
        path.rename(path.with_name(path.name.replace("_tumour", "")))
    assert (
        ask(folders).froc == expected and ask(folders, names={1: "tumour"}).froc[0].score == expected[0].score
    )


@pytest.fixture
def no_scores(monkeypatch):
    """Masks are not scored: what is wrong with the maps has to be told before."""

    def score(*_, **__):
        raise AssertionError("the masks were scored first")

    monkeypatch.setattr("ctssl.evaluation.report.score_masks", score)


def test_a_missing_map_is_told_before_any_mask_is_read(folders, no_scores, monkeypatch):
    monkeypatch.setattr("ctssl.evaluation.scores.read_mask", lambda path, **_: pytest.fail("read a mask"))
    (folders / "maps" / "a_tumour.nii.gz").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"1 cases have no probability map .*\(a\); write .*--probabilities"
    ):
        ask(folders)
    with pytest.raises(FileNotFoundError, match="no folder"):
        ctssl.evaluate(folders / "masks", folders / "truth", froc=folders / "nothing")


def test_a_map_on_another_grid_is_told_from_its_header(folders, no_scores, monkeypatch):
    monkeypatch.setattr("ctssl.evaluation.scores.read_mask", lambda path, **_: pytest.fail("read a mask"))
    ctssl.Volume(np.zeros((12, 6, 5), np.float32), GRID).save(
        folders / "maps" / "c_tumour.nii.gz", overwrite=True
    )
    with pytest.raises(
        ValueError, match=r"c \(c_tumour.nii.gz\): .*different grids \(12 x 6 x 5 and 12 x 6 x 6"
    ):
        ask(folders)


@pytest.mark.parametrize(("factor", "low"), [(100.0, 0.0), (1.0, -4.0)], ids=["percent", "logits"])
def test_values_that_are_no_probabilities_are_told(folders, no_scores, factor, low):
    path = folders / "maps" / "a_tumour.nii.gz"
    soft = ctssl.read(path)
    ctssl.Volume(soft.array * np.float32(factor) + np.float32(low), GRID).save(path, overwrite=True)
    with pytest.raises(ValueError, match=r"a_tumour.nii.gz holds values from .*divide by 100.*sigmoid"):
        ask(folders)


def test_several_maps_of_a_case_need_a_name(folders, no_scores):
    (folders / "maps" / "a_node.nii.gz").write_bytes((folders / "maps" / "a_tumour.nii.gz").read_bytes())
    with pytest.raises(ValueError, match=r"2 maps of a \(a_node.nii.gz, a_tumour.nii.gz\); .*--names 1=node"):
        ask(folders)


def test_maps_of_a_segmenter_are_found(tiny_segmenter, ball, folders):
    """`ctssl segment --probabilities` writes MASKS/probabilities, which `--froc` takes."""
    scan_, truth = ball
    for kind in ("scans", "true"):
        (folders / kind).mkdir()
    scan_.save(folders / "scans" / "s.nii.gz")
    truth.save(folders / "true" / "s.nii.gz")
    out = str(folders / "out")
    model = ["--model", str(tiny_segmenter), "--device", "cpu", "--probabilities"]
    assert main(["segment", str(folders / "scans"), out, *model]) == 0
    assert main(["evaluate", out, str(folders / "true"), "--froc", f"{out}/probabilities", "--json"]) == 0
