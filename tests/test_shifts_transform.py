"""Shifts in a training: as a MONAI transform, and as copies of labelled scans."""

import json

import numpy as np
import pytest
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose

from ctssl.cli.main import main
from ctssl.datasets.layouts import find_cases
from ctssl.finetuning.prepare import prepare_cases
from ctssl.shifts import shift
from ctssl.shifts.copies import shifted_copies
from ctssl.shifts.transform import ShiftTransform
from ctssl.zoo import Preprocess


def test_as_a_monai_transform(chest):
    image = MetaTensor(torch.from_numpy(chest.array)[None], affine=torch.from_numpy(chest.affine))
    found = Compose([ShiftTransform("kernel_sharp", severity=3)])(image)
    assert (
        isinstance(found, MetaTensor)
        and found.shape == image.shape
        and torch.equal(found.affine, image.affine)
    )
    np.testing.assert_array_equal(found[0].numpy(), shift(chest, "kernel_sharp").array)
    both = ShiftTransform(("dose", "kernel_sharp"), keys=("image",), seed=5)
    label = torch.zeros(1)
    one, again = (
        both({"image": image, "label": label}),
        both.set_random_state(5)({"image": image, "label": label}),
    )
    assert (
        torch.equal(one["image"], again["image"])
        and one["label"] is label
        and not torch.equal(one["image"], image)
    )
    assert ShiftTransform("dose", prob=0.0)(image) is image
    with pytest.raises(ValueError, match="has no affine"):
        both({"image": torch.zeros(1, 4, 4, 4)})
    with pytest.raises(ValueError, match="unknown shift"):
        ShiftTransform("dsoe")
    with pytest.raises(ValueError, match="unknown severity 0"):
        ShiftTransform("dose", severity=0)


def test_monai_seeds_the_transform_of_every_worker(chest):
    """Through `Compose`, as its `DataLoader` does it for each worker and epoch."""
    image = MetaTensor(torch.from_numpy(chest.array)[None], affine=torch.from_numpy(chest.affine))
    chain = Compose([ShiftTransform(("kernel_sharp", "kernel_smooth", "thickness"))])
    found = []
    for seed in (1, 1, 2, 3, 4):
        chain.set_random_state(seed)
        found.append(chain(image))
    assert torch.equal(found[0], found[1]) and any(not torch.equal(found[0], other) for other in found[2:])
    drawn = list(DataLoader(Dataset([image] * 4, chain), batch_size=1, num_workers=2))
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


@pytest.mark.slow
def test_shifted_copies_for_a_training(chest, labelled, tmp_path):
    one, two = (shifted_copies(chest, 2, seed=4) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.array, b.array) and not np.array_equal(a.array, chest.array)
    cases = find_cases(labelled).cases[:2]
    scans = prepare_cases(cases, Preprocess(), copies=2, seed=4, progress=False)
    assert len(scans) == 6 and scans[0].labels.max() == 1
    for first in (0, 3):
        one, *others = scans[first : first + 3]
        assert all(other.image.shape == one.image.shape for other in others)
        assert not any(np.array_equal(other.image, one.image) for other in others)
        assert all(other.labels is one.labels for other in others)
    args = ["--steps", "1", "--batch", "1", "--crop", "16", "--hold-out", "case2", "--shift-augment", "1"]
    assert main(["finetune", str(labelled), "--out", str(tmp_path / "m"), *args]) == 0
    assert json.loads((tmp_path / "m" / "report.json").read_text())["settings"]["shift_augment"] == 1
