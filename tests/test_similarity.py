"""CKA: its invariances, its estimate against the definition, and the comparison of encoders."""

import numpy as np
import pytest
import torch

import ctssl
from ctssl import similarity
from ctssl.phantom import phantom
from tests.support.tiny import SMALL


def features(n, p, seed=0):
    return torch.randn(n, p, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_same_features_rotated_and_scaled_are_the_same():
    x = features(40, 12)
    rotation = torch.linalg.qr(features(12, 12, 1))[0]
    for y in (x, 3.0 * x, x @ rotation, x @ rotation + 5.0):
        assert similarity.cka(x, y) == pytest.approx(1.0, abs=1e-9)
    assert similarity.cka(x, x @ torch.diag(torch.linspace(0.1, 10, 12).double())) < 0.95


def test_independent_features_are_near_zero_whatever_their_width():
    """The biased estimate would give p / (p + n): the unbiased one does not grow with the width."""
    values = [similarity.cka(features(64, 500, 2 * i), features(64, 500, 2 * i + 1)) for i in range(20)]
    assert abs(np.mean(values)) < 0.02 and max(map(abs, values)) < 0.1


def test_hsic_is_the_mean_over_all_quadruples():
    """Song's U-statistic from its definition: every ordered choice of four different examples."""
    k, other = (similarity.gram(features(6, 3, seed)) for seed in (0, 1))
    terms = []
    for i in range(6):
        for j in range(6):
            for q in range(6):
                for r in range(6):
                    if len({i, j, q, r}) == 4:
                        terms.append(k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]))
    assert similarity.hsic(k, other).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-9)


def test_minibatch_hsic_is_the_full_batchs_in_expectation_and_cka_is_close():
    x = features(96, 10)
    y = x[:, :5] @ features(5, 8, 3) + 0.5 * features(96, 8, 4)
    full = similarity.hsic(similarity.gram(x), similarity.gram(y)).item()
    found, rng = [], np.random.default_rng(0)
    total = similarity.Minibatches(1, 1)
    for _ in range(150):
        for part in np.split(rng.permutation(96), 4):
            found.append(similarity.hsic(similarity.gram(x[part]), similarity.gram(y[part])).item())
            total.add([x[part]], [y[part]])
    assert np.mean(found) == pytest.approx(full, abs=4 * np.std(found) / np.sqrt(len(found)))
    assert total.matrix()[0, 0] == pytest.approx(similarity.cka(x, y), abs=0.02)


def test_too_few_examples_are_refused():
    with pytest.raises(ValueError, match="4 or more"):
        similarity.cka(features(3, 4), features(3, 4))


@pytest.mark.slow
def test_an_encoder_equals_itself_and_differs_from_another(encoder, tmp_path):
    scans = [phantom(6.0, seed=i)[0] for i in range(2)]
    torch.manual_seed(5)
    other = ctssl.Swin(**SMALL["swin"])
    sizes = dict(crops=16, batch=8, size=16)
    own = similarity.compare(encoder, encoder, scans, **sizes)
    assert own.size == 16 and 2 <= own.apart < 16
    blocks = len(encoder.blocks)
    assert own.matrix.shape == (blocks, blocks) and own.crops == 16
    assert np.allclose(np.diag(own.matrix), 1.0) and np.allclose(own.matrix, own.matrix.T)
    found = similarity.compare(encoder, other, scans, **sizes)
    assert found.matrix.shape == (blocks, 4) and np.isfinite(found.matrix).all()
    again = similarity.compare(encoder, other, scans, **sizes)
    assert np.array_equal(found.matrix, again.matrix)
    found.picture(tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    beside = similarity.compare(encoder, encoder, scans, random=True, seed=1, **sizes)
    assert found.random is None and beside.random is not None
    assert np.array_equal(beside.matrix, similarity.compare(encoder, encoder, scans, seed=1, **sizes).matrix)
    twin = similarity.initial(encoder, 1)
    expected = similarity.compare(encoder, twin, scans, seed=1, **sizes)
    assert np.allclose(beside.random, expected.matrix) and np.diag(beside.random).min() < 0.99
    beside.picture(tmp_path / "line.png")
    assert (tmp_path / "line.png").stat().st_size > (tmp_path / "map.png").stat().st_size


def test_no_crop_counts_twice():
    """Twice the same crop would be two examples that agree, which the unbiased estimate takes for evidence."""
    scans = [np.ones((18, 16, 16), np.float32), np.ones((16, 16, 16), np.float32)]
    rng = np.random.default_rng(0)
    places = similarity.different_crops(scans, 4, 16, rng)
    assert sorted(places) == [(0, (0, 0, 0)), (0, (1, 0, 0)), (0, (2, 0, 0)), (1, (0, 0, 0))]
    with pytest.raises(ValueError, match="about 4 different crops of 16 voxels, fewer than the 8 requested"):
        similarity.different_crops(scans, 8, 16, rng)


def test_crops_apart_and_sizes_that_fit():
    places = [(0, (0, 0, 0)), (0, (15, 0, 0)), (0, (16, 0, 0)), (0, (16, 16, 3)), (1, (0, 0, 0))]
    assert similarity.apart(places, 16) == 4
    scan = np.ones((70, 40, 40), np.float32)
    assert similarity.sized_crops([scan], 20, similarity.SIZES, 0)[0] == 32
    with pytest.raises(similarity.TooFewCrops, match="of 64 voxels"):
        similarity.sized_crops([scan], 20, (64,), 0)


def test_features_are_means_over_cells(encoder):
    images = torch.rand(2, 1, 32, 32, 32)
    maps = encoder.forward_intermediates(images)
    found = similarity.block_features(encoder, images)
    assert all(tuple(one.shape[2:]) == (4, 4, 4) for one in found)
    step = maps[0].shape[2] // 4
    torch.testing.assert_close(found[0][:, :, 0, 0, 0], maps[0][:, :, :step, :step, :step].mean((2, 3, 4)))


def test_an_encoder_is_compared_with_its_segmenter_as_the_segmenter_sees(encoder):
    """A fine-tuned one works at its own spacing and window."""
    from dataclasses import replace

    from ctssl.zoo import ModelSpec, Preprocess

    encoder.spec = ModelSpec("one", "encoder", "swin", preprocess=Preprocess(6.0))
    tuned = ctssl.segmenter(encoder)
    tuned.encoder = type(encoder)(**encoder.config)
    tuned.encoder.load_state_dict(encoder.state_dict())
    tuned.encoder.spec = replace(encoder.spec, preprocess=Preprocess(5.0, (-100.0, 100.0)))
    found = similarity.compare(encoder, tuned, [phantom(6.0)[0]], crops=8, batch=8, size=16)
    assert np.allclose(np.diag(found.matrix), 1.0)


def test_a_network_without_an_encoder_is_refused():
    from ctssl.encoders.pixels import Pixels

    with pytest.raises(ValueError, match="no features"):
        similarity.compare(Pixels(), Pixels(), [phantom(6.0)[0]], crops=8, batch=8, size=16)


def test_other_scans_must_be_the_same_anatomy_on_the_same_grid():
    swin = ctssl.Swin(**SMALL["swin"])
    scan = phantom(6.0)[0]
    louder = ctssl.Volume(scan.array + 30.0, scan.affine)
    sizes = dict(crops=8, batch=8, size=16)
    matrix = similarity.compare(swin, swin, [scan], other_scans=[louder], **sizes).matrix
    assert 0.3 < matrix[0, 0] < 1.0
    with pytest.raises(ValueError, match="different grids"):
        similarity.compare(
            swin, swin, [scan], other_scans=[ctssl.Volume(scan.array[:10], scan.affine)], **sizes
        )
    with pytest.raises(ValueError, match="one for one"):
        similarity.compare(swin, swin, [scan], other_scans=[], **sizes)


def test_models_of_different_spacing_can_be_compared_at_one():
    from dataclasses import replace

    from ctssl.zoo import ModelSpec, Preprocess

    torch.manual_seed(0)
    one, two = ctssl.Swin(**SMALL["swin"]), ctssl.Swin(**SMALL["swin"])
    one.spec = ModelSpec("one", "encoder", "swin", preprocess=Preprocess(spacing_mm=6.0))
    two.spec = replace(one.spec, name="two", preprocess=Preprocess(spacing_mm=4.0))
    sizes = dict(crops=8, batch=8, size=16)
    with pytest.raises(ValueError, match="spacing_mm"):
        similarity.compare(one, two, [phantom(6.0)[0]], **sizes)
    assert similarity.compare(one, two, [phantom(6.0)[0]], spacing_mm=6.0, **sizes).names == ("one", "two")


@pytest.mark.slow
def test_compare_clean_with_shifted(tmp_path, capsys, monkeypatch):
    import json

    from ctssl.cli.main import main

    torch.manual_seed(0)
    folder = ctssl.Swin(**SMALL["swin"]).save_pretrained(tmp_path / "model")
    whole = similarity.compare
    monkeypatch.setattr(similarity, "compare", lambda *a, **how: whole(*a, **how, batch=8))
    scan = phantom(6.0)[0].save(tmp_path / "scan.nii.gz")
    ask = [
        "compare",
        str(folder),
        str(folder),
        "--data",
        str(scan),
        "--crops",
        "16",
        "--size",
        "16",
        "--spacing",
        "4",
    ]
    off = []
    for number, extra in enumerate(([], ["--shift", "thickness:4"], ["--shift", "thickness:5"])):
        assert main([*ask, "--out", str(tmp_path / f"{number}.png"), *extra]) == 0
        off.append(np.diag(json.loads((tmp_path / f"{number}.json").read_text())["blocks"]).mean())
    assert off[0] == pytest.approx(1.0) and off[0] > off[1] > off[2]
    capsys.readouterr()
    assert main([*ask, "--out", str(tmp_path / "x.png"), "--shift", "thickness"]) == 2
    assert "NAME:SEVERITY, such as kernel_sharp:3" in capsys.readouterr().err
