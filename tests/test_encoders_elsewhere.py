"""Encoders and segmenters in other people's programs: MONAI's tensors, other types, copies, processes, traces."""

import copy
import inspect
import io
import pickle

import nibabel
import pytest
import torch
from monai.data.meta_tensor import MetaTensor
from torch import nn
from torch.utils.data import DataLoader, Dataset

import ctssl
from ctssl.encoders.windows import layout
from ctssl.heads import HEADS, WHOLE


@pytest.fixture(params=["encoder alone", "linear", "light"])
def model(encoder, request) -> nn.Module:
    return (
        encoder if request.param == "encoder alone" else ctssl.segmenter(encoder, head=request.param).eval()
    )


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 1, 33, 17, 40, generator=torch.Generator().manual_seed(0))


def last(result) -> torch.Tensor:
    return result[-1] if isinstance(result, list) else result


@pytest.mark.parametrize("train", [False, True])
def test_a_metatensor_gives_what_a_tensor_gives(model, image, train):
    with torch.set_grad_enabled(train):
        expected, found = last(model.train(train)(image)), last(model(MetaTensor(image)))
    torch.testing.assert_close(torch.as_tensor(found), expected, atol=1e-6, rtol=0, check_dtype=True)
    if train:
        found.square().mean().backward()
        assert next(model.parameters()).grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(set(HEADS) - set(WHOLE)))
def test_every_head_takes_a_metatensor(encoder, head):
    net, image = ctssl.segmenter(encoder, head=head), MetaTensor(torch.rand(1, 1, 64, 64, 48))
    sum(weight * logits.square().mean() for weight, logits in net.supervised(image)).backward()
    with torch.no_grad():
        assert net.eval()(image).shape == (1, 2, 64, 64, 48)


def test_attention_of_a_metatensor(encoder, image):
    found = [encoder.attention(x, block=1) for x in (image, MetaTensor(image))]
    one, two = (getattr(x, "weights", x) for x in found)
    torch.testing.assert_close(torch.as_tensor(two), one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("train", [False, True])
def test_half_precision_stays_close(model, image, dtype, train):
    with torch.set_grad_enabled(train):
        exact = last(model(image))
        rough = last(model.to(dtype)(image.to(dtype)))
    assert rough.dtype == dtype
    assert (rough.float() - exact).abs().mean() < 0.03 * exact.std()
    if train:
        rough.float().square().mean().backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_channels_last(model, image, tmp_path):
    with torch.no_grad():
        expected = last(model(image))
        model.to(memory_format=torch.channels_last_3d)
        found = last(model(image.to(memory_format=torch.channels_last_3d)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert (model.save_pretrained(tmp_path / "m") / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("grad", [False, True])
def test_a_trace_computes_the_same_elsewhere(model, image, grad):
    other = torch.rand_like(image)
    layout.__wrapped__.cache_clear()  # as in a process that has computed nothing yet
    with torch.set_grad_enabled(grad):
        traced, file = torch.jit.trace(model, image), io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        for one in (traced, torch.jit.load(file)):
            torch.testing.assert_close(last(one(other)), last(model(other)), atol=1e-5, rtol=0)


def test_a_model_can_be_copied_pickled_and_looked_at(model, image):
    assert {"from_pretrained", "save_pretrained"} <= {name for name, _ in inspect.getmembers(model)}
    assert callable(model.from_pretrained)
    with torch.no_grad():
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(last(twin(image)), last(model(image)))


class Embedded(Dataset):
    """Maps of an encoder, computed where the scans are loaded."""

    def __init__(self, model: nn.Module, image: torch.Tensor) -> None:
        self.model, self.image = model, image

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return last(self.model(self.image + index))[0]


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_of_a_dataloader_runs_it(encoder, image, context):
    with torch.no_grad():
        expected = [last(encoder(image + i)) for i in range(2)]
    loader = DataLoader(Embedded(encoder, image), num_workers=1, multiprocessing_context=context)
    for found, one in zip(loader, expected, strict=True):
        torch.testing.assert_close(found, one)


def test_a_scan_may_be_an_image_of_nibabel_and_scans_a_list(encoder, ball, tmp_path):
    scan = ball[0]
    expected = encoder.embed(scan)
    image = nibabel.Nifti1Image(scan.array, scan.affine)
    path = scan.save(tmp_path / "s.nii.gz")
    assert torch.equal(encoder.embed(image), expected)
    rows = encoder.embed([scan, path, image, (scan.array, scan.affine)])
    assert torch.equal(rows, expected.expand(4, -1)) and torch.equal(encoder.embed([scan, scan]), rows[:2])
    assert ctssl.read(nibabel.load(path)).name == "s.nii.gz"
    with pytest.raises(ValueError, match="a list of 2 was given; read one scan at a time"):
        encoder.preprocess([scan, path])
    with pytest.raises(TypeError, match="is no scan; give a path"):
        encoder.embed(None)
    with pytest.raises(ValueError, match="a tensor alone has no spacing"):
        encoder.embed(torch.zeros(1, 1, 32, 32, 32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_models_in_another_precision_embed_and_segment(encoder, ball, dtype):
    net = ctssl.segmenter(encoder, head="linear", window=32)
    exact, mask = encoder.embed(ball[0]), net.segment(ball[0])
    net.to(dtype)
    found = encoder.embed(ball[0])
    assert found.dtype == torch.float32 and (found - exact).abs().mean() < 0.03 * exact.abs().mean() + 1e-3
    assert (net.segment(ball[0]).array == mask.array).mean() > 0.9
