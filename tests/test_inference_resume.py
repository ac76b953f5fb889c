"""Stale results: what stands beside a mask says which model, settings and scan it is of, and is written last."""

import json
import os

import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli.main import main
from ctssl.inference import folder
from ctssl.inference.folder import segment_folder, target_of
from ctssl.inference.windows import Windows
from ctssl.scan_checks import ScanWarning
from ctssl.volume.volume import Volume


@pytest.fixture
def scans(ball, tmp_path):
    (tmp_path / "scans").mkdir()
    for number in range(2):
        noise = np.random.default_rng(number).normal(0, 5, ball[0].shape).astype(np.float32)
        Volume(ball[0].array + noise, ball[0].affine).save(tmp_path / "scans" / f"{number}.nii.gz")
    return tmp_path / "scans"


class Killed(BaseException):
    """As sudden as a kill: nothing here catches it."""


def killed_at(monkeypatch, rename: int):
    """The process stops before its rename number `rename`."""
    count, replace = [0], os.replace

    def counted(*args):
        count[0] += 1
        if count[0] == rename:
            raise Killed
        replace(*args)

    monkeypatch.setattr(os, "replace", counted)


@pytest.mark.slow
@pytest.mark.parametrize("rename", [1, 2, 3, 4])
def test_a_mask_of_one_model_never_stands_under_the_name_of_another(
    net, scans, tmp_path, monkeypatch, rename
):
    """Killed while the masks of A are replaced by those of B: resumed with B, all are of B; with A, it is refused or redone."""
    out = tmp_path / "out"
    segment_folder(net, scans, out)
    other = ctssl.segmenter(net.encoder, head="linear")
    other.threshold, other.window = 0.2, net.window
    with monkeypatch.context() as patch:
        killed_at(patch, rename)
        with pytest.raises(Killed):
            segment_folder(other, scans, out, overwrite=True)
    for name in "01":  # whole records tell the truth about their mask
        record = json.loads((out / f"{name}.ctssl.json").read_text())
        if record["state"] == "whole":
            assert record["files"] == {f"{name}.nii.gz": folder.file_sha256(out / f"{name}.nii.gz")}
    (out / "1.nii.gz").unlink()
    (out / "1.ctssl.json").unlink()
    if json.loads((out / "0.ctssl.json").read_text())["state"] == "whole" and rename < 3:
        with pytest.raises(ValueError, match=r"was made otherwise: model .*; threshold 0\.5, now 0\.2"):
            segment_folder(other, scans, out, resume=True)
        return
    assert segment_folder(other, scans, out, resume=True) == {}
    for name in "01":
        np.testing.assert_array_equal(
            ctssl.read(out / f"{name}.nii.gz").array, other.segment(scans / f"{name}.nii.gz").array
        )


def test_a_scan_replaced_under_the_same_name_does_not_keep_its_old_mask(net, scans, tmp_path):
    out = tmp_path / "out"
    segment_folder(net, scans, out)
    assert segment_folder(net, scans, out, resume=True) == {}
    scan = ctssl.read(scans / "0.nii.gz")
    Volume(scan.array[:-4], scan.affine).save(scans / "0.nii.gz", overwrite=True)  # on another grid
    with pytest.raises(ValueError, match=r"0\.nii\.gz was made otherwise: scan "):
        segment_folder(net, scans, out, resume=True)
    (out / "0.nii.gz").unlink()
    (out / "0.ctssl.json").unlink()
    assert segment_folder(net, scans, out, resume=True) == {}
    assert ctssl.read(out / "0.nii.gz").shape == (scan.shape[0] - 4, *scan.shape[1:])


def test_maps_are_vouched_for_too_and_what_was_edited_stays(net, scans, tmp_path):
    out = tmp_path / "out"
    segment_folder(net, scans, out, probabilities=True)
    maps = out / "probabilities" / "0_tumour.nii.gz"
    record = json.loads((out / "0.ctssl.json").read_text())
    assert record["files"][maps.name] == folder.file_sha256(maps)
    mask = ctssl.read(out / "0.nii.gz")
    Volume(np.ones(mask.shape, np.uint8), mask.affine).save(out / "0.nii.gz", overwrite=True)
    with pytest.warns(ScanWarning, match="was changed after it was written; it is left as it is"):
        assert segment_folder(net, scans, out, resume=True, probabilities=True) == {}
    assert ctssl.read(out / "0.nii.gz").array.min() == 1


def test_a_mask_that_was_damaged_is_not_counted_as_done(net, scans, tmp_path):
    out = tmp_path / "out"
    segment_folder(net, scans, out)
    path = out / "0.nii.gz"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(
        ValueError, match=r"0\.nii\.gz was damaged after it was written; remove it and start again"
    ):
        segment_folder(net, scans, out, resume=True)
    path.unlink()
    assert segment_folder(net, scans, out, resume=True) == {} and ctssl.read(path).shape


def test_files_of_the_user_are_not_replaced(net, scans, tmp_path, capsys):
    """A record of that name that ctssl did not write; a slice of the series that is read."""
    net.save_pretrained(tmp_path / "net")
    (tmp_path / "keep.ctssl.json").write_text('{"mine": 1}')
    ask = [
        "segment",
        str(scans / "0.nii.gz"),
        str(tmp_path / "keep.nii.gz"),
        "--model",
        str(tmp_path / "net"),
    ]
    assert main(ask) == 2 and "keep.ctssl.json exists" in capsys.readouterr().err
    assert (tmp_path / "keep.ctssl.json").read_text() == '{"mine": 1}'
    series = tmp_path / "series"
    series.mkdir()
    (series / "slice0.dcm").write_bytes(b"a slice")
    ask = [
        "segment",
        str(series),
        str(series / "slice0.dcm"),
        "--model",
        str(tmp_path / "net"),
        "--overwrite",
    ]
    assert main(ask) == 2 and "is a file of an input scan" in capsys.readouterr().err
    assert (series / "slice0.dcm").read_bytes() == b"a slice"


def test_nothing_is_left_out_without_a_word(net, scans, tmp_path):
    (scans / "0.nii.gz").rename(scans / "B.NII.GZ")
    (scans / "deep").mkdir()
    (scans / "1.nii.gz").rename(scans / "deep" / "1.nii.gz")
    (scans / "2.mha").touch()
    with (
        pytest.warns(ScanWarning, match="left out 1 NIfTI files in subfolders, first deep/1.nii.gz"),
        pytest.warns(ScanWarning, match=r"1 scans that are not NIfTI \(2.mha\)"),
    ):
        assert segment_folder(net, scans, tmp_path / "out") == {}
    assert (tmp_path / "out" / "B.nii.gz").exists()
    for number in ("0000", "0001"):
        (scans / f"p_{number}.nii.gz").write_bytes((scans / "B.NII.GZ").read_bytes())
    (scans / "deep" / "1.nii.gz").unlink()
    (scans / "2.mha").unlink()
    with pytest.raises(ValueError, match=r"p_0000\.nii\.gz: 2 channels, the model takes 1; .*rename them"):
        segment_folder(net, scans, tmp_path / "more")


def test_a_mask_of_another_window_or_grid_is_not_resumed(net, scans, tmp_path):
    out = tmp_path / "out"
    segment_folder(net, scans, out)
    net.window += 8
    with pytest.raises(ValueError, match="made otherwise: window"):
        segment_folder(net, scans, out, resume=True)
    net.window -= 8
    assert segment_folder(net, scans, out, resume=True) == {}
    record = json.loads((out / "0.ctssl.json").read_text())
    del record["window"], record["preprocess"]  # of an earlier version
    (out / "0.ctssl.json").write_text(json.dumps(record))
    assert segment_folder(net, scans, out, resume=True) == {}


def test_maps_of_others_are_left_alone(net, scans, tmp_path):
    out = tmp_path / "out"
    (out / "probabilities").mkdir(parents=True)
    theirs = out / "probabilities" / f"0_{net.labels[1]}.nii.gz"
    theirs.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="is not of an earlier run"):
        segment_folder(net, scans, out, probabilities=True, resume=True)
    assert theirs.read_bytes() == b"mine"
    net.labels = {1: "left_a", 2: "a"}
    (scans / "1.nii.gz").rename(scans / "0_left.nii.gz")
    with pytest.raises(ValueError, match="would share 0_left_a.nii.gz; rename one"):
        segment_folder(net, scans, out, probabilities=True, overwrite=True)


def test_labels_that_would_share_a_file_are_refused(tiny, tmp_path):
    net = ctssl.segmenter(tiny, head="linear", classes=3, labels={1: "a/b", 2: "a_b"})
    with pytest.raises(ValueError, match="would share files"):
        target_of(net, tmp_path / "n.nii.gz", with_maps=True)


@pytest.mark.slow
def test_masks_of_half_precision_are_not_resumed_as_others_and_those_of_one_scan_are(net, scans, tmp_path):
    out = tmp_path / "out"
    segment_folder(net, scans, out, windows=Windows(bf16=True))
    with pytest.raises(ValueError, match="made with bf16"):
        segment_folder(net, scans, out, resume=True)
    net.save_pretrained(tmp_path / "net")
    one = tmp_path / "one"
    one.mkdir()
    model = ["--model", str(tmp_path / "net")]
    assert main(["segment", str(scans / "0.nii.gz"), str(one / "0.nii.gz"), *model]) == 0
    assert main(["segment", str(scans), str(one), "--resume", *model]) == 0  # the same scan, in a folder


def test_a_model_whose_weights_changed_in_memory_is_another_model(scans, tmp_path):
    """`spec.sha256` is the encoder's, whatever the head is and whatever was trained since."""
    model = ctssl.segmenter("vit-tiny-random", window=32)
    segment_folder(model, scans, tmp_path / "out")
    assert segment_folder(model, scans, tmp_path / "out", resume=True) == {}
    with torch.no_grad():
        next(iter(model.head.parameters())).add_(1.0)
    with pytest.raises(ValueError, match=r"was made otherwise: model "):
        segment_folder(model, scans, tmp_path / "out", resume=True)
