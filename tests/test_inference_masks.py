"""From probabilities to a mask: the threshold, and where it comes from."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ctssl
from ctssl import inference
from ctssl.cli.main import main
from ctssl.finetuning.crops import PreparedCase
from ctssl.finetuning.threshold import choose_threshold
from ctssl.heads.segmenter import Segmenter
from ctssl.inference.features import prepared
from ctssl.volume.volume import Volume
from tests.support.tiny import tiny_swin


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


def test_the_threshold_is_the_one_that_suits_the_validation_cases():
    """Three of ten unsure voxels are labelled: taking them all scores best, whatever is likeliest."""
    hu = np.full((20, 20, 20), -480.0, np.float32)
    hu[4:14, 4:14, 4:14] = -150.0  # the model says 0.35 here
    labels = np.zeros(hu.shape, np.uint8)
    labels[4:14, 4:14, 4:10] = 1
    model = Shares()
    image = prepared(model.encoder, Volume(hu, np.diag([2.0, 2, 2, 1]), "a"))
    scan = PreparedCase(image.array.astype(np.float16), labels, image.affine, "a")
    assert choose_threshold(model, [scan]) == 0.3
    assert choose_threshold(model, [scan._replace(labels=np.zeros_like(labels))]) == 0.5  # tells nothing
    assert choose_threshold(model, []) == 0.5


def test_a_segmenter_keeps_its_threshold(encoder, tmp_path):
    Segmenter(encoder, threshold=0.2).save_pretrained(tmp_path / "model")
    assert ctssl.load_segmenter(tmp_path / "model").threshold == 0.2
    with pytest.raises(ValueError, match="between 0 and 1"):
        Segmenter(encoder, threshold=1.0)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('"threshold": 0.2', '"threshold": 20'))
    with pytest.raises(ValueError, match="invalid threshold 20"):
        ctssl.load_segmenter(tmp_path / "model")


def test_an_ensemble_averages_the_probabilities_of_its_members(tmp_path, ball, capsys):
    scan, _ = ball
    path, nets = scan.save(tmp_path / "scan.nii.gz"), []
    for seed in range(3):
        torch.manual_seed(seed)
        net = ctssl.segmenter(tiny_swin(), head="linear", window=32)
        torch.nn.init.normal_(net.head.get_parameter(next(iter(dict(net.head.named_parameters())))), std=0.5)
        net.save_pretrained(tmp_path / f"fold{seed}")
        nets.append(ctssl.load_segmenter(tmp_path / f"fold{seed}"))
    nets[0].threshold, nets[1].threshold = 0.5, 0.3
    nets[0].training_range = {"longest_mm": 90.0, "volume_ml": {"1": [2.0, 9.0]}}
    nets[1].training_range = {"longest_mm": 70.0, "volume_ml": {"1": [1.0, 5.0]}}
    for order in (nets[:2], nets[1::-1]):  # nothing depends on it
        one = ctssl.Ensemble(order)
        assert one.threshold == pytest.approx(0.4)
        assert one.training_range == {"longest_mm": 90.0, "volume_ml": {"1": [1.0, 9.0]}}
    for net in nets:
        net.threshold, net.training_range = 0.5, {}
    both = ctssl.Ensemble(nets)
    image = torch.rand(2, 1, 32, 32, 32)
    with torch.no_grad():
        mean = torch.stack([net(image).softmax(1) for net in nets]).mean(0)
        torch.testing.assert_close(both(image).softmax(1), mean)
    assert both.spec.name == "fold0 + fold1 + fold2" and len(both.spec.sha256) == 64
    out = tmp_path / "mask.nii.gz"
    folders = [str(tmp_path / f"fold{seed}") for seed in range(3)]
    assert (
        main(["segment", str(path), str(out), "--model", *folders, "--overlay", str(tmp_path / "o.png")]) == 0
    )
    assert np.array_equal(ctssl.read(out).array, both.segment(path).array)
    nets[1].window = 16
    with pytest.raises(ValueError, match=r"member 2 of the ensemble has other window \(16, the first 32\)"):
        ctssl.Ensemble(nets)
    with pytest.raises(ValueError, match="at least one"):
        ctssl.Ensemble([])
