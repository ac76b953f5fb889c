"""The corpora, the cache, the manifest and the loader of a pretraining."""

import dataclasses
import json
import os
import pickle
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctssl.phantom import phantom
from ctssl.zoo import Preprocess
from tests.support.training import TINY
from training.data import cache, corpora, manifest
from training.data.loader import Places, Samples, loader
from training.data.manifest import Scan


def test_the_cache_follows_content_and_preprocessing(tmp_path):
    path = phantom(8.0)[0].save(tmp_path / "p.nii.gz")
    scans = [manifest.Scan(path, "p")]
    one = cache.prepare_corpus(scans, TINY.preprocess, tmp_path / "cache").scan(0)
    assert one.dtype == np.float16 and isinstance(one, np.memmap) and one.min() >= 0 and one.max() <= 1
    other = dataclasses.replace(TINY.preprocess, spacing_mm=4.0)
    assert cache.prepare_corpus(scans, other, tmp_path / "cache").scan(0).shape != one.shape
    phantom(8.0, seed=3)[0].save(path, overwrite=True)
    two = cache.prepare_corpus(scans, TINY.preprocess, tmp_path / "cache").scan(0)
    assert not np.array_equal(one, two)
    for file in (tmp_path / "cache").glob("*-*.npy"):  # deleted: made again
        file.unlink()
    assert np.array_equal(cache.prepare_corpus(scans, TINY.preprocess, tmp_path / "cache").scan(0), two)


def test_a_damaged_scan_is_left_out_and_too_many_are_refused(tmp_path, capsys):
    good = phantom(8.0)[0].save(tmp_path / "good.nii.gz")
    bad = tmp_path / "bad.nii.gz"
    bad.write_bytes(good.read_bytes()[:5000])
    scans = [manifest.Scan(good, str(i)) for i in range(24)] + [manifest.Scan(bad, "bad")]
    corpus = cache.prepare_corpus(scans, TINY.preprocess, tmp_path / "cache")
    assert (
        len(corpus) == 24 and "left out 1 of 25" in (out := capsys.readouterr().out) and "bad.nii.gz" in out
    )
    with pytest.raises(SystemExit, match="2 of 3 scans are unusable"):
        cache.prepare_corpus(
            [scans[0], scans[24], manifest.Scan(tmp_path / "none.nii", "n")],
            TINY.preprocess,
            tmp_path / "cache",
        )


def test_a_manifest_is_a_csv_or_a_folder(tmp_path):
    path = phantom(8.0)[0].save(tmp_path / "p.nii.gz")
    (tmp_path / "deep").mkdir()
    path.rename(tmp_path / "deep" / "p.nii.gz")
    assert [s.path.name for s in manifest.find_scans(tmp_path)] == ["p.nii.gz"]
    table = tmp_path / "scans.csv"
    table.write_text("image,patient,split\na.nii,A,train\nb.nii,A,train\nc.nii,B,test\n")
    assert [(s.path, s.patient) for s in manifest.find_scans(table)] == [
        (tmp_path / "a.nii", "A"),
        (tmp_path / "b.nii", "A"),
    ]
    table.write_text("image,patient,split\na.nii,A,train\nb.nii,A,test\n")
    with pytest.raises(SystemExit, match="more than one split: A"):
        manifest.find_scans(table)
    table.write_text("image,patient,split\na.nii,P1,Training\nb.nii,P1 ,train \nc.nii,P2,testing\n")
    assert [s.patient for s in manifest.find_scans(table)] == [
        "P1",
        "P1",
    ]  # one split, one patient, one table
    table.write_text("image,split\na.nii,tarin\n")
    with pytest.raises(SystemExit, match="unknown split 'tarin'; use train, val or test"):
        manifest.find_scans(table)
    table.write_text("file\na.nii\n")
    with pytest.raises(SystemExit, match="needed: image"):
        manifest.find_scans(table)
    with pytest.raises(SystemExit, match="'wild'.* or 'sarcoma'"):
        manifest.find_scans(tmp_path / "nowhere")


def test_each_scan_comes_once_in_a_pass_and_samples_do_not_depend_on_who_asks(tmp_path):
    scans = [
        manifest.Scan(phantom(8.0, seed=i)[0].save(tmp_path / f"{i}.nii.gz"), str(i // 2)) for i in range(4)
    ]
    corpus = cache.prepare_corpus(scans, TINY.preprocess, tmp_path / "cache")
    assert [corpus.patient(i) for i in range(4)] == [0, 0, 1, 1]
    samples = Samples(corpus, SimpleNamespace(views=2), dataclasses.replace(TINY, crop=16, seed=3))
    drawn = [samples[n][3] for n in range(8)]
    assert sorted(drawn[:4]) == sorted(drawn[4:]) == [0, 0, 1, 1]
    one = list(loader(samples, Places(batch=4, pieces=1, rank=0, world=1, first=1, last=3), workers=0))
    two = [
        list(loader(samples, Places(batch=2, pieces=1, rank=r, world=2, first=1, last=3), workers=1))
        for r in (0, 1)
    ]
    for step, batch in enumerate(one):
        for view in range(2):
            joined = torch.cat([two[r][step].views[view] for r in (0, 1)])
            assert torch.equal(batch.views[view], joined) and joined.min() >= 0 and joined.max() <= 1
        assert batch.seeds.tolist() == two[0][step].seeds.tolist() + two[1][step].seeds.tolist()
    assert not torch.equal(one[0].views[0], one[0].views[1])


@pytest.mark.slow
def test_thirty_thousand_scans_start_in_seconds_and_a_worker_holds_one_table(tmp_path):
    """Links to one file; a start on a ready cache, against the time it takes to list and stat as many files plainly."""
    path = phantom(20.0)[0].save(tmp_path / "p.nii.gz")
    folder, many = tmp_path / "many", 30_000
    folder.mkdir()
    for i in range(many):
        os.symlink(path, folder / f"{i}.nii.gz")
    began = time.perf_counter()
    sum(os.stat(folder / name).st_size for name in sorted(os.listdir(folder)))
    plain = time.perf_counter() - began
    scans = manifest.find_scans(folder)
    assert len(scans) == many
    first = cache.prepare_corpus(scans[:1], TINY.preprocess, tmp_path / "cache")
    spec = first.rows[0]["file"].decode().rsplit("-", 1)[1].removesuffix(".npy")
    with open(tmp_path / "cache" / "index.jsonl", "w") as index:
        for scan in scans:
            entry = {"state": cache._state(scan.path), "spec": spec, "file": first.rows[0]["file"].decode()}
            entry["voxels"] = first.voxels[0]  # without it every scan is prepared again
            index.write(json.dumps(entry) + "\n")
    began = time.perf_counter()
    corpus = cache.prepare_corpus(manifest.find_scans(folder), TINY.preprocess, tmp_path / "cache")
    samples = Samples(corpus, SimpleNamespace(views=1), dataclasses.replace(TINY, crop=8))
    samples[30 * many + 5]
    assert time.perf_counter() - began < 40 * plain + 2
    assert len(corpus) == many and len(pickle.dumps(corpus)) < 1000
    assert isinstance(corpus.rows, np.memmap)


def test_the_split_is_what_its_seed_gives_and_balanced(data):
    assert corpora.make_split() == {side: corpora.split(side) for side in ("train", "test")}
    kernels = {row["id"]: row["kernel"] for row in corpora.cases("sarcoma")}
    assert sorted(kernels[i] for i in corpora.split("test")) == ["SOFT"] * 6 + ["STANDARD"] * 6
    assert len(corpora.split("train")) == 26 and "STS_008" in corpora.split("train")


def test_no_corpus_holds_a_test_case(data):
    test = set(corpora.split("test")) | set(corpora.lung_split()["choose"])
    for name, count in (("wild", 26), ("sarcoma", 26), ("lung", 150)):
        paths = corpora.corpus(name)
        assert len(paths) == count and all(p.is_file() for p in paths)
        assert not test & {p.name.removesuffix(".nii.gz") for p in paths}
        assert not any(
            group in str(p) for group in ("paired", "lung_tumours", "radiogenomics") for p in paths
        )
    with pytest.raises(ValueError, match="use 'wild', 'wild46', 'lung' or 'sarcoma'"):
        corpora.corpus("tame")


@pytest.mark.slow
def test_a_scan_that_is_no_ct_in_hu_is_left_out(tmp_path):
    scan = phantom(6.0)[0]
    good = [
        Scan(dataclasses.replace(scan, array=scan.array + i).save(tmp_path / f"{i}.nii.gz"), str(i))
        for i in range(30)
    ]
    windowed = dataclasses.replace(scan, array=np.clip(scan.array / 1000, 0, 1)).save(
        tmp_path / "windowed.nii.gz"
    )
    corpus = cache.prepare_corpus([*good, Scan(windowed, "w")], Preprocess(), tmp_path / "cache")
    assert len(corpus) == 30


def test_a_ct_is_found_behind_other_files_of_its_folder(tmp_path):
    """A structure set comes before the slices, and a disk has an index."""
    pytest.importorskip("pydicom")
    from tests.support.dicom import square, write_rtstruct, write_series

    write_series(tmp_path / "patient" / "ct", uid="1.2.3")
    write_rtstruct(
        tmp_path / "patient" / "ct" / "0-RS.dcm", {"a": [square(-9, -8, 30.0)]}, series="1.2.3", patient="p"
    )
    first = next(path for path in sorted((tmp_path / "patient" / "ct").iterdir()))
    assert first.name == "0-RS.dcm"
    assert [scan.path.name for scan in manifest.find_scans(tmp_path)] == ["ct"]
    (tmp_path / "structures").mkdir()
    first.rename(tmp_path / "structures" / "RS.dcm")
    assert [scan.path.name for scan in manifest.find_scans(tmp_path)] == ["ct"]
