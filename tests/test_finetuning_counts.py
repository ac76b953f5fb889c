"""Nothing is asked twice: what `ctssl finetune` opens, hashes, reads and checks, counted."""

import json
from collections import Counter
from pathlib import Path

import pytest

from ctssl.cli.main import main
from ctssl.datasets import case, checks
from ctssl.hub import folder
from ctssl.inference import features


@pytest.fixture
def counted(monkeypatch) -> Counter:
    """How often configs are parsed, weights hashed, scans read and checked, by file."""
    counts: Counter = Counter()

    def count(module, name: str, what) -> None:
        whole = getattr(module, name)

        def counting(*args, **kwargs):
            counts[what(*args)] += 1
            return whole(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    count(folder, "read_config", lambda path: f"config {Path(path).name}")
    count(folder, "file_sha256", lambda path: f"hash {Path(path).parent.name}")
    count(case, "read", lambda path: f"read {Path(path).parent.name}/{Path(path).name}")
    count(checks, "lint", lambda scan: f"lint {scan.name}")
    count(features, "check", lambda scan: f"lint {scan.name}")
    return counts


def test_a_finetuning_opens_its_model_once_and_reads_every_scan_twice(labelled, tmp_path, counted):
    """Once to survey it, its content hash included, and once to train on it or to judge it; checked once."""
    ask = ["finetune", str(labelled), "--model", "swin-wild-mim", "--out", str(tmp_path / "m"), "--json"]
    assert main([*ask, "--steps", "2", "--crop", "16", "--batch", "1"]) == 0
    assert counted["config swin-wild-mim"] == 1 and counted["hash swin-wild-mim"] == 1
    reads = {key: value for key, value in counted.items() if key.startswith("read")}
    assert len(reads) == 6 and max(reads.values()) <= 2, reads
    lints = {key: value for key, value in counted.items() if key.startswith("lint")}
    assert len(lints) == 3 and set(lints.values()) == {1}, lints


@pytest.mark.slow
def test_folds_share_one_survey(labelled, tiny, tmp_path, counted):
    tiny.save_pretrained(tmp_path / "tiny")
    ask = [
        "finetune",
        str(labelled),
        "--model",
        str(tmp_path / "tiny"),
        "--out",
        str(tmp_path / "m"),
        "--json",
    ]
    assert main([*ask, "--folds", "3", "--steps", "1", "--crop", "16", "--batch", "1"]) == 0
    lints = [value for key, value in counted.items() if key.startswith("lint")]
    assert lints == [1, 1, 1]
    summary = json.loads((tmp_path / "m" / "folds.json").read_text())
    assert len(summary["folds"]) == 3 and sorted(summary["cases"]) == ["case0", "case1", "case2"]


def test_a_load_hashes_its_file_once_and_nothing_for_a_later_save(tiny, tmp_path, counted, monkeypatch):
    import ctssl
    from ctssl.files.weights import read_metadata
    from ctssl.hub import provenance

    tiny.save_pretrained(tmp_path / "tiny")
    monkeypatch.setattr(provenance, "fingerprint_of", lambda *_: pytest.fail("hashed all weights"))
    before = counted["hash tiny"]
    encoder = ctssl.load(tmp_path / "tiny")
    assert counted["hash tiny"] == before + 1
    again = encoder.save_pretrained(tmp_path / "again")
    metadata = [read_metadata(path / "model.safetensors") for path in (tmp_path / "tiny", again)]
    assert metadata[0] == metadata[1]  # still the same weights


def test_a_csv_means_the_same_to_everyone(labelled):
    """`training,testing`, upper case and blanks are splits; `P1` and `P1 ` are one patient."""
    from ctssl.datasets import find_cases

    table = labelled / "table.csv"
    rows = (
        "images/case0.nii.gz,labels/case0.nii.gz,P1,Training",
        "images/case1.nii.gz,labels/case1.nii.gz,P1 ,train ",
    )
    table.write_text(
        "\n".join(["image,label,patient,split", *rows, "images/case2.nii.gz,labels/case2.nii.gz,P2,TESTING"])
    )
    found = find_cases(table).cases
    assert [(one.patient, one.split) for one in found] == [("P1", "train"), ("P1", "train"), ("P2", "test")]
