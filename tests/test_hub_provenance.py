"""Where weights come from: written when they are made, kept while they are the same, and told by `ctssl info`."""

import json
import re
import subprocess
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

import ctssl
from ctssl import hub
from ctssl.cli.main import main
from ctssl.files.atomic import file_sha256
from ctssl.files.weights import read_metadata
from ctssl.heads.segmenter import Segmenter
from ctssl.hub import provenance
from ctssl.hub.provenance import facts, origin
from ctssl.zoo import MODELS
from tests.support.tiny import SMALL
from training.release import segmenter as export_segmenter

NAMES = sorted(MODELS)
ENCODER = next(name for name in NAMES if MODELS[name].kind == "encoder")
KEYS = {"code", "recipe_sha256", "manifest_sha256", "parent", "pretext", "samples", "licence"}


def told(capsys, *args) -> str:
    assert main(["info", *map(str, args)]) == 0
    return capsys.readouterr().out


@pytest.fixture
def known(tmp_path, encoder):
    """A segmenter in a folder, with a history."""
    metadata = facts(
        recipe={"steps": 3}, manifest=["b", "a"], parent="some-encoder", samples=12, licence="CC-BY-4.0"
    )
    return Segmenter(encoder, head="linear").save_pretrained(tmp_path / "known", metadata=metadata)


def test_facts_are_text_and_hashes_do_not_depend_on_order():
    one = facts(recipe={"a": 1, "b": 2}, manifest=["x", "y"], samples=3)
    two = facts(recipe={"b": 2, "a": 1}, manifest=["y", "x"], samples=3)
    assert one == two and set(one) == KEYS and all(isinstance(value, str) for value in one.values())
    assert facts(recipe={"a": 1}, manifest=["x"])["recipe_sha256"] != one["recipe_sha256"]
    # sha256 of the two lines "x" and "y", by another program
    assert (
        one["manifest_sha256"]
        == subprocess.run(
            "printf 'x\\ny' | sha256sum", shell=True, capture_output=True, text=True
        ).stdout.split()[0]
    )


def test_code_is_the_version_and_in_a_checkout_the_commit(monkeypatch, tmp_path):
    assert provenance.code().startswith(f"ctssl {ctssl.__version__}")
    inside = (
        tmp_path / "repository" / "site-packages"
    )  # installed in a folder of another project's repository
    (inside / "ctssl").mkdir(parents=True)
    subprocess.run(["git", "init", "--quiet", tmp_path / "repository"], check=True)
    monkeypatch.setattr(provenance, "__file__", str(inside / "ctssl" / "hub" / "provenance.py"))
    assert provenance.code() == f"ctssl {ctssl.__version__}"
    subprocess.run(["git", "init", "--quiet", inside], check=True)
    subprocess.run(
        [
            "git",
            "-C",
            inside,
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@b",
            "commit",
            "--quiet",
            "--allow-empty",
            "--message",
            "first",
        ],
        check=True,
    )
    commit = subprocess.run(
        ["git", "-C", inside, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout
    assert provenance.code() == f"ctssl {ctssl.__version__}, git {commit.strip()}"


def test_a_history_is_kept_while_the_weights_are_the_same(known, tmp_path):
    history = read_metadata(known / "model.safetensors")
    assert history["samples"] == "12" and set(history) == KEYS
    model = ctssl.load_segmenter(known)
    for folder in (
        model.save_pretrained(tmp_path / "again"),
        model.save_pretrained(tmp_path / "half", half=True),
    ):
        assert read_metadata(folder / "model.safetensors") == history
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    changed = read_metadata(model.save_pretrained(tmp_path / "changed") / "model.safetensors")
    assert set(changed) == KEYS and not changed["samples"] and not changed["recipe_sha256"]


def test_a_changed_model_names_its_parent(tmp_path):
    model = ctssl.load(ENCODER)
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    folder = model.save_pretrained(tmp_path / "mine")
    assert (
        read_metadata(folder / "model.safetensors")["parent"] == f"{ENCODER} sha256:{MODELS[ENCODER].sha256}"
    )


@pytest.mark.parametrize("name", [name for name in NAMES if MODELS[name].kind == "encoder"])
def test_info_tells_where_a_published_model_comes_from(name, capsys):
    history = json.loads((hub.bundled() / name / "training.json").read_text())
    text = told(capsys, name)
    for key in ("command", "samples", "device", "hours", "torch"):
        assert f"{key:15} {history[key]}\n" in text
    assert json.loads(told(capsys, name, "--json"))["origin"] == origin(hub.bundled() / name)


@pytest.mark.parametrize("name", [name for name in NAMES if MODELS[name].kind == "encoder"])
def test_a_published_models_own_header_tells_where_it_comes_from(name):
    history, seen = (
        json.loads((hub.bundled() / name / file).read_text()) for file in ("training.json", "seen.json")
    )
    found = read_metadata(hub.bundled() / name / "model.safetensors")
    assert re.fullmatch(r"ctssl \d+\.\d+\.\d+, git [0-9a-f]{7,40}(-dirty)?", found.pop("code"))
    expected = facts(
        recipe=history["run"],
        manifest=seen["voxels"],
        parent=history["run"]["init"],
        pretext=MODELS[name].pretext,
        samples=history["samples"],
        licence=MODELS[name].licence,
    )
    assert found == {key: value for key, value in expected.items() if key != "code"}


def test_info_tells_where_a_users_model_comes_from(known, capsys):
    text = told(capsys, known)
    assert (
        "some-encoder" in text
        and f"code            ctssl {ctssl.__version__}" in text
        and "CC-BY-4.0" in text
    )


@pytest.mark.slow
def test_info_tells_where_a_fine_tuned_model_comes_from(labelled, tmp_path, capsys):
    parent = ctssl.Swin(**SMALL["swin"]).save_pretrained(tmp_path / "parent")
    settings = ctssl.Settings(steps=2, batch=3, crop=16)
    report = ctssl.finetune(
        labelled,
        model=str(parent),
        out=tmp_path / "mine",
        settings=settings,
        hold_out=["case2"],
        head="linear",
        progress=False,
    )
    found = read_metadata(tmp_path / "mine" / "model.safetensors")
    assert found["samples"] == "6" and found["cases"] == "2" and found["held_out"] == "1"
    assert found["mean_dsc"] == f"{report.mean_dsc:.3f}"
    assert found["parent"] == f"parent sha256:{hub.read_config(parent)['sha256']}"
    assert found["manifest_sha256"] == facts(manifest=["case0", "case1"])["manifest_sha256"]
    seen = ctssl.load_segmenter(tmp_path / "mine").spec.preprocess
    recipe = {
        **asdict(settings),
        "head": "linear",
        "spacing_mm": seen.spacing_mm,
        "window_hu": seen.window_hu,
        "from_scratch": False,
    }
    assert found["recipe_sha256"] == facts(recipe=recipe)["recipe_sha256"]
    folder = export_segmenter.export("sarcoma", "tiny", tmp_path / "mine", cards=tmp_path / "cards")
    assert read_metadata(folder / "model.safetensors") == found | {"licence": "CC-BY-3.0"}
    text = told(capsys, tmp_path / "mine")
    assert (
        "ctssl finetune" in text and "held_out        1" in text and "parent          parent sha256:" in text
    )


def test_info_tells_where_an_imported_model_comes_from(tmp_path, capsys):
    from tests.support.foreign import smit_state

    file = tmp_path / "theirs.safetensors"
    state = smit_state(12, (1, 1, 1, 1), (2, 4, 4, 8), 4, qkv_bias=True)
    save_file({key: value.clone() for key, value in state.items()}, file)
    ctssl.import_checkpoint(file, out=tmp_path / "theirs", licence="MIT")
    found = read_metadata(tmp_path / "theirs" / "model.safetensors")
    assert found["parent"] == f"{file.name} sha256:{file_sha256(file)}" and found["licence"] == "MIT"
    text = told(capsys, tmp_path / "theirs")
    assert "ctssl import --from" in text and file_sha256(file) in text


def test_weights_that_replace_others_take_over_nothing_that_is_said_of_these(encoder, tmp_path, capsys):
    folder = encoder.save_pretrained(tmp_path / "mine")
    (folder / "report.json").write_text(
        '{"train": ["a"], "held_out": {"b": {"tumour": 0.9}}, "mean_dsc": 0.9}'
    )
    (folder / "notes.txt").write_text("mine")
    assert "mean_dsc" in origin(folder)
    encoder.save_pretrained(folder, overwrite=True)  # the same weights
    assert "mean_dsc" in origin(folder)
    (folder / "report.json").rename(tmp_path / "kept.json")
    other = type(encoder)(
        **{**encoder.config, "patch": encoder.config["patch"] * 2}
    )  # the same names, other shapes
    other.save_pretrained(folder, overwrite=True)
    encoder.save_pretrained(folder, overwrite=True)
    (tmp_path / "kept.json").rename(folder / "report.json")
    next(encoder.parameters()).data.add_(1.0)
    encoder.save_pretrained(folder, overwrite=True)
    assert "mean_dsc" not in origin(folder) and not (folder / "report.json").exists()
    assert (folder / "notes.txt").read_text() == "mine"


def test_info_of_a_strangers_model_prints_no_control_characters(encoder, tmp_path, capsys):
    folder = encoder.save_pretrained(tmp_path / "theirs")
    state = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"parent": "\x1b[2Jgone"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"sha256": file_sha256(folder / "model.safetensors"), "data": "\x1b]0;title\x07"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("training.json", "import.json", "report.json"):
        (folder / name).write_text('["not what one expects"]')
    text = told(capsys, folder)
    assert "\x1b" not in text and "\x07" not in text and "?[2Jgone" in text


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b"\x05\0\0\0\0\0\0\0[[[[[", b"\xff" * 100]
)
def test_a_header_that_is_none_is_refused_in_words(content, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        read_metadata(tmp_path / "model.safetensors")
