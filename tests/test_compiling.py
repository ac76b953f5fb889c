"""Compiled encoders: the same results, a clear word where no compiler is."""

import shutil

import numpy as np
import pytest
import torch

import ctssl
from ctssl import compiling
from ctssl.cli.main import main
from ctssl.encoders.pixels import Pixels
from ctssl.inference.masks import compile_once


def test_a_missing_compiler_is_named(encoder, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"needs the C\+\+ compiler no-such-compiler"):
        compiling.compile_blocks(encoder)
    compiling.compile_blocks(encoder, backend="eager")  # which calls none
    compiling.check_compiler("cuda")  # Triton calls a C compiler
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(ValueError, match="needs the C compiler no-such-compiler"):
        compiling.check_compiler("cuda")


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ValueError, match="no blocks to compile"):
        compiling.compile_blocks(Pixels())


def test_an_ensemble_is_compiled_once(tiny_segmenter, monkeypatch):
    calls = []
    monkeypatch.setattr("ctssl.inference.masks.compile_blocks", calls.append)
    members = [ctssl.load_segmenter(tiny_segmenter) for _ in range(2)]
    compile_once(ctssl.Ensemble(members))
    compile_once(members[0])
    assert calls == [member.encoder for member in members]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler g++")
def test_compiled_commands_give_the_same(labelled, tiny_segmenter, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    scan, model = str(labelled / "images" / "case0.nii.gz"), ["--model", str(tiny_segmenter)]
    assert main(["segment", scan, str(tmp_path / "plain.nii.gz"), *model, "--device", "cpu"]) == 0
    assert main(["segment", scan, str(tmp_path / "fast.nii.gz"), *model, "--compile", "--device", "cpu"]) == 0
    one, two = (ctssl.read(tmp_path / name).array for name in ("plain.nii.gz", "fast.nii.gz"))
    assert (one != two).mean() < 1e-3


def test_embed_compiles_and_halves_where_it_is_asked_to(labelled, tiny_segmenter, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(compiling, "compile_blocks", compiled.append)
    scan, model = str(labelled / "images" / "case0.nii.gz"), ["--model", str(tiny_segmenter)]
    for name, options in (("plain", []), ("half", ["--bf16", "--compile"])):
        assert main(["embed", scan, str(tmp_path / f"{name}.npy"), *model, "--device", "cpu", *options]) == 0
    assert len(compiled) == 1
    plain, half = (torch.from_numpy(np.load(tmp_path / f"{n}.npy")) for n in ("plain", "half"))
    assert 0 < float((half - plain).norm() / plain.norm()) < 0.05
