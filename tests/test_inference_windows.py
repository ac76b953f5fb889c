"""Whole scans in windows: blended as they should be, air for nothing, back on the scan's grid, within the memory allowed."""

import itertools
import math
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli import main
from ctssl.heads.segmenter import Segmenter
from ctssl.inference import features, masks, windows
from ctssl.precision import deterministic
from ctssl.volume import nifti
from ctssl.volume.volume import Volume


@pytest.fixture
def model(encoder):
    found = Segmenter(encoder, head="linear", classes=3).eval()
    found.window = 24
    return found


def scan_of(shape, seed=0):
    hu = np.random.default_rng(seed).normal(0, 200, shape).astype(np.float32) - 100
    return Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0]))


def blended(model, image, overlap=0.5):
    """Every window of a scan at once, in full precision."""
    side = model.window
    bell = windows.gaussian(side)
    weight = bell[:, None, None] * bell[:, None] * bell
    total, sums = np.zeros(image.shape), np.zeros((model.classes, *image.shape))
    for corner in itertools.product(*(windows.window_starts(n, side, overlap) for n in image.shape)):
        here = tuple(slice(c, c + side) for c in corner)
        with torch.no_grad():
            sums[(slice(None), *here)] += model(torch.from_numpy(image[here])[None, None])[0].numpy() * weight
        total[here] += weight
    logits = sums / total
    shares = np.exp(logits - logits.max(0))
    return shares / shares.sum(0)


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [0.5, 0.25])
def test_windows_are_blended_by_their_weights(model, overlap):
    scan = scan_of((50, 31, 24))
    found, affine = masks.probabilities_of(
        model, features.prepared(model.encoder, scan), windows.Windows(overlap)
    )
    np.testing.assert_allclose(affine, scan.affine)
    image = features.prepared(model.encoder, scan).array
    np.testing.assert_allclose(found, blended(model, image, overlap), atol=2e-3)


def test_windows_overlap_by_at_least_what_was_asked_and_cover_everything():
    for size, side, overlap in itertools.product((24, 25, 47, 48, 100, 333), (24,), (0.0, 0.25, 0.5, 0.75)):
        starts = windows.window_starts(size, side, overlap)
        assert starts[0] == 0 and starts[-1] == size - side
        assert all(b - a <= round(side * (1 - overlap)) for a, b in itertools.pairwise(starts))
    with pytest.raises(ValueError, match="below 1"):
        windows.Windows(overlap=1.0)


def test_a_scan_smaller_than_a_window_is_surrounded_by_air(model):
    scan = scan_of((10, 30, 7))
    found, _ = masks.probabilities_of(model, features.prepared(model.encoder, scan))
    image = features.prepared(model.encoder, scan).array
    around = np.pad(image, [(7, 7), (0, 0), (8, 9)])
    np.testing.assert_allclose(found, blended(model, around)[:, 7:17, :, 8:15], atol=2e-3)


def test_windows_of_air_are_left_out_without_a_difference(model):
    array = np.full((96, 24, 24), -1000, np.float32)
    array[:20, 4:20, 4:20] = 60
    scan = Volume(
        array
        + np.where(array > 0, np.random.default_rng(0).normal(0, 20, array.shape), 0).astype(np.float32),
        np.diag([2.0, 2.0, 2.0, 1.0]),
    )
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    found, _ = masks.probabilities_of(model, features.prepared(model.encoder, scan))
    used = len(calls)
    plain, _ = masks.probabilities_of(model, features.prepared(model.encoder, scan), skip_air=False)
    assert used < (len(calls) - used) / 2
    np.testing.assert_array_equal(found, plain)


@pytest.mark.slow
def test_the_mask_does_not_depend_on_the_memory_allowed(model, monkeypatch):
    affine = np.array([[0, 0, 3.0, 1], [1.5, 0, 0, 2], [0, -2.0, 0, 3], [0, 0, 0, 1]])
    scan = Volume(scan_of((40, 36, 30)).array, affine)
    model.forward = lambda x: torch.cat([0.45 - x, x - 0.45, -x], 1) * 10  # a mask with many edges
    whole = model.segment(scan)
    assert 0.1 < (whole.array == 1).mean() < 0.9
    np.testing.assert_array_equal(model.segment(scan).array, whole.array)
    with pytest.raises(ValueError, match="--max-memory"):
        model.segment(scan, max_memory_gb=1.0)
    monkeypatch.setattr(masks, "slices_within_memory", lambda *args, **more: 1)
    np.testing.assert_array_equal(model.segment(scan).array, whole.array)


def test_a_large_scan_is_planned_for_eight_gigabytes():
    model = ctssl.segmenter("swin-wild-mim")
    scan = Volume(np.broadcast_to(np.float32(0), (512, 512, 600)), np.diag([0.75, 0.75, 1.0, 1.0]))
    assert (
        16
        <= masks.slices_within_memory(model, scan, 8.0)
        <= masks.slices_within_memory(model, scan, 12.0)
        <= 600
    )


def huge(path: Path, shape=(600, 600, 600), spacing=10.0) -> Path:
    """The header of a scan of zeros, as long as they are said to be: a file with a hole."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.diag([spacing, spacing, spacing, 1.0]), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock)
    os.truncate(path, 352 + 2 * math.prod(shape))
    return path


@pytest.mark.parametrize("what", ["embed", "segment", "probabilities", "command", "command embed"])
def test_a_scan_is_planned_before_it_is_read(what, model, tmp_path, monkeypatch, capsys):
    """Coarse scans become large on the grid of a model, and a large file takes minutes to read."""
    scan = huge(tmp_path / "scan.nii")
    monkeypatch.setattr(nifti, "read_nifti", lambda path: pytest.fail("it was read"))
    if what.startswith("command"):
        model.save_pretrained(tmp_path / "m")
        name, out = ("embed", "v.npy") if what.endswith("embed") else ("segment", "m.nii.gz")
        assert main([name, str(scan), str(tmp_path / out), "--model", str(tmp_path / "m")]) == 2
        said = capsys.readouterr().err
        assert "--max-memory" in said and "GB, more than the 8 GB allowed" in said
        return
    with pytest.raises(ValueError, match=r"scan.nii.* need about .* GB, more than the 8 GB allowed"):
        getattr(model.encoder if what == "embed" else model, what)(scan)


@pytest.mark.parametrize("tta", [False, True])
def test_several_windows_at_once_give_what_single_ones_do(model, tta):
    image = features.prepared(model.encoder, scan_of((40, 30, 50))).array
    image[:20] = 0  # windows of air in between
    one, many = (
        masks.probabilities_of(model, Volume(image, np.eye(4)), windows.Windows(tta=tta, batch=batch))[0]
        for batch in (1, 5)
    )
    np.testing.assert_allclose(many, one, atol=2e-3)


def test_fewer_windows_at_once_where_memory_is_short():
    """As often as it takes; and with a message where not even one fits."""
    seen: list[int] = []

    def network(room):
        def answer(x):
            seen.append(len(x))
            if len(x) > room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch.cat([x, 1 - x], 1)

        return answer

    image = np.random.default_rng(0).random((8, 24, 24)).astype(np.float32)
    kind = dict(classes=2, skip_air=False)
    short = windows.slide(network(3), image, 8, windows=windows.Windows(batch=16), **kind)
    assert seen[:4] == [16, 8, 4, 2] and set(seen[3:]) <= {1, 2}
    np.testing.assert_array_equal(short, windows.slide(network(16), image, 8, **kind))
    with pytest.raises(MemoryError, match="one window of 8 voxels does not fit.*--device cpu"):
        windows.slide(network(0), image, 8, **kind)
    with pytest.raises(ValueError, match="batch=0"):
        windows.Windows(batch=0)


def test_bf16_gives_nearly_the_same_and_is_on_the_record(model):
    from ctssl.inference.folder import made_by

    scan, half = scan_of((30, 30, 30)), windows.Windows(bf16=True)
    image = features.prepared(model.encoder, scan)
    one, two = (masks.probabilities_of(model, image, w)[0] for w in (windows.Windows(), half))
    assert 0 < np.abs(one - two).max() < 0.05
    assert made_by(model, half, scan)["bf16"] and "bf16" not in made_by(model, windows.Windows(), scan)


def test_a_gpu_takes_as_many_windows_as_its_free_memory_holds(monkeypatch):
    gpu, gib = torch.device("cuda", 0), 1 << 30
    for free, expected in ((80 * gib, 16), (2 * gib, 6), (gib // 8, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80 * gib))
        assert windows.windows_at_once(gpu, 64) == expected
    assert windows.windows_at_once(torch.device("cpu"), 64) == 1
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gib // 8, 80 * gib))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 * gib)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: gib)
    assert windows.windows_at_once(gpu, 64) == 6  # what PyTorch keeps is free for it
    assert windows.windows_at_once(gpu, 64, reserved=2 * gib) == 1
    with deterministic(enabled=True):
        assert windows.windows_at_once(gpu, 64) == 1


def test_a_compiled_network_sees_batches_of_one_size_alone(model):
    image, seen = np.random.default_rng(0).random((8, 24, 24)).astype(np.float32), []

    def network(x):
        seen.append(len(x))
        return torch.cat([x, 1 - x], 1)

    kind = dict(classes=2, skip_air=False)
    found = windows.slide(network, image, 8, windows=windows.Windows(batch=16, compiled=True), **kind)
    assert set(seen) == {16}
    np.testing.assert_array_equal(found, windows.slide(network, image, 8, **kind))


@pytest.mark.parametrize("call", ["isfinite", "cat"])
def test_memory_that_ends_outside_the_network_ends_in_a_message(call, monkeypatch):
    """On what is blended, or where the answers are looked at: then fewer windows are tried first."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    image = np.zeros((8, 24, 24), np.float32)
    monkeypatch.setattr(torch, call, full)
    with pytest.raises(MemoryError, match="does not fit into the memory of cpu.*--device cpu"):
        windows.slide(lambda x: x.expand(-1, 2, -1, -1, -1), image, 8, classes=2)
