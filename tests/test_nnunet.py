"""Plans, network and trainer for nnU-Net. The whole of it, `test_nnunet_trains...`, needs nnU-Net itself."""

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli import main
from ctssl.nnunet import TRAINERS
from ctssl.nnunet.network import Network
from ctssl.nnunet.plans import write_plans
from tests.support.tiny import tiny_swin

WINDOW = (-1000.0, 400.0)


@pytest.fixture
def planned(tmp_path) -> Path:
    """A dataset as nnU-Net's planning leaves it, as far as it matters here."""
    folder = tmp_path / "pre" / "Dataset501_Ball"
    folder.mkdir(parents=True)
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    usual = {
        "patch_size": [128] * 3,
        "normalization_schemes": ["CTNormalization"],
        "preprocessor_name": "DefaultPreprocessor",
    }
    plans = {
        "plans_name": "nnUNetPlans",
        "dataset_name": folder.name,
        "configurations": {"2d": {}, "3d_fullres": usual},
    }
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    return folder


def network_of(plans: Path) -> Network:
    architecture = json.loads(plans.read_text())["configurations"]["3d_fullres"]["architecture"]
    return Network(1, 2, **architecture["arch_kwargs"], deep_supervision=False)


def test_plans_leave_the_window_to_the_network(planned, tiny_folder, capsys):
    command = [
        "nnunet",
        str(planned),
        "--model",
        str(tiny_folder),
        "--spacing",
        "1.5",
        "--window",
        "-1000",
        "400",
    ]
    assert main([*command, "--patch", "32", "--epochs", "7"]) == 0
    assert f"export nnUNet_extTrainer={TRAINERS}" in capsys.readouterr().out
    plans = json.loads((planned / "ctsslPlans.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    assert (
        list(plans["configurations"]) == ["3d_fullres"]
        and plans["image_reader_writer"] == "NibabelIOWithReorient"
    )
    assert (
        configuration["normalization_schemes"] == ["NoNormalization"]
        and configuration["spacing"] == [1.5] * 3
    )
    assert configuration["patch_size"] == [32] * 3 and configuration["ctssl"]["epochs"] == 7
    assert configuration["preprocessor_name"] == "DefaultPreprocessor"  # the rest is nnU-Net's own
    assert main(command) == 2 and "--overwrite" in capsys.readouterr().err


def test_the_network_takes_hu_in_the_axes_of_nnunet(planned, tiny_folder):
    net = network_of(write_plans(planned, model=str(tiny_folder), window_hu=WINDOW, patch=32)).eval()
    hu = torch.randn(1, 1, 16, 24, 32) * 400 - 300  # Z, Y, X
    scaled = ((hu.permute(0, 1, 4, 3, 2) - WINDOW[0]) / (WINDOW[1] - WINDOW[0])).clamp(0, 1)
    with torch.inference_mode():
        torch.testing.assert_close(net(hu), net.segmenter(scaled).permute(0, 1, 4, 3, 2))


def test_the_network_gets_the_pretrained_encoder_and_no_other(planned, tiny_folder):
    plans = write_plans(planned, model=str(tiny_folder), patch=32)
    net, settings = network_of(plans), json.loads(plans.read_text())["configurations"]["3d_fullres"]["ctssl"]
    net.load_pretrained(settings["model"], settings["sha256"])
    for key, value in ctssl.load(tiny_folder).state_dict().items():
        torch.testing.assert_close(net.segmenter.encoder.state_dict()[key], value)
    with pytest.raises(ValueError, match="write the plans again"):
        net.load_pretrained(settings["model"], "0" * 64)


def test_a_pretrained_head_comes_along(planned, tmp_path):
    whole = ctssl.segmenter(tiny_swin(), head="linear", window=32)
    folder = whole.save_pretrained(tmp_path / "whole")
    plans = write_plans(planned, model=str(folder), patch=32)
    net, settings = network_of(plans), json.loads(plans.read_text())["configurations"]["3d_fullres"]["ctssl"]
    net.load_pretrained(settings["model"], settings["sha256"])
    for key, value in whole.head.state_dict().items():
        torch.testing.assert_close(net.segmenter.head.state_dict()[key], value)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"channel_names": {"0": "CT", "1": "PET"}}, "one channel"),
        ({"file_ending": ".png"}, "from .nii.gz or .nii"),
    ],
)
def test_data_that_no_encoder_takes_is_refused(planned, tiny_folder, change, words):
    about = json.loads((planned / "dataset.json").read_text()) | change
    (planned / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=words):
        write_plans(planned, model=str(tiny_folder))


def test_what_is_missing_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    assert main(["nnunet", "501"]) == 2 and "nnUNet_preprocessed is not set" in capsys.readouterr().err
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    assert main(["nnunet", "501"]) == 2 and "nnUNetv2_plan_and_preprocess" in capsys.readouterr().err
    assert main(["nnunet"]) == 2 and "--path" in capsys.readouterr().err


def test_the_trainer_s_folder_holds_the_trainer_alone(capsys):
    """nnU-Net imports every file of this folder."""
    assert main(["nnunet", "--path"]) == 0 and capsys.readouterr().out.strip() == str(TRAINERS)
    (file,) = TRAINERS.glob("*.py")
    classes = {node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)}
    assert {"CtsslTrainer", "CtsslTrainerScratch"} <= classes


@pytest.mark.slow
@pytest.mark.skipif(
    not importlib.util.find_spec("nnunetv2"), reason='needs nnU-Net: pip install "ctssl[nnunet]"'
)
def test_nnunet_trains_predicts_and_hands_over(ball, tmp_path):
    raw, env = tmp_path / "raw" / "Dataset501_Ball", {**os.environ, "nnUNet_n_proc_DA": "1"}
    for name in ("raw", "pre", "res"):
        (tmp_path / name).mkdir()
    env |= {"nnUNet_raw": str(tmp_path / "raw"), "nnUNet_preprocessed": str(tmp_path / "pre")}
    env |= {"nnUNet_results": str(tmp_path / "res"), "nnUNet_extTrainer": str(TRAINERS)}
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for i in range(5):
        noise = np.random.default_rng(i).normal(0, 5, ball[0].shape).astype(np.float32)
        ctssl.Volume(ball[0].array + noise, ball[0].affine).save(raw / "imagesTr" / f"case{i}_0000.nii.gz")
        ball[1].save(raw / "labelsTr" / f"case{i}.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "numTraining": 5}
    (raw / "dataset.json").write_text(json.dumps({**about, "file_ending": ".nii.gz"}))

    def run(*command: str) -> None:
        tool = Path(sys.executable).parent / command[0]
        done = subprocess.run(
            [shutil.which(tool) or command[0], *command[1:]], env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]

    run("nnUNetv2_plan_and_preprocess", "-d", "501", "--no_pp", "--verify_dataset_integrity", "-npfp", "1")
    model = tiny_swin().save_pretrained(tmp_path / "tiny")
    write_plans(
        tmp_path / "pre" / raw.name,
        model=str(model),
        spacing_mm=2.0,
        patch=16,
        batch=2,
        training={"epochs": 2, "iterations": 30},
    )
    where = ("501", "3d_fullres")
    run("nnUNetv2_preprocess", "-d", "501", "-plans_name", "ctsslPlans", "-c", "3d_fullres", "-np", "1")
    run("nnUNetv2_train", *where, "0", "-p", "ctsslPlans", "-tr", "CtsslTrainer", "-device", "cpu")
    predict = (
        "nnUNetv2_predict",
        "-i",
        str(raw / "imagesTr"),
        "-o",
        str(tmp_path / "masks"),
        "-d",
        "501",
        "-f",
        "0",
    )
    how = ("-c", "3d_fullres", "-p", "ctsslPlans", "-tr", "CtsslTrainer", "-device", "cpu", "--disable_tta")
    run(*predict, *how, "-npp", "1", "-nps", "1")
    (folder,) = (tmp_path / "res").rglob("fold_0/ctssl")
    net = ctssl.load_segmenter(folder)
    assert net.labels == {1: "ball"}
    theirs = ctssl.read(tmp_path / "masks" / "case0.nii.gz").array > 0
    ours = net.segment(raw / "imagesTr" / "case0_0000.nii.gz").array > 0
    assert ours.any() and 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > 0.9
    splits = tmp_path / "pre" / raw.name / "splits_final.json"
    report = ctssl.finetune(
        raw,
        model=str(model),
        out=tmp_path / "m",
        folds=splits,
        fold=1,
        settings=ctssl.Settings(steps=2, crop=16, batch=1),
    )
    assert sorted(report.held_out) == sorted(json.loads(splits.read_text())[1]["val"])
