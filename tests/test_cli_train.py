"""`ctssl finetune`: its flags, its folds, and what it refuses."""

import contextlib
import json

import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli import train
from ctssl.cli.main import _parser, main
from ctssl.finetuning import run


@pytest.mark.slow
def test_all_folds_from_the_command(labelled, tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "tiny")
    assert (
        main(
            [
                "finetune",
                str(labelled),
                "--model",
                str(tmp_path / "tiny"),
                "--out",
                str(tmp_path / "m"),
                "--folds",
                "3",
                "--steps",
                "1",
                "--crop",
                "16",
                "--batch",
                "1",
                "--json",
            ]
        )
        == 0
    )
    reports = json.loads(capsys.readouterr().out)
    assert sorted(name for report in reports for name in report["held_out"]) == ["case0", "case1", "case2"]
    assert all((tmp_path / "m" / f"fold{i}" / "model.safetensors").is_file() for i in range(3))
    assert main(["finetune", str(labelled), "--out", str(tmp_path / "n"), "--fold", "1"]) == 2
    assert "--folds" in capsys.readouterr().err


@pytest.mark.slow
def test_folds_go_on_where_they_stopped(labelled, tiny, tmp_path, capsys, monkeypatch):
    """Killed between two folds, and within one: what is finished is not done again."""
    tiny.save_pretrained(tmp_path / "tiny")
    ask = [
        "finetune",
        str(labelled),
        "--model",
        str(tmp_path / "tiny"),
        "--out",
        str(tmp_path / "m"),
        "--folds",
        "3",
        "--steps",
        "2",
        "--crop",
        "16",
        "--batch",
        "1",
        "--json",
    ]
    whole, calls = run.fit, []

    def killed(*args, **kwargs):
        calls.append(kwargs["folder"].parent.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(run, "fit", killed)
    with contextlib.suppress(KeyboardInterrupt):
        main(ask)
    capsys.readouterr()
    assert main([*ask, "--resume"]) == 0 and calls == ["fold0", "fold1", "fold1", "fold2"]
    reports = json.loads(capsys.readouterr().out)
    assert sorted(name for report in reports for name in report["held_out"]) == ["case0", "case1", "case2"]
    assert main(ask) == 0 and len(calls) == 4
    for other in (["--freeze", "encoder"], ["--spacing", "3"], ["--head", "linear"]):
        assert main([*ask, *other]) == 2
        assert "fold0 holds a model that was trained with another" in capsys.readouterr().err
    assert len(calls) == 4
    assert main([*ask, "--steps", "1", "--overwrite"]) == 0 and len(calls) == 7


def test_settings_that_cannot_be_are_refused_before_anything_is_read(labelled, tmp_path, capsys):
    ask = ["finetune", str(labelled), "--out", str(tmp_path / "m")]
    for flags, words in (
        (["--steps", "0"], "steps=0"),
        (["--batch", "-1"], "batch=-1"),
        (["--validation", "1"], "validation=1"),
        (["--ema", "1"], "ema=1"),
        (["--minutes", "0"], "minutes=0"),
        (["--layer-decay", "0"], "layer_decay=0"),
        (["--head", "unet"], "use dynunet, dynunet-16, dynunet-8, light"),
        (["--spacing", "0"], "use 0.1 to 20 mm"),
        (["--few-shot", "9"], "there are 2 patients"),
        (["--folds", "0"], "give at least 2"),
        (["--patience", "0"], "patience=0"),
    ):
        assert main([*ask, *flags]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "m").exists()
    with pytest.raises(SystemExit):
        main([*ask, "--steps", "5", "--minutes", "1"])
    assert "not allowed with argument --steps" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert main([*ask, "--device", "cuda"]) == 2 and "no CUDA" in capsys.readouterr().err


@pytest.mark.slow
def test_every_flag_reaches_the_training(labelled, tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "tiny")
    ask = [
        "finetune",
        str(labelled),
        "--model",
        str(tmp_path / "tiny"),
        "--out",
        str(tmp_path / "m"),
        "--steps",
        "2",
        "--crop",
        "16",
        "--batch",
        "1",
        "--hold-out",
        "case2",
        "--few-shot",
        "1",
        "--freeze",
        "encoder",
        "--ema",
        "0.5",
        "--bf16",
        "--spacing",
        "3",
        "--window",
        "-100",
        "300",
        "--validation",
        "0.2",
        "--layer-decay",
        "0.7",
        "--seed",
        "3",
    ]
    assert main(ask) == 0
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    for key, value in dict(
        steps=2, crop=16, batch=1, freeze=True, ema=0.5, bf16=True, validation=0.2, layer_decay=0.7, seed=3
    ).items():
        assert report["settings"][key] == value, key
    assert len(report["train"]) == 1 and list(report["held_out"]) == ["case2"]
    assert (report["spacing_mm"], report["window_hu"]) == (3.0, [-100.0, 300.0])
    kept = ctssl.load_segmenter(tmp_path / "m")
    for key, value in tiny.state_dict().items():
        assert torch.equal(kept.encoder.state_dict()[key], value)  # frozen


def test_every_option_that_names_a_setting_reaches_it():
    given = {"empty": 0.5, "shift_augment": 2, "warmup_head": 0.25, "lr": 0.5, "patience": 3, "minutes": 7.0}
    flags = [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    args = _parser("finetune").parse_args(
        ["finetune", "data", "--out", "m", *flags, "--deterministic", "--channel-window", "0", "9"]
    )
    request = train._request(args)
    assert request.settings == ctssl.Settings(**given, deterministic=True)
    assert request.channel_windows == [(0.0, 9.0)]
    plain = train._request(_parser("finetune").parse_args(["finetune", "data", "--out", "m"]))
    assert plain.settings == ctssl.Settings()


def test_a_dry_run_refuses_what_the_training_would(labelled, tiny_folder, capsys):
    ask = [
        "finetune",
        str(labelled),
        "--model",
        str(tiny_folder),
        "--out",
        str(labelled / "out"),
        "--dry-run",
    ]
    assert main([*ask, "--json", "--hold-out", "case2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["train"], plan["held_out"], plan["labels"]) == (["case0", "case1"], ["case2"], [1]) and plan[
        "crop"
    ] > 0
    assert (
        main([*ask, "--empty", "0.5"]) == 2
        and "no training case has an empty mask" in capsys.readouterr().err
    )
    if not torch.cuda.is_available():
        assert main([*ask, "--device", "cuda"]) == 2 and "not available" in capsys.readouterr().err
    assert main(["finetune", str(labelled), "--model", "dynunet", "--head", "unetr", *ask[4:]]) == 2
    assert "a head of its own" in capsys.readouterr().err
    for name in ("case0", "case1", "case2"):
        mask = ctssl.read(labelled / "labels" / f"{name}.nii.gz")
        mask.on_grid(np.zeros(mask.shape, np.uint8)).save(
            labelled / "labels" / f"{name}.nii.gz", overwrite=True
        )
    assert main(ask) == 2 and "masks are empty" in capsys.readouterr().err
