"""From names and folders to models, and every way in which that must fail."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ctssl
from ctssl import hub
from ctssl.encoders import ENCODERS
from ctssl.files.atomic import file_sha256
from ctssl.heads.segmenter import Segmenter
from ctssl.phantom import phantom
from ctssl.volume.volume import Volume
from ctssl.zoo import MODELS, ModelSpec, Preprocess
from tests.support.tiny import SMALL
from training.release.fingerprint import deviation, fingerprint
from training.release.publish import files_of

NAMES = sorted(name for name, spec in MODELS.items() if spec.kind == "encoder")
SEGMENTERS = sorted(set(MODELS) - set(NAMES))
FIRST = NAMES[0]


@pytest.fixture
def folder(tmp_path, encoder):
    return encoder.save_pretrained(tmp_path / "saved")


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A copy of the first model's folder, found through CTSSL_MODELS."""
    shutil.copytree(hub.bundled() / FIRST, tmp_path / "mirror" / FIRST)
    monkeypatch.setenv("CTSSL_MODELS", str(tmp_path / "mirror"))
    return tmp_path / "mirror" / FIRST


def change_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_the_table_loads_and_has_its_features(name):
    model, spec = ctssl.load(name, offline=True), MODELS[name]
    assert model.spec is spec and not model.training and isinstance(model, ENCODERS[spec.encoder])
    assert sum(p.numel() for p in model.parameters()) == spec.parameters
    assert all(p.dtype == torch.float32 for p in model.parameters())
    config = hub.read_config(hub.bundled() / name)
    assert deviation(config["fingerprint"], fingerprint(model)) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_a_models_folder_says_what_the_table_says(name):
    config, spec = (
        hub.read_config(hub.bundled() / name),
        json.loads(json.dumps(ctssl.info(name).__dict__, default=Preprocess.entry)),
    )
    for key in (
        "name",
        "kind",
        "encoder",
        "encoder_args",
        "preprocess",
        "corpus",
        "pretext",
        "parameters",
        "sha256",
        "licence",
        "data",
    ):
        assert config[key] == spec[key], key
    assert {p.name for p in (hub.bundled() / name).iterdir()} == {
        "README.md",
        "config.json",
        "features.png",
        "loss.png",
        "model.safetensors",
        "preprocessor_config.json",
        "seen.json",
        "training.json",
    }
    card = (hub.bundled() / name / "README.md").read_text()
    assert card.startswith("---\n") and name in card and "licence" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_segmenter_of_the_table_loads_and_says_what_the_table_says(name):
    folder, spec = hub.bundled() / name, MODELS[name]
    model = ctssl.load_segmenter(name, offline=True)
    assert model.spec is spec and not model.training and model.head_name == spec.head
    assert sum(p.numel() for p in model.parameters()) == spec.parameters
    config = hub.read_config(folder)
    for key in ("name", "encoder_args", "preprocess", "labels", "licence", "data", "sha256"):
        assert (
            config[key] == json.loads(json.dumps(ctssl.info(name).__dict__, default=Preprocess.entry))[key]
        ), key
    pretrained = (folder / "training.json").is_file()
    assert {path.name for path in folder.iterdir()} == files_of(folder, spec)
    if pretrained:  # by a task that keeps its head: its encoder is one of the family
        assert deviation(config["fingerprint"], fingerprint(ctssl.load(name))) < 1e-3
    whole = phantom(6.0)[0]
    mask = model.segment(Volume(whole.array[8:30, 8:30, 14:20], whole.affine))
    assert set(np.unique(mask.array)) <= {0, 1}


def test_a_changed_feature_is_seen_by_the_fingerprint():
    model = ctssl.load(FIRST)
    expected = hub.read_config(hub.bundled() / FIRST)["fingerprint"]
    with torch.no_grad():
        next(model.parameters()).mul_(1.05)
    assert deviation(expected, fingerprint(model)) > 1e-3


def test_every_folder_of_models_is_in_the_table_and_the_wheel_or_of_unclear_licence():
    toml = pytest.importorskip("tomllib")  # Python 3.11
    root = Path(__file__).parent.parent
    wheel = toml.loads((root / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    inside = [name for name, spec in MODELS.items() if spec.in_package]
    assert wheel["force-include"] == {f"model_cards/{name}": f"ctssl/_models/{name}" for name in inside}
    others = {path for path in (root / "model_cards").iterdir() if path.is_dir() and path.name not in MODELS}
    assert all(json.loads((path / "config.json").read_text())["licence"] == "unclear" for path in others)


def test_names_match_patterns():
    assert ctssl.list_models() == sorted(MODELS) and ctssl.list_models("no-*") == []
    assert FIRST in ctssl.list_models(FIRST[:4] + "*")


def test_an_unknown_name_gets_the_nearest_ones():
    for call in (ctssl.load, ctssl.load_segmenter, ctssl.segmenter):
        with pytest.raises(FileNotFoundError, match=f"did you mean .*{FIRST}"):
            call(FIRST.replace("-", "_"))
    with pytest.raises(ValueError, match=f"did you mean .*{FIRST}"):
        ctssl.info(FIRST + "x")


def test_save_and_load_give_the_same_features(folder, encoder):
    again = ctssl.load(folder)
    x = torch.rand(1, 1, 24, 17, 20)
    for one, two in zip(encoder(x), again(x), strict=True):
        assert torch.equal(one, two)
    assert again.config == encoder.config and again.spec.preprocess == Preprocess()
    assert type(encoder).from_pretrained(folder).config == encoder.config


def test_the_spec_survives_saving(tmp_path, encoder):
    encoder.spec = ModelSpec(
        "mine", "encoder", "swin", preprocess=Preprocess(3.0, (-100.0, 200.0)), corpus="wild"
    )
    again = ctssl.load(encoder.save_pretrained(tmp_path / "other-name"))
    assert (
        again.spec.preprocess == Preprocess(3.0, (-100.0, 200.0))
        and again.spec.name == "mine"
        and again.spec.corpus == "wild"
    )
    assert again.preprocess(phantom(8.0)[0]).shape == (1, 1, 107, 80, 80)


def test_a_segmenter_is_saved_with_its_settings(tmp_path, encoder):
    model = Segmenter(encoder, head="linear", classes=3, labels={1: "liver", 2: "tumour"}, window=48).eval()
    again = ctssl.load_segmenter(model.save_pretrained(tmp_path / "seg"))
    x = torch.rand(1, 1, 24, 17, 20)
    assert (
        torch.equal(model(x), again(x)) and again.labels == {1: "liver", 2: "tumour"} and again.window == 48
    )
    assert isinstance(Segmenter.from_pretrained(tmp_path / "seg"), Segmenter)
    own = ctssl.load(tmp_path / "seg")
    assert all(torch.equal(value, encoder.state_dict()[key]) for key, value in own.state_dict().items())


def test_an_encoder_is_not_a_segmenter(folder):
    with pytest.raises(ValueError, match=r"ctssl.segmenter\(.*finetune"):
        ctssl.load_segmenter(folder)


def test_from_pretrained_on_an_instance_is_refused(encoder, folder, tmp_path):
    with pytest.raises(TypeError, match="does not change this one"):
        encoder.from_pretrained(folder)
    with pytest.raises(TypeError, match=r"Segmenter.from_pretrained\(...\)"):
        Segmenter(encoder, head="linear").from_pretrained(folder)


def test_from_pretrained_of_another_class_is_refused(folder, encoder):
    other = next(cls for cls in ENCODERS.values() if not isinstance(encoder, cls))
    with pytest.raises(ValueError, match=f"is a {type(encoder).__name__}"):
        other.from_pretrained(folder)


def test_a_full_folder_is_kept(tmp_path, encoder):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite"):
        encoder.save_pretrained(tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    encoder.save_pretrained(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "precious"


def test_a_truncated_file_is_named_with_the_cure(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged or was changed.*copy or export"):
        ctssl.load(folder)


def test_damage_that_config_json_agrees_with_is_still_found(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    change_config(folder, sha256=file_sha256(path))
    with pytest.raises(ValueError, match="not a complete safetensors file"):
        ctssl.load(folder)


def test_a_swapped_file_is_found(folder, tmp_path, encoder):
    other = type(encoder)(
        **{k: v for k, v in SMALL[type(encoder).__name__.lower()].items() if k != "width"}, width=48
    )
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(ValueError, match="damaged or was changed"):
        ctssl.load(folder)
    change_config(folder, sha256=file_sha256(folder / "model.safetensors"))
    with pytest.raises(ValueError, match="does not match its config.json"):
        ctssl.load(folder)


@pytest.mark.parametrize("change", ["missing", "extra", "nan"])
def test_weights_must_be_complete_and_finite(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    key = sorted(state)[0]
    if change == "missing":
        del state[key]
    elif change == "extra":
        state["other"] = torch.zeros(3)
    else:
        state[key] = state[key] * torch.nan
    save_file(state, path)
    change_config(folder, sha256=file_sha256(path))
    with pytest.raises(ValueError, match="(does not match its config.json|holds infinite or NaN)"):
        ctssl.load(folder)


def test_a_tampered_model_of_the_table_is_refused_even_if_its_config_agrees(mirror):
    assert ctssl.load(FIRST).spec.name == FIRST
    path = mirror / "model.safetensors"
    state = load_file(path)
    key = sorted(state)[0]
    save_file(state | {key: state[key] + 0.5}, path)
    change_config(mirror, sha256=file_sha256(path))
    with pytest.raises(ValueError, match="the published model says"):
        ctssl.load(FIRST)


def test_a_changed_setting_of_a_model_of_the_table_is_refused(mirror):
    change_config(mirror, preprocess={"spacing_mm": 1.0, "window_hu": [-500, 500]})
    with pytest.raises(ValueError, match="preprocess differ"):
        ctssl.load(FIRST)


def test_an_unpublished_model_that_is_not_here_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("ctssl.hub.lookup.bundled", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="not been published.*CTSSL_MODELS"):
        ctssl.load(FIRST)
    with pytest.raises(ValueError, match="no revisions"):
        ctssl.load(FIRST, revision="main")


def test_the_folder_of_ctssl_models_comes_first_and_takes_new_names(mirror, encoder, tmp_path):
    encoder.save_pretrained(tmp_path / "mirror" / "my-encoder")
    assert ctssl.load("my-encoder").config == encoder.config
    shutil.rmtree(mirror)
    assert ctssl.load(FIRST).spec.name == FIRST  # the bundled one


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "ctssl-9"}, "update ctssl"),
        ({"encoder": "mamba"}, "needs the encoder 'mamba'"),
        ({"encoder_args": {"width": 13, "colour": 3}}, "does not describe"),
        ({"preprocess": {"spacing_mm": 2}}, "needs spacing_mm and window_hu"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_in_words(folder, changes, words):
    change_config(folder, **changes)
    with pytest.raises(ValueError, match=words):
        ctssl.load(folder)


def test_a_folder_has_no_revisions(folder, monkeypatch):
    with pytest.raises(ValueError, match="is a folder, which has no revisions"):
        ctssl.load(folder, revision="v1")
    monkeypatch.setenv("CTSSL_MODELS", str(folder.parent))
    with pytest.raises(ValueError, match="is a folder, which has no revisions"):
        ctssl.load(folder.name, revision="v1")


def test_what_is_no_model_folder_is_refused_in_words(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        ctssl.load(tmp_path)
    with pytest.raises(ValueError, match="give the folder"):
        ctssl.load(folder / "model.safetensors")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        ctssl.load(folder)
    (folder / "config.json").write_text('{"format": "ctssl-1"}')
    with pytest.raises(ValueError, match="lacks"):
        ctssl.load(folder)


def test_a_repository_that_is_not_cached_says_so_offline(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="not in the local cache"):
        ctssl.load("somebody/some-model", offline=True)


def test_pushing_asks_for_owner_and_name(encoder):
    with pytest.raises(ValueError, match="owner/name"):
        encoder.push_to_hub("just-a-name")
