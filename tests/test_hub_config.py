"""Models from strangers: absurd sizes, wrong types, names that lead elsewhere."""

import json
import time
from pathlib import Path

import pytest
import torch

import ctssl
from ctssl import hub
from ctssl.files.names import REPOSITORY
from tests.support.limited import in_a_small_process


def with_arguments(tiny_folder: Path, name: str, **changes) -> Path:
    """A copy of a model whose config says something else."""
    folder = tiny_folder.with_name(name)
    folder.mkdir()
    config = json.loads((tiny_folder / hub.CONFIG).read_text())
    (folder / hub.CONFIG).write_text(json.dumps(config | {"encoder_args": config["encoder_args"] | changes}))
    (folder / hub.WEIGHTS).write_bytes((tiny_folder / hub.WEIGHTS).read_bytes())
    return folder


@pytest.mark.slow
def test_an_encoder_of_absurd_size_is_refused_before_memory_is_taken(tiny_folder):
    """In a process that may take half a gigabyte, and at once: a million blocks would take minutes to build."""
    folders = [
        with_arguments(tiny_folder, "a", width=10**9),
        with_arguments(tiny_folder, "b", depths=[10**6, 1]),
        with_arguments(tiny_folder, "c", window=10**5),
        with_arguments(tiny_folder, "d", patch=10**4),
        with_arguments(tiny_folder, "e", width=12 * 2000),
        with_arguments(tiny_folder, "f", mlp_ratio=1e5),
        with_arguments(tiny_folder, "g", depths=[1] * 60),
        with_arguments(tiny_folder, "h", heads=[10**6, 10**6]),
    ]
    began = time.monotonic()
    *lines, _ = in_a_small_process("load", *folders)
    assert time.monotonic() - began < 30
    assert len(lines) == len(folders) and all(line.startswith("refused: ") for line in lines), lines


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ["x"]}, "invalid name .*must be a string"),
        ({"encoder": {"swin": 1}}, "invalid encoder .*must be a string"),
        ({"encoder_args": [12]}, "invalid encoder_args .*must be an object"),
        ({"kind": "shell"}, "this ctssl knows encoder and segmenter"),
        ({"preprocess": {"spacing_mm": float("nan"), "window_hu": [-500, 500]}}, "cannot prepare a CT"),
        ({"preprocess": {"spacing_mm": 2, "window_hu": [500, 500]}}, "cannot prepare a CT"),
        ({"preprocess": {"spacing_mm": 0, "window_hu": [-500, 500]}}, "cannot prepare a CT"),
    ],
)
def test_a_config_of_wrong_types_is_refused_in_words(tiny_folder, changes, words):
    config = json.loads((tiny_folder / hub.CONFIG).read_text())
    (tiny_folder / hub.CONFIG).write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=words):
        ctssl.load(tiny_folder)


def test_weights_that_make_nan_are_refused_when_they_are_used(tiny_folder, ball):
    encoder = ctssl.load(tiny_folder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(1e38)  # finite, so the file is in order
    encoder.save_pretrained(tiny_folder, overwrite=True)
    with pytest.raises(ValueError, match="NaN or infinite features"):
        ctssl.load(tiny_folder).embed(ball[0])
    broken = ctssl.segmenter(ctssl.load(tiny_folder), head="linear")
    with pytest.raises(ValueError, match="NaN or infinite values"):
        broken.segment(ball[0])


@pytest.mark.parametrize(
    "name", ["../x", "me/..", "me/.x", "a/b/c", "me", "me/x y", "me/x\n", "-a/b", "/b", "a/"]
)
def test_only_owner_and_name_are_a_repository(name, tiny_folder):
    assert not REPOSITORY.fullmatch(name) and REPOSITORY.fullmatch("some-body/ct.model_1")
    with pytest.raises(ValueError, match="owner/name"):
        ctssl.load(tiny_folder).push_to_hub(name)
    with pytest.raises((FileNotFoundError, ValueError)):
        ctssl.load(name, offline=True)


def test_a_model_cannot_be_called_out_of_the_folder_of_models(tiny_folder, tmp_path, monkeypatch):
    (tmp_path / "models" / "inner").mkdir(parents=True)
    monkeypatch.setenv("CTSSL_MODELS", str(tmp_path / "models" / "inner"))
    monkeypatch.chdir(tmp_path / "models" / "inner")
    for name in ("../../model/..", "..", "...", ""):
        with pytest.raises((FileNotFoundError, ValueError)):
            ctssl.load(name, offline=True)
