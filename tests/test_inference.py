"""Whole scans in windows: blended as they should be, air for nothing, back on the scan's grid, within the memory allowed."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ctssl
from ctssl import inference
from ctssl.datasets.case import Case
from ctssl.finetuning import threshold as thresholds
from ctssl.heads.segmenter import Segmenter
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
    bell = inference.gaussian(side)
    weight = bell[:, None, None] * bell[:, None] * bell
    total, sums = np.zeros(image.shape), np.zeros((model.classes, *image.shape))
    for corner in itertools.product(*(inference._spread(n, side, overlap) for n in image.shape)):
        here = tuple(slice(c, c + side) for c in corner)
        with torch.no_grad():
            sums[(slice(None), *here)] += model(torch.from_numpy(image[here])[None, None])[0].numpy() * weight
        total[here] += weight
    logits = sums / total
    shares = np.exp(logits - logits.max(0))
    return shares / shares.sum(0)


@pytest.mark.parametrize("overlap", [0.5, 0.25])
def test_windows_are_blended_by_their_weights(model, overlap):
    scan = scan_of((50, 31, 24))
    found, affine = inference.windowed(model, scan, overlap=overlap, tta=False, progress=False)
    np.testing.assert_allclose(affine, scan.affine)
    image = inference.prepared(model.encoder, scan).array
    np.testing.assert_allclose(found, blended(model, image, overlap), atol=2e-3)


def test_windows_overlap_by_at_least_what_was_asked_and_cover_everything():
    for size, side, overlap in itertools.product((24, 25, 47, 48, 100, 333), (24,), (0.0, 0.25, 0.5, 0.75)):
        starts = inference._spread(size, side, overlap)
        assert starts[0] == 0 and starts[-1] == size - side
        assert all(b - a <= round(side * (1 - overlap)) for a, b in itertools.pairwise(starts))
    with pytest.raises(ValueError, match="below 1"):
        inference._spread(100, 24, 1.0)


def test_a_scan_smaller_than_a_window_is_surrounded_by_air(model):
    scan = scan_of((10, 30, 7))
    found, _ = inference.windowed(model, scan, overlap=0.5, tta=False, progress=False)
    image = inference.prepared(model.encoder, scan).array
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
    found, _ = inference.windowed(model, scan, overlap=0.5, tta=False, progress=False)
    used = len(calls)
    plain, _ = inference.windowed(model, scan, overlap=0.5, tta=False, progress=False, skip_air=False)
    assert used < (len(calls) - used) / 2
    np.testing.assert_array_equal(found, plain)


def test_the_mask_does_not_depend_on_the_memory_allowed(model, monkeypatch):
    affine = np.array([[0, 0, 3.0, 1], [1.5, 0, 0, 2], [0, -2.0, 0, 3], [0, 0, 0, 1]])
    scan = Volume(scan_of((40, 36, 30)).array, affine)
    model.forward = lambda x: torch.cat([0.45 - x, x - 0.45, -x], 1) * 10  # a mask with many edges
    whole = model.segment(scan)
    assert 0.1 < (whole.array == 1).mean() < 0.9
    np.testing.assert_array_equal(model.segment(scan).array, whole.array)
    with pytest.raises(ValueError, match="--max-memory"):
        model.segment(scan, max_memory_gb=1.0)
    monkeypatch.setattr(inference, "plan", lambda *args: 1)
    np.testing.assert_array_equal(model.segment(scan).array, whole.array)


def test_a_large_scan_is_planned_for_eight_gigabytes():
    model = ctssl.segmenter("swin-wild-mim")
    scan = Volume(np.broadcast_to(np.float32(0), (512, 512, 600)), np.diag([0.75, 0.75, 1.0, 1.0]))
    assert 16 <= inference.plan(model, scan, 8.0) <= inference.plan(model, scan, 12.0) <= 600


# --- the threshold ---


class Shares(torch.nn.Module):
    """A segmenter whose probability of label 1 is the image itself, at 2 mm."""

    labels, classes, window, spec, encoder = {1: "tumour"}, 2, 16, None, SimpleNamespace(spec=None)

    def __init__(self, threshold=0.5):
        super().__init__()
        self.threshold, self.weight = threshold, torch.nn.Parameter(torch.zeros(1))

    def forward(self, image):
        share = image.clamp(1e-4, 1 - 1e-4)
        return torch.cat([(1 - share).log(), share.log()], 1)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_a_voxel_counts_from_the_threshold_on(threshold):
    scan = Volume(
        np.linspace(-500, 500, 20 * 20 * 20, dtype=np.float32).reshape(20, 20, 20), np.diag([2.0, 2, 2, 1])
    )
    model = Shares(threshold).eval()
    share = inference.probabilities(model, scan)["tumour"].array
    clear = abs(share - threshold) > 2e-3
    mask = inference.segment(model, scan).array
    np.testing.assert_array_equal(mask[clear], (share > threshold)[clear])
    np.testing.assert_array_equal(inference.likeliest([share], [1], threshold)[clear], mask[clear])


def test_among_several_labels_the_likeliest_is_taken_where_it_beats_the_background():
    maps = [np.array([0.3, 0.3, 0.1]), np.array([0.1, 0.35, 0.1])]  # the background has 0.6, 0.35, 0.8
    assert inference.likeliest(maps, [1, 2]).tolist() == [0, 0, 0]
    assert inference.likeliest(maps, [1, 2], 0.3).tolist() == [1, 2, 0]


def test_the_threshold_is_the_one_that_suits_the_validation_cases(tmp_path):
    """Three of ten unsure voxels are labelled: taking them all scores best, whatever is likeliest."""
    hu = np.full((20, 20, 20), -480.0, np.float32)
    hu[4:14, 4:14, 4:14] = -150.0  # the model says 0.35 here
    labels = np.zeros(hu.shape, np.uint8)
    labels[4:14, 4:14, 4:10] = 1
    scan = Volume(hu, np.diag([2.0, 2, 2, 1]), "a")
    case = Case(
        "a", scan.save(tmp_path / "a.nii.gz"), Volume(labels, scan.affine).save(tmp_path / "label.nii.gz")
    )
    assert thresholds.choose(Shares(), [case], [labels]) == 0.3
    assert thresholds.choose(Shares(), [case], [np.zeros_like(labels)]) == 0.5  # which tells nothing
    assert thresholds.choose(Shares(), [], []) == 0.5


def test_a_segmenter_keeps_its_threshold(encoder, tmp_path):
    Segmenter(encoder, threshold=0.2).save_pretrained(tmp_path / "model")
    assert ctssl.load_segmenter(tmp_path / "model").threshold == 0.2
    with pytest.raises(ValueError, match="between 0 and 1"):
        Segmenter(encoder, threshold=1.0)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"threshold": 0.2', '"threshold": 20'))
    with pytest.raises(ValueError, match="has the threshold 20"):
        ctssl.load_segmenter(tmp_path / "model")
