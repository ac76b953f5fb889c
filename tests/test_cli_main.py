"""The command: what it prints, what it writes, what it refuses, and its exit codes."""

import dataclasses
import json

import numpy as np
import pytest

import ctssl
from ctssl.cli.main import _parser, main
from ctssl.encoders.pixels import Pixels
from ctssl.metrics import dsc
from ctssl.phantom import phantom
from ctssl.zoo import DEFAULT, best_first
from tests.support.command import refused
from tests.support.tiny import tiny_swin


@pytest.fixture
def scan(tmp_path):
    """The part of a phantom around its tumour."""
    whole = phantom(6.0)[0]
    part = np.ascontiguousarray(whole.array[26:50, 8:32, 10:30])
    return ctssl.Volume(part, whole.affine, "part").save(tmp_path / "scan.nii.gz")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    net = ctssl.segmenter(tiny_swin(), head="linear")
    return net.save_pretrained(tmp_path_factory.mktemp("models") / "model")


def said(capsys, *args) -> str:
    assert main([str(a) for a in args]) == 0
    return capsys.readouterr().out


def test_list_and_info(capsys):
    names = ctssl.list_models()
    assert all(name in said(capsys, "list") for name in names)
    assert [m["name"] for m in json.loads(said(capsys, "list", "--json"))] == best_first(names)
    assert json.loads(said(capsys, "info", names[0], "--json"))["sha256"] == ctssl.info(names[0]).sha256
    assert "ctssl.load" in said(capsys, "info", names[0])
    assert "did you mean" in refused(capsys, "info", names[0] + "x")
    assert "no model matches" in refused(capsys, "list", "zzz*")


@pytest.mark.slow
def test_embed(capsys, scan, tmp_path):
    vector = np.array(said(capsys, "embed", scan).split(), float)
    assert vector.shape == (ctssl.load(DEFAULT).channels[-1],)
    said(capsys, "embed", scan, tmp_path / "v.npy")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), vector, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(
        json.loads(said(capsys, "embed", scan, "--json"))["embedding"], vector, rtol=1e-3, atol=1e-4
    )
    assert "exists" in refused(capsys, "embed", scan, tmp_path / "v.npy")
    assert "no scan" in refused(capsys, "embed", tmp_path / "none.nii.gz")


def test_segment(capsys, scan, model, tmp_path):
    out = tmp_path / "mask.nii.gz"
    assert "tumour" in said(
        capsys, "segment", scan, out, "--model", model, "--overlay", tmp_path / "look.png"
    )
    mask, volume = ctssl.read(out), ctssl.read(scan)
    assert mask.shape == volume.shape and np.allclose(mask.affine, volume.affine)
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    before = out.read_bytes()
    assert "--overwrite" in refused(capsys, "segment", scan, out, "--model", model)
    assert out.read_bytes() == before
    found = json.loads(said(capsys, "segment", scan, out, "--model", model, "--overwrite", "--json"))
    assert found["volume_ml"]["tumour"] == pytest.approx((mask.array == 1).sum() * 0.216, abs=0.01)
    assert "must end in" in refused(capsys, "segment", scan, tmp_path / "mask.png", "--model", model)
    assert "untrained" in refused(capsys, "segment", scan, tmp_path / "m.nii.gz", "--model", "swin-wild-mim")
    assert "make it first" in refused(capsys, "segment", scan, tmp_path / "no" / "m.nii.gz", "--model", model)
    beside = json.loads((tmp_path / "mask.ctssl.json").read_text())
    assert beside["labels"] == {"1": "tumour"} and beside["volume_ml"] == found["volume_ml"]


@pytest.mark.slow
def test_segment_with_probabilities(capsys, scan, model, tmp_path):
    said(capsys, "segment", scan, tmp_path / "m.nii.gz", "--model", model, "--probabilities", "--tta")
    mask, chance = (ctssl.read(tmp_path / name).array for name in ("m.nii.gz", "m_tumour.nii.gz"))
    assert chance.min() >= 0 and chance.max() <= 1 and (mask == (chance > 0.5)).mean() > 0.9999
    np.testing.assert_array_equal(mask, ctssl.load_segmenter(model).segment(scan, tta=True).array)
    (tmp_path / "m.nii.gz").unlink()
    (tmp_path / "m.ctssl.json").unlink()
    assert "m_tumour" in refused(
        capsys, "segment", scan, tmp_path / "m.nii.gz", "--model", model, "--probabilities"
    )


@pytest.mark.slow
def test_segment_a_folder(capsys, scan, model, tmp_path):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    for name in "abcd":
        (scans / f"{name}_0000.nii.gz").write_bytes(scan.read_bytes())
    (scans / "c_0000.nii.gz").write_bytes(scan.read_bytes()[:2000])
    args = ["segment", str(scans), str(out), "--model", str(model)]
    assert main([*args, "--shard", "1/2"]) == 0
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["b.nii.gz", "d.nii.gz"]
    kept = (out / "b.nii.gz").stat().st_mtime_ns
    assert "--resume" in refused(capsys, *args)
    assert main([*args, "--resume"]) == 1
    said_so = capsys.readouterr()
    assert "3 of 4" in said_so.out and "c: " in said_so.err and "Traceback" not in said_so.err
    assert sorted(p.name for p in out.glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz", "d.nii.gz"]
    assert (out / "b.nii.gz").stat().st_mtime_ns == kept and not list(out.glob(".part*"))
    np.testing.assert_array_equal(ctssl.read(out / "a.nii.gz").array, ctssl.read(out / "b.nii.gz").array)
    other = refused(capsys, *args, "--resume", "--threshold", "0.3")
    assert "was made otherwise: threshold 0.5, now 0.3" in other
    (scans / "a.nii.gz").write_bytes((scans / "a_0000.nii.gz").read_bytes())
    for flag in ("--overwrite", "--resume"):
        assert "is an input scan" in refused(capsys, "segment", scans, scans, "--model", model, flag)
    assert "is an input scan" in refused(capsys, "segment", scan, scan, "--model", model, "--overwrite")
    (scans / "a.nii.gz").unlink()
    assert "from 0 to N-1" in refused(capsys, *args, "--shard", "2/2")
    assert "one scan" in refused(capsys, *args, "--overlay", tmp_path / "x.png")
    assert "one scan" in refused(capsys, *args, "--series", "1.2.3")
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "typo"):
        assert f"no scans in {nothing}" in refused(
            capsys, "segment", nothing, tmp_path / "new", "--model", model
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("default::ctssl.scan_checks.ScanWarning")
def test_a_folder_with_its_masks_inside_and_maps_of_every_label(capsys, scan, model, tmp_path):
    """Masks may lie in the folder of the scans; maps lie apart, so that the masks can be evaluated as they are."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in "ab":
        (scans / f"{name}.nii.gz").write_bytes(scan.read_bytes())
    args = ["segment", str(scans), str(scans / "masks"), "--model", str(model)]
    assert "2 of 2" in said(capsys, *args)
    mine = ctssl.read(scans / "masks" / "a.nii.gz")  # corrected by hand
    dataclasses.replace(mine, array=np.ones(mine.shape, np.uint8)).save(
        scans / "masks" / "a.nii.gz", overwrite=True
    )
    assert "2 of 2" in said(capsys, *args, "--resume", "--probabilities")
    assert ctssl.read(scans / "masks" / "a.nii.gz").array.min() == 1
    assert sorted(p.name for p in (scans / "masks").glob("*.nii.gz")) == ["a.nii.gz", "b.nii.gz"]
    maps = scans / "masks" / "probabilities"
    assert sorted(p.name for p in maps.iterdir()) == ["a_tumour.nii.gz", "b_tumour.nii.gz"]
    before = (maps / "a_tumour.nii.gz").stat().st_mtime_ns
    assert "2 of 2" in said(capsys, *args, "--resume", "--probabilities")
    assert (maps / "a_tumour.nii.gz").stat().st_mtime_ns == before
    assert main(["evaluate", str(scans / "masks"), str(scans / "masks")]) == 0


@pytest.mark.slow
def test_finetune(capsys, labelled, tmp_path):
    out = tmp_path / "mine"
    quick = ("--steps", 1, "--batch", 1, "--crop", 16, "--hold-out", "case2", "--model", "swin-wild-mim")
    assert _parser("finetune").parse_args(["finetune", "data", "--out", "m"]).model == DEFAULT
    text = said(capsys, "finetune", labelled, "--out", out, *quick)
    assert "case2" in text and "held-out" in text and f"--model {out}" in text
    assert ctssl.load_segmenter(out).parent == "swin-wild-mim"
    assert "finished model" in refused(capsys, "finetune", labelled, "--out", out, *quick)
    apart = ("--images", labelled / "images", "--labels", labelled / "labels")
    found = json.loads(
        said(capsys, "finetune", *apart, "--out", tmp_path / "two", *quick, "--json", "--from-scratch")
    )
    assert list(found["held_out"]) == ["case2"] and found["mean_dsc"] == found["held_out"]["case2"]["tumour"]
    assert ctssl.load_segmenter(tmp_path / "two").parent == ""


@pytest.mark.slow
def test_demo(capsys, scan, model, tmp_path):
    own = tmp_path / "own"
    written = json.loads(said(capsys, "demo", scan, "--out", own, "--model", model, "--json"))
    named = ("encoder", "features", "embedding", "mask", "overlay", "segmenter", "trained_on", "volume_ml")
    assert set(written) == set(named) and not (own / "phantom.nii.gz").exists()
    text = said(capsys, "demo", "--out", tmp_path / "demo")  # the phantom, by the published segmenter
    for name in ("phantom.nii.gz", "phantom-tumour.nii.gz", "features.png", "mask.nii.gz", "overlay.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 500 and str(tmp_path / "demo" / name) in text
    assert "not how accurate" in text and "ctssl finetune" in text
    found, true = (
        ctssl.read(tmp_path / "demo" / name).array > 0 for name in ("mask.nii.gz", "phantom-tumour.nii.gz")
    )
    assert dsc(found, true) >= 0.7  # no training saw the phantom


@pytest.mark.slow
def test_a_demo_replaces_its_own_files_alone(capsys, scan, model, tmp_path):
    (tmp_path / "mask.nii.gz").write_bytes(b"an expert's")
    assert "not from a demo" in refused(capsys, "demo", scan, "--model", model, "--out", tmp_path)
    assert (tmp_path / "mask.nii.gz").read_bytes() == b"an expert's"
    for _ in range(2):
        said(capsys, "demo", scan, "--model", model, "--out", tmp_path / "demo")


def test_a_device_that_is_not_there(capsys, scan, model, tmp_path):
    import torch

    for name in ["tpu-7", *([] if torch.cuda.is_available() else ["cuda", "cuda:1"])]:
        for command in (["embed", scan], ["segment", scan, tmp_path / "m.nii.gz", "--model", model]):
            words = refused(capsys, *command, "--device", name)
            assert "unknown device" in words or "has no CUDA" in words
    said(capsys, "embed", scan, tmp_path / "v.npy", "--device", "auto")


def test_a_folder_that_is_not_there_is_not_only_looked_for_on_the_hub(capsys, scan, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "no folder runs/my-modle here" in refused(capsys, "embed", scan, "--model", "runs/my-modle")


def test_a_command_that_does_not_exist_and_a_damaged_scan(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        main(["segmnt"])
    assert stopped.value.code == 2
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    assert "is damaged" in refused(capsys, "embed", tmp_path / "bad.nii.gz")


def test_what_the_system_refuses_is_a_sentence(capsys, scan, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / ".part-1-out.nii.gz"))

    monkeypatch.setattr("ctssl.volume.Volume.save", refuse)
    assert main(["shift", str(scan), str(tmp_path / "out.nii.gz"), "--truncation", "1"]) == 1
    assert f"you may not read or write {tmp_path}; choose another place" in capsys.readouterr().err


@pytest.mark.filterwarnings("always")
def test_warnings_are_one_line_not_a_stack(capsys, tmp_path):
    volume = phantom(6.0)[0]
    ctssl.Volume(volume.array, np.eye(4)).save(tmp_path / "lost.nii.gz")
    assert main(["embed", str(tmp_path / "lost.nii.gz")]) == 0
    assert "warning: lost.nii.gz: the affine is the identity" in capsys.readouterr().err


def test_embed_never_replaces_what_it_reads_nor_a_table_by_nothing(capsys, scan, model, tmp_path):
    before, table = scan.read_bytes(), tmp_path / "table.csv"
    how = ("--model", model, "--overwrite")
    assert "is an input scan" in refused(capsys, "embed", scan, scan, "--dense", *how)
    table.write_text("scan,f0\na,1\nb,2\nc,3\n")
    assert "is a table that is read" in refused(capsys, "similar", table, "--out", table, "--overwrite")
    mask = ctssl.read(scan)
    mask.on_grid(np.zeros(mask.shape, np.uint8)).save(tmp_path / "empty.nii.gz")
    assert "no lesion to embed" in refused(
        capsys, "embed", scan, table, "--mask", tmp_path / "empty.nii.gz", *how
    )
    (tmp_path / "bad").mkdir()
    for name in "ab":
        (tmp_path / "bad" / f"{name}.nii.gz").write_bytes(b"nothing")
    assert main([str(a) for a in ("embed", tmp_path / "bad", table, *how)]) == 1
    assert "2 scans failed" in capsys.readouterr().err
    assert scan.read_bytes() == before and table.read_text().startswith("scan,f0\na,1")


def test_a_network_without_features_is_refused(capsys, scan, tmp_path):
    from ctssl.heads.segmenter import Segmenter

    folder = Segmenter(Pixels(), head="dynunet", classes=2).save_pretrained(tmp_path / "dynunet")
    assert "no features to embed" in refused(capsys, "embed", scan, "--model", folder)
