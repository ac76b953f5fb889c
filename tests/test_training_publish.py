"""What goes to the Hub: checked folders, tokens, tags, the table, and users' own models. The Hub is a double."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

import ctssl
from ctssl import hub
from ctssl.heads.segmenter import Segmenter
from ctssl.hub.card import card
from ctssl.phantom import phantom
from ctssl.zoo import MODELS, ModelSpec, Preprocess
from tests.support.child import NAME, TAG, python
from tests.support.hub_double import Double
from tests.support.tiny import SMALL
from training.release import publish
from training.release.segmenter import is_open_licence

OTHER = "swin-wild-mim"
MASK = """import sys, ctssl, numpy; from ctssl.phantom import phantom; m = ctssl.load_segmenter(sys.argv[1])
numpy.save(sys.argv[2], m.segment(phantom(8.0)[0]).array)"""


@pytest.fixture
def double(monkeypatch, tmp_path):
    """The Hub of this process, for somebody who may write to `me` and `org`."""
    server = Double()
    changes = dict(
        ENDPOINT=server.url,
        HF_HUB_CACHE=str(tmp_path / "cache"),
        HF_TOKEN_PATH=str(tmp_path / "token"),
        HF_HUB_DISABLE_XET=True,
    )
    for key, value in changes.items():
        monkeypatch.setattr(constants, key, value)
    monkeypatch.setenv("HF_TOKEN", "hf_writes")
    yield server
    server.close()


@pytest.fixture
def table(tmp_path):
    return Path(shutil.copy(publish.TABLE, tmp_path / "zoo.py"))


@pytest.fixture
def cards(tmp_path):
    """A copy of one model's folder, to spoil."""
    shutil.copytree(hub.bundled() / NAME, tmp_path / "cards" / NAME)
    return tmp_path / "cards"


def placed(table: Path) -> dict:
    """Repository and commit of each published model, as a program that imports the table sees them."""
    spec = importlib.util.spec_from_file_location("zoo_copy", table)
    sys.modules["zoo_copy"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: (one.repo, one.revision) for name, one in module.MODELS.items() if one.repo}


FOLDERS = sorted(path.parent.name for path in hub.bundled().glob("*/config.json"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FOLDERS if name in MODELS])
def test_every_model_is_fit_to_be_published(name):
    publish.check(hub.bundled() / name)


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in MODELS])
def test_what_is_not_in_the_table_is_of_unclear_licence_and_stays_here(name):
    folder = hub.bundled() / name
    config = hub.open_folder(folder).config
    assert not is_open_licence(config["licence"]) and (
        folder / "README.md"
    ).read_text() == publish.expected_card(folder, config)
    assert not {"best.png", "median.png", "worst.png"} & {path.name for path in folder.iterdir()}
    with pytest.raises(ValueError, match="not in the table"):
        publish.check(folder)


def spoil_card(folder):
    path = folder / "README.md"
    path.write_text(path.read_text().replace("18000 samples", "19000 samples"))


def spoil_config(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"parameters": 7}))


def spoil_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_card, "README.md does not match the other files"),
        (spoil_config, "config.json says parameters 7, the table 1649520"),
        (spoil_weights, "model.safetensors is damaged or was changed"),
        (lambda folder: (folder / "patients.csv").write_text("x"), "patients.csv does not belong there"),
        (lambda folder: (folder / "seen.json").unlink(), "seen.json is missing"),
    ],
)
def test_a_folder_whose_files_disagree_is_refused(cards, spoil, words, tmp_path):
    publish.check(cards / NAME)
    spoil(cards / NAME)
    with pytest.raises(ValueError, match=words):
        publish.publish([NAME], org="org", mirror=tmp_path / "mirror", table=None, cards=cards)
    assert not (tmp_path / "mirror").exists()


def test_publishing_uploads_one_commit_tags_it_and_writes_the_table(double, table, monkeypatch, capsys):
    monkeypatch.setattr(publish, "TABLE", table)
    before = table.read_text()
    publish.main([NAME, OTHER, "--org", "org", "--private"])
    said, where = capsys.readouterr().out, placed(table)
    assert set(where) == {NAME, OTHER}
    for name, (repo, commit) in where.items():
        kept = double.repos[repo]
        assert kept["private"] and kept["refs"] == {"main": commit, TAG: commit} and len(kept["commits"]) == 2
        files = {
            path: content for path, content in kept["commits"][commit].items() if path != ".gitattributes"
        }
        assert files == {p.name: p.read_bytes() for p in (hub.bundled() / name).iterdir()}
        assert f'ctssl.load("{repo}", revision="{commit}")' in said
    for text in (before, after := table.read_text()):
        assert text.count(publish.BEGIN) == text.count(publish.END) == 1
    assert after.split(publish.BEGIN)[0] == before.split(publish.BEGIN)[0]
    assert after.split(publish.END)[1] == before.split(publish.END)[1]
    publish.main([NAME, "--org", "org", "--private"])  # nothing has changed: no other commit, no other table
    assert table.read_text() == after and len(double.repos[f"org/{NAME}"]["commits"]) == 2


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("", "does not accept your token"),
        ("hf_wrong", "does not accept your token"),
        ("hf_reads", "does not let you"),
    ],
)
def test_publishing_without_a_token_that_may_write_makes_nothing(double, table, token, words, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    before = table.read_bytes()
    with pytest.raises(PermissionError, match=f"{words}.*hf auth login"):
        publish.publish([NAME], org="org", table=table)
    assert not double.repos and table.read_bytes() == before


def test_a_tag_of_another_commit_is_not_moved(double, table):
    publish.publish([NAME], org="org", table=table)
    kept = double.repos[f"org/{NAME}"]
    first = kept["refs"][TAG] = next(iter(kept["commits"]))
    with pytest.raises(ValueError, match=f"it already belongs to {first}; choose another --tag"):
        publish.publish([NAME], org="org", table=table)


@pytest.mark.slow
def test_a_private_repository_needs_a_token_to_read(double, tmp_path):
    at = dict(HF_ENDPOINT=double.url, HF_HOME=tmp_path / "home")
    publish.publish([NAME], org="org", private=True, table=None)
    code = "import sys; from ctssl.cli import main; sys.exit(main(sys.argv[1:]))"
    closed = python(code, "download", f"org/{NAME}", **at)
    assert closed.returncode == 2 and "or it is private" in closed.stderr and "HF_TOKEN" in closed.stderr
    opened = python(code, "download", f"org/{NAME}", "--to", tmp_path / "plain", HF_TOKEN="hf_reads", **at)
    assert opened.returncode == 0, opened.stderr
    (tmp_path / "home" / "token").write_text("hf_reads")  # what `hf auth login` leaves
    told = python(code, "info", f"org/{NAME}", "--revision", TAG, **at)
    assert told.returncode == 0 and "python -m training.pretrain vit_wild_mim" in told.stdout, told.stderr
    assert f"ctssl.load('org/{NAME}', revision='{TAG}')" in told.stdout


@pytest.mark.slow
def test_a_users_segmenter_goes_up_with_a_card_and_gives_the_same_masks_elsewhere(
    double, tmp_path, monkeypatch
):
    torch.manual_seed(0)
    encoder = ctssl.Swin(**SMALL["swin"])
    encoder.spec = ModelSpec("mine", "encoder", "swin", preprocess=Preprocess(spacing_mm=8.0))
    model = Segmenter(encoder, head="linear", window=32).eval()
    told = {"code": "ctssl 0", "parent": "", "held_out": "3", "mean_dsc": "0.612", "samples": "2400"}
    extra = {"cases.csv": "case\nMiller\n", "best.png": b"a patient"}
    model.save_pretrained(tmp_path / "mine", metadata=told, extra=extra)
    mine = ctssl.load_segmenter(tmp_path / "mine")
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    with pytest.raises(PermissionError, match=r"does not let you write to me/my-tumour.*hf auth login"):
        mine.push_to_hub("me/my-tumour")
    assert not double.repos
    address = mine.push_to_hub("me/my-tumour", private=True, token="hf_writes")
    kept = double.repos["me/my-tumour"]
    files = kept["commits"][kept["refs"]["main"]]
    assert kept["private"] and kept["refs"]["main"] in address
    assert set(files) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }  # no names, no patients
    text = files["README.md"].decode()
    assert all(
        words in text
        for words in ('ctssl.load_segmenter("me/my-tumour")', "3 held-out cases", "0.612", "2400")
    )
    at = dict(HF_ENDPOINT=double.url, HF_HOME=tmp_path / "elsewhere", HF_TOKEN="hf_reads")
    done = python(MASK, "me/my-tumour", tmp_path / "mask.npy", **at)
    assert done.returncode == 0, done.stderr[-2000:]
    mask = np.load(tmp_path / "mask.npy")
    assert np.array_equal(mask, model.segment(phantom(8.0)[0]).array) and mask.any()


def test_a_public_repository_gets_nothing_private(double):
    double.repos["me/open"] = {"private": False, "refs": {"main": "0" * 40}, "commits": {"0" * 40: {}}}
    with pytest.raises(ValueError, match="me/open exists and is public"):
        ctssl.Swin(**SMALL["swin"]).push_to_hub("me/open", private=True)
    assert double.repos["me/open"]["commits"] == {"0" * 40: {}}


@pytest.mark.parametrize("licence", ["CC-BY-4.0", "", "unknown: that of the source file"])
def test_a_generated_card_is_what_the_hub_reads(encoder, licence, tmp_path):
    from huggingface_hub import ModelCard

    encoder.spec = ModelSpec("mine", "encoder", "swin", licence=licence)
    text = card(encoder.save_pretrained(tmp_path / "mine"), "me/mine", {"code": "ctssl 0"})
    data = ModelCard(text).data
    assert data.library_name == "ctssl" and data.license == (
        licence.lower() if licence.startswith("CC") else "other"
    )
    assert (
        "not a medical device" in text
        and 'ctssl.load("me/mine")' in text
        and "has not been written down" in text
    )


def test_the_table_is_rewritten_whole_or_not_at_all(table):
    before = table.read_text()
    with pytest.raises(ValueError, match="40 hex digits"):
        publish.write_table(table, {NAME: ("org/x", "main")})
    assert table.read_text() == before
    publish.write_table(table, {NAME: ("org/x", "a" * 40)})
    publish.write_table(table, {OTHER: ("org/y", "b" * 40), NAME: ("org/x", "c" * 40)})
    assert placed(table) == {NAME: ("org/x", "c" * 40), OTHER: ("org/y", "b" * 40)}
    table.write_text(before.replace(publish.END, ""))
    with pytest.raises(ValueError, match="two lines"):
        publish.write_table(table, {NAME: ("org/x", "a" * 40)})
