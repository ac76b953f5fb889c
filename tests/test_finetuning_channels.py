"""Scans of several channels, such as PET/CT: found, read, trained on and segmented."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli.main import main
from ctssl.datasets.case import Dataset, read_case
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.scans import channels_in, list_scans, with_channels
from ctssl.encoders.layers import widen
from ctssl.finetuning import job
from ctssl.finetuning.crops import PreparedCase, draw
from ctssl.finetuning.plan import derive_channel
from ctssl.finetuning.request import Request
from ctssl.finetuning.start import open_start, take_head
from ctssl.loading import segmenter
from ctssl.scan_checks import ScanWarning
from ctssl.volume.grids import prepare
from ctssl.volume.volume import Volume
from ctssl.zoo import Channel, ModelSpec, Preprocess
from tests.support.tiny import QUICK

NAMES = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "lesion": 1}}


@pytest.fixture
def petct(ball, tmp_path):
    """Three cases in nnU-Net's layout whose ball is seen in the PET (SUV 8) alone."""
    scan, mask = ball
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / "petct" / folder).mkdir(parents=True)
    for number in range(3):
        rng = np.random.default_rng(number)
        inside = np.roll(mask.array, number, 0) > 0
        flat = np.where(scan.array < -500, -1000, 40) + rng.normal(0, 20, scan.shape)
        ct = Volume(flat.astype(np.float32), scan.affine)
        pet = Volume((rng.random(scan.shape) + 8.0 * inside).astype(np.float32), scan.affine)
        ct.save(tmp_path / "petct" / "imagesTr" / f"P{number}_0000.nii.gz")
        pet.save(tmp_path / "petct" / "imagesTr" / f"P{number}_0001.nii.gz")
        Volume(inside.astype(np.uint8), scan.affine).save(
            tmp_path / "petct" / "labelsTr" / f"P{number}.nii.gz"
        )
    (tmp_path / "petct" / "dataset.json").write_text(json.dumps(NAMES))
    return tmp_path / "petct"


@pytest.fixture
def table(petct):
    """The same cases as a CSV."""
    rows = [
        f"P{n},imagesTr/P{n}_0000.nii.gz,imagesTr/P{n}_0001.nii.gz,labelsTr/P{n}.nii.gz" for n in range(3)
    ]
    (petct / "cases.csv").write_text("\n".join(["id,image,image2,label", *rows]) + "\n")
    return petct / "cases.csv"


def test_cases_of_several_channels_are_found_in_both_layouts(petct, table):
    one, two = find_cases(petct), find_cases(table)
    assert [case.name for case in one.cases] == [case.name for case in two.cases] == ["P0", "P1", "P2"]
    assert one.channels == ("PET",) and two.channels == ("channel 2",)
    assert all(not case.facts for case in two.cases)
    for left, right in zip(one.cases, two.cases, strict=True):
        ours, theirs = read_case(left)[0], read_case(right)[0]
        assert ours.stack.shape == (2, *ours.shape) and ours.extra[0].max() > 7
        np.testing.assert_array_equal(ours.stack, theirs.stack)


def test_a_case_that_lacks_a_channel_is_named(petct):
    (petct / "imagesTr" / "P1_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"P1 has 1 channel, dataset\.json names 2"):
        find_cases(petct)
    (petct / "imagesTr" / "P1_0002.nii.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"P1_0001 is missing, but P1_0002\.nii\.gz"):
        find_cases(petct)


def test_channels_lie_on_one_grid(ball):
    scan, _ = ball
    with pytest.raises(ValueError, match=r"channel 2 \(pet\) has \(35"):
        ctssl.read(ctssl.Channels(scan, Volume(scan.array[1:], scan.affine, "pet")))
    moved = scan.affine.copy()
    moved[0, 3] += 5
    with pytest.raises(ValueError, match=r"channel 2 \(pet\) lie up to 5\.0 mm apart"):
        ctssl.read(ctssl.Channels(scan, Volume(scan.array, moved, "pet")))
    with pytest.raises(ValueError, match=r"channel 2 \(pet\) is the CT once more"):
        ctssl.read(ctssl.Channels(scan, Volume(scan.array.copy(), scan.affine, "pet")))
    with pytest.raises(ValueError, match=r"channel 2 \(pet\) holds 0 alone"):
        ctssl.read(ctssl.Channels(scan, Volume(np.zeros_like(scan.array), scan.affine, "pet")))


def test_files_of_a_case_are_its_channels(petct):
    first = petct / "imagesTr" / "P0_0000.nii.gz"
    (petct / "imagesTr" / "P0_0001.nii.gz").rename(petct / "imagesTr" / "P0_0001.NII")
    second = petct / "imagesTr" / "P0_0001.NII"
    assert channels_in(petct / "imagesTr")[first] == (second,) and not channels_in(petct / "labelsTr")
    scans = with_channels({"P0": first, "L0": petct / "labelsTr" / "P0.nii.gz"})
    assert isinstance(scans["P0"], ctssl.Channels) and scans["P0"].images == (first, second)
    assert scans["L0"] == petct / "labelsTr" / "P0.nii.gz"


def test_a_scan_with_a_mask_of_its_own_is_no_channel(petct):
    """Masks P1 and P1_0001: two cases, of which one has the number in its name."""
    (petct / "dataset.json").unlink()
    (petct / "labelsTr" / "P1_0001.nii.gz").write_bytes((petct / "labelsTr" / "P1.nii.gz").read_bytes())
    masks = list_scans(petct / "labelsTr", unlabelled=False)
    found = list_scans(petct / "imagesTr", masks=masks, channels=True)
    assert sorted(found) == ["P0", "P1", "P1_0001", "P2"]
    assert set(channels_in(petct / "imagesTr", masks)) == {found["P0"], found["P2"]}
    with pytest.raises(ValueError, match="P1 has 1 channel, P0 has 2"):
        find_cases(petct)


def test_what_dataset_json_says_of_channels_counts(petct):
    (petct / "dataset.json").write_text(json.dumps({**NAMES, "channel_names": {"0": "CT"}}))
    with pytest.raises(ValueError, match="P0 has 2 channels, dataset.json names 1"):
        find_cases(petct)
    (petct / "dataset.json").write_text(json.dumps({**NAMES, "channel_names": {"1": "PET", "0": "CT"}}))
    assert find_cases(petct).channels == ("PET",)


def test_other_cases_of_a_decathlon_are_no_channels(petct):
    """Its cases may be numbered like channels."""
    for number in range(3):
        for folder, ending in (("imagesTr", "_0000"), ("labelsTr", "")):
            source = petct / folder / f"P{number}{ending}.nii.gz"
            source.rename(petct / folder / f"lung_{number:04d}.nii.gz")
    entries = [
        {"image": f"imagesTr/lung_{n:04d}.nii.gz", "label": f"labelsTr/lung_{n:04d}.nii.gz"} for n in (0, 2)
    ]
    (petct / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "training": entries}))
    assert [(case.name, case.channels) for case in find_cases(petct).cases] == [
        ("lung_0000", ()),
        ("lung_0002", ()),
    ]


def test_columns_of_channels_have_no_gap(table):
    table.write_text(table.read_text().replace("image2", "image3"))
    with pytest.raises(ValueError, match="column image3; call the channels beside the first image2"):
        find_cases(table)


def test_commands_for_the_ct_alone_refuse_channels(petct, ball, tiny_segmenter, tmp_path):
    from ctssl.finetuning.probe import probe

    with pytest.raises(
        ValueError, match=r"probe takes the CT alone, and these cases have 2 channels \(CT, PET\)"
    ):
        probe(petct, models=["vit-scratch"], progress=False)
    with pytest.raises(ValueError, match="robustness takes the CT alone"):
        ctssl.measure_robustness(petct, out=tmp_path / "r", model=str(tiny_segmenter))
    scan, _ = ball
    pet = Volume(scan.array / 2, scan.affine, "pet")
    with pytest.raises(ValueError, match="a shift changes a CT alone"):
        ctssl.shift(ctssl.Channels(scan, pet), "dose", severity=1)


def test_no_channel_is_dropped(ball):
    scan, _ = ball
    other, third = (Volume(scan.array / by, scan.affine) for by in (2, 3))
    three = ctssl.read(ctssl.Channels(ctssl.read(ctssl.Channels(scan, other)), third))
    assert three.stack.shape == (3, *scan.shape)
    broken = dataclasses.replace(scan, extra=(np.full(scan.shape, np.nan, np.float32),))
    with pytest.raises(ValueError, match="NaN"):
        ctssl.read(broken)


def test_every_channel_has_its_own_window(ball):
    scan, _ = ball
    other = Volume(np.full(scan.shape, 5.0, np.float32), scan.affine)
    other.array[0, 0, 0] = 5.001
    how = Preprocess(3.0, (-100.0, 300.0), (Channel("PET", 0.0, 20.0),))
    ready = prepare(ctssl.read(ctssl.Channels(scan, other)), how)
    np.testing.assert_array_equal(ready.array, prepare(scan, Preprocess(3.0, (-100.0, 300.0))).array)
    np.testing.assert_allclose(ready.extra[0], 0.25, atol=1e-4)
    with pytest.raises(ValueError, match=r"has 1 channels, the model takes 2 \(CT, PET\)"):
        prepare(scan, how)
    with pytest.raises(ValueError, match=r"has 2 channels, the model takes 1 \(CT\)"):
        prepare(ctssl.read(ctssl.Channels(scan, other)), Preprocess())


def test_windows_follow_from_labelled_values():
    low, high = derive_channel(np.linspace(2, 12, 1001))
    assert low == pytest.approx(2.05 - 2.475, abs=0.01) and high == pytest.approx(11.95 + 2.475, abs=0.01)
    assert derive_channel(np.full(5, 3.0)) == (2.25, 3.75)
    low, high = derive_channel(np.linspace(12342, 12343, 50))  # narrow, and far from 0
    assert low < 12342 and high > 12343
    assert derive_channel(np.zeros(0)) == (-0.25, 1.25)


def test_crops_move_all_channels_alike():
    rng = np.random.default_rng(0)
    image = rng.random((40, 40, 40)).astype(np.float16)
    scan = PreparedCase(np.stack([image, image]), (image > 0.5).astype(np.uint8), np.eye(4), "twice")
    settings = ctssl.Settings(crop=16, batch=4, degrade=0.0, intensity=0.0, warp=1.0)
    images, labels = draw([scan], settings, 3)
    assert images.shape == (4, 2, 16, 16, 16) and labels.shape == (4, 1, 16, 16, 16)
    torch.testing.assert_close(images[:, 0], images[:, 1])
    still, masks = draw([scan], ctssl.Settings(crop=16, batch=4, degrade=0, intensity=0, warp=0, trim=0), 3)
    torch.testing.assert_close((still[:, :1] > 0.5).long(), masks)


def test_a_head_that_comes_along_sees_equal_channels_as_one(tiny):
    torch.manual_seed(0)
    one = segmenter(tiny, head="light", window=24).eval()
    start = open_start(one, "", from_scratch=False, seed=0)
    two = segmenter(start.encoder, head="light", window=24, in_channels=2).eval()
    take_head(two, start)
    image = torch.rand(1, 1, 24, 24, 24)
    torch.testing.assert_close(two(image.repeat(1, 2, 1, 1, 1)), one(image), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_segmenter_learns_what_one_channel_alone_shows(petct, table, tiny, tmp_path, capsys):
    settings = ctssl.Settings(steps=60, batch=2, crop=24, lr=4e-3, encoder_lr=4e-3)
    arguments = {"model": tiny, "hold_out": ["P1"], "settings": settings, "progress": False}
    report = ctssl.finetune(petct, out=tmp_path / "both", **arguments)
    assert report.mean_dsc > 0.75
    ct_alone = {"images": only_ct(petct), "labels": petct / "labelsTr"}
    alone = ctssl.finetune(**ct_alone, out=tmp_path / "ct", **arguments)
    assert alone.mean_dsc < report.mean_dsc - 0.2  # the CT shows nothing, only the place is learned
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    (name, low, high), *others = config["preprocess"]["channels"]
    assert name == "PET" and low < 8 < high and not others and config["encoder_args"]["in_channels"] == 2
    net = ctssl.load_segmenter(tmp_path / "both")
    ct, pet = (petct / "imagesTr" / f"P1_000{n}.nii.gz" for n in range(2))
    mask = net.segment(ctssl.Channels(ct, pet))
    truth = ctssl.read(petct / "labelsTr" / "P1.nii.gz")
    assert ctssl.metrics.dsc(mask.array == 1, truth.array == 1) == pytest.approx(report.mean_dsc)
    assert not mask.extra and net.preprocess(ctssl.Channels(ct, pet)).shape[:2] == (1, 2)
    told = json.loads((tmp_path / "both" / "report.json").read_text())
    assert told["channels"] == config["preprocess"]["channels"]
    card = (tmp_path / "both" / "README.md").read_text()
    assert f"; PET {low:g} to {high:g}." in card and "in CT, PET. " in card
    assert 'segment(ctssl.Channels("ct.nii.gz", "channel2.nii.gz"))' in card
    with pytest.raises(ValueError, match=r"has 1 channels, the model takes 2 \(CT, PET\)"):
        net.segment(ct)

    model = ["--model", str(tmp_path / "both")]
    assert main(["segment", str(ct), str(tmp_path / "one.nii.gz"), "--channel", str(pet), *model]) == 0
    np.testing.assert_array_equal(ctssl.read(tmp_path / "one.nii.gz").array, mask.array)
    assert main(["segment", str(petct / "imagesTr"), str(tmp_path / "masks"), *model]) == 0
    np.testing.assert_array_equal(ctssl.read(tmp_path / "masks" / "P1.nii.gz").array, mask.array)
    assert main(["segment", str(petct / "imagesTr"), str(tmp_path / "masks"), "--resume", *model]) == 0
    assert main(["segment", str(petct / "only"), str(tmp_path / "other"), *model]) != 0
    assert "1 channels, the model takes 2" in capsys.readouterr().err

    again = ctssl.finetune(  # a model of two channels starts the next one, from the table
        table, out=tmp_path / "again", **{**arguments, "model": str(tmp_path / "both"), "settings": QUICK}
    )
    assert again.mean_dsc > 0.5


def only_ct(folder):
    """Return a folder with the CT of each case."""
    (folder / "only").mkdir()
    for path in (folder / "imagesTr").glob("*_0000.nii.gz"):
        (folder / "only" / path.name.replace("_0000", "")).write_bytes(path.read_bytes())
    return folder / "only"


def test_what_cannot_be_done_with_channels_is_refused_before_work(petct, tiny, tmp_path):
    where = {"model": tiny, "out": tmp_path / "m", "progress": False}
    with pytest.raises(ValueError, match="shift_augment changes a CT alone"):
        ctssl.finetune(petct, settings=ctssl.Settings(steps=1, shift_augment=1), **where)
    with pytest.raises(ValueError, match="2 channel windows, but the cases have 1"):
        ctssl.finetune(petct, settings=QUICK, channel_windows=[(0, 1), (0, 1)], **where)
    with pytest.raises(ValueError, match="empty=0.5, but no training case has an empty mask"):
        ctssl.finetune(petct, settings=dataclasses.replace(QUICK, empty=0.5), **where)
    with pytest.raises(ValueError, match="give a lower and a higher value"):
        ctssl.finetune(petct, settings=QUICK, channel_windows=[(1, 0)], **where)
    assert not (tmp_path / "m").exists()


def test_config_of_channels_is_checked(tiny, tmp_path):
    from ctssl.hub.config import read_preprocess

    good = {"name": "m", "preprocess": {"spacing_mm": 1, "window_hu": [0, 1], "channels": [["PET", 0, 9]]}}
    assert read_preprocess(good).channels == (Channel("PET", 0.0, 9.0),)
    for odd in ([["PET", 9, 0]], [["PET", 0, float("nan")]], [["PET"]], 7, [["a\x1b", 0, 1]]):
        bad = {"name": "m", "preprocess": {**good["preprocess"], "channels": odd}}
        with pytest.raises(ValueError, match="invalid channel"):
            read_preprocess(bad)


def test_folds_share_a_plan_so_that_their_models_can_be_averaged(petct, tiny, tmp_path):
    scan = ctssl.read(petct / "imagesTr" / "P2_0001.nii.gz")
    Volume(3 * scan.array, scan.affine).save(petct / "imagesTr" / "P2_0001.nii.gz", overwrite=True)
    plans = [
        job.prepare_job(
            Request(tmp_path / f"fold{fold}", tiny, QUICK, folds=3, fold=fold, progress=False),
            find_cases(petct),
        ).plan
        for fold in range(3)
    ]
    assert plans[0] == plans[1] == plans[2] and plans[0].preprocess.channels[0].high > 24
    few = Request(tmp_path / "few", tiny, QUICK, folds=3, fold=1, few_shot=1, progress=False)
    assert job.prepare_job(few, find_cases(petct)).plan == plans[0]


def test_windows_of_a_model_are_taken_where_its_channels_are_those_of_the_cases():
    own = Preprocess(channels=(Channel("PET", 0.0, 9.0),))
    assert job.known_windows(own, ("PET",)) == [(0.0, 9.0)]
    assert job.known_windows(own, ("channel 2",)) == [(0.0, 9.0)]  # without a name
    assert job.known_windows(own, ("MR",)) is None
    assert job.known_windows(Preprocess(), ("PET",)) is None


def test_channels_in_another_order_are_refused(petct, tiny, tmp_path):
    net = segmenter(tiny, in_channels=3)
    net.encoder.spec = ModelSpec(
        "mine", "encoder", "swin", preprocess=Preprocess(channels=(Channel("MR", 0, 1), Channel("PET", 0, 1)))
    )
    start = open_start(net, "", from_scratch=False, seed=0)
    for names, words in (
        (("PET", "MR"), "number them in the same order"),
        (("PET",), "takes 3 channels, the cases have 2"),
    ):
        with pytest.raises(ValueError, match=words):
            job.check_channels(Request(tmp_path, net, QUICK), Dataset([], channels=names), start)


def test_a_channel_in_another_unit_is_told(petct, tiny, tmp_path):
    """By `check` where the other cases have another one, and where a model knows another one."""
    path = petct / "imagesTr" / "P1_0001.nii.gz"
    pet = ctssl.read(path)
    assert problems(find_cases(petct)) == []
    pet.on_grid(pet.array * 5000).save(path, overwrite=True)  # Bq/ml instead of SUV
    (found,) = problems(find_cases(petct))
    assert (found.level, found.code, found.case) == ("warning", "unit", "P1") and "one unit" in found.message
    encoder = widen(tiny, 2)
    encoder.spec = dataclasses.replace(
        encoder.spec or ModelSpec("", "encoder", "swin"),
        preprocess=Preprocess(2.0, (-500.0, 500.0), (Channel("PET", -2.0, 10.0),)),
    )
    ct = petct / "imagesTr" / "P1_0000.nii.gz"
    with pytest.warns(ScanWarning, match="the channel PET has values up to 4.*the model knows -2 to 10"):
        encoder.preprocess(ctssl.Channels(ct, path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.preprocess(ctssl.Channels(ct, pet))
