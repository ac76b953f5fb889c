"""A segmenter as a MONAI bundle."""

import json
import subprocess
import sys

import numpy as np
import pytest

import ctssl
from ctssl.cli import main
from ctssl.convert.bundle import export_bundle
from ctssl.volume.volume import Volume


@pytest.fixture
def scan(tmp_path, ball):
    """On disk, with axes that run the other way."""
    affine = ball[0].affine.copy()
    affine[:3, :2] *= -1
    return Volume(ball[0].array, affine).save(tmp_path / "scan.nii.gz")


@pytest.mark.slow
def test_the_bundle_gives_the_mask_of_ctssl(tiny_segmenter, scan, tmp_path):
    net = ctssl.load_segmenter(tiny_segmenter)
    net.threshold = float(np.median(net.probabilities(scan)["tumour"].array))
    out = export_bundle(net, tmp_path / "bundle")
    command = ["run", "--config_file", str(out / "configs" / "inference.json"), "--bundle_root", str(out)]
    command += ["--image", str(scan), "--output_dir", str(tmp_path / "masks")]
    done = subprocess.run([sys.executable, "-m", "monai.bundle", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, ours = ctssl.read(tmp_path / "masks" / "scan_seg.nii.gz"), net.segment(scan)
    np.testing.assert_array_equal(theirs.array, ours.array)
    np.testing.assert_allclose(theirs.affine, ours.affine, atol=1e-5)
    assert 0 < ours.array.mean() < 1


def test_the_metadata_name_labels_and_licence(tiny_segmenter, tmp_path, capsys):
    assert main(["export", str(tiny_segmenter), "--bundle", str(tmp_path / "bundle")]) == 0
    meta = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    outputs = meta["network_data_format"]["outputs"]["pred"]
    assert outputs["channel_def"] == {"0": "background", "1": "tumour"} and outputs["num_channels"] == 2
    assert (tmp_path / "bundle" / "LICENSE").is_file() and "monai.bundle run" in capsys.readouterr().out
    assert main(["export", str(tiny_segmenter), "--bundle", str(tmp_path / "bundle")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["export", "swin-wild-mim", "--bundle", str(tmp_path / "other")]) == 2
    assert "ctssl finetune" in capsys.readouterr().err
