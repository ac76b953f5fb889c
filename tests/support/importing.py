"""Checkpoints of other people, made on the spot, and what they have to compute after an import."""

import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from safetensors.torch import save_file

import ctssl
from ctssl.convert.importing import import_checkpoint
from tests.support.foreign import randomise

SIZES = [64, 96]
SMIT = dict(width=12, depths=(2, 2, 1, 2), heads=(2, 2, 4, 4), window=4)


def monai_swin(**args) -> SwinTransformer:
    sizes = dict(
        embed_dim=12, window_size=(4, 4, 4), patch_size=(2, 2, 2), depths=(2, 2, 2, 1), num_heads=(1, 2, 2, 4)
    )
    return randomise(SwinTransformer(1, spatial_dims=3, **(sizes | args)))  # type: ignore[return-value]


def save_plainly(content: dict, path):
    """As safetensors, with the keys that a pickle of these containers would have: spares a process."""
    flat: dict[str, torch.Tensor] = {}

    def walk(value, way: str) -> None:
        if isinstance(value, torch.Tensor):
            flat[way] = value.detach().clone().contiguous()
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{way}/{key}" if way else key)

    walk(content, "")
    save_file(flat, path)
    return path


def imported(tmp_path, content, **options):
    """Save, import, load: the encoder and the record."""
    file = save_plainly(content, tmp_path / "source.safetensors")
    done = import_checkpoint(file, out=tmp_path / "imported", overwrite=True, **options)
    return ctssl.load(tmp_path / "imported"), done


def agree(encoder, features, size: int) -> None:
    """The maps are those of `features(x)`, on an image without symmetry."""
    x = torch.rand(1, 1, size, size, size)
    with torch.no_grad():
        ours, theirs = encoder(x), features(x)
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}
