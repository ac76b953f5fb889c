"""Each pretraining task: its contract, and its loss against something independent."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ctssl
from ctssl.zoo import Preprocess
from tests.support.tiny import SMALL
from training.data.draws import Draws
from training.data.views import Crops, Views, change, compose, crops_of
from training.pretext import TASKS
from training.pretext.batch import Batch
from training.pretext.contrastive import nt_xent
from training.pretext.distillation import Distillation
from training.pretext.mae import MaskedAutoencoder
from training.pretext.masking import block_mask, hide

HEADS = dict(hidden=32, bottleneck=16, out=64)
SMALL_ARGS = {"itd": HEADS, "itd_mpd": HEADS, "smit": HEADS, "mae": dict(width=24)}
VIEWS = {"together": 4}  # an image, its mask and two views
SIZE = 32


def batch_of(count=2, *, views=2, size=SIZE, seed=0, progress=0.5) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = tuple(torch.rand(count, 1, size, size, size, generator=generator) for _ in range(views))
    return Batch(images, torch.arange(count) + 10, torch.arange(count), progress)


def make(name, encoder):
    if name == "mae" and not hasattr(encoder, "encode_tokens"):
        with pytest.raises(ValueError, match="use the vit encoder"):
            TASKS[name](encoder)
        pytest.skip("mae hides tokens from the encoder altogether: ViT only")
    return TASKS[name](encoder, **SMALL_ARGS.get(name, {})).train()


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_reaches_every_parameter_it_claims_and_leaves_the_encoders_keys(encoder, name):
    keys = list(encoder.state_dict())
    task = make(name, encoder)
    result = task(batch_of(views=VIEWS.get(name, 2)))
    assert torch.isfinite(result["loss"]) and result["loss"].ndim == 0
    result["loss"].backward()
    assert list(task.encoder.state_dict()) == keys
    last = {"Swin": "norms.1", "ViT": "norm"}[type(encoder).__name__]
    unreached = [n for n, p in task.named_parameters() if p.requires_grad and p.grad is None]
    assert all(n.startswith("encoder.norms.") and not n.startswith(f"encoder.{last}") for n in unreached)
    assert task.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_loss_is_decided_by_the_batch_alone(encoder, name):
    task = make(name, encoder)
    torch.manual_seed(1)
    batch = batch_of(views=VIEWS.get(name, 2))
    one = task(batch)["loss"]
    torch.manual_seed(2)
    assert torch.equal(task(batch)["loss"], one)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(TASKS) - {"mae", "itd_mpd"}))  # the latter is most of `smit`
def test_a_task_learns_one_batch_by_heart(name):
    torch.manual_seed(0)
    task = TASKS[name](ctssl.ViT(**SMALL["vit"]), **SMALL_ARGS.get(name, {})).train()  # the cheaper encoder
    batch = batch_of(4)
    image = torch.zeros(4, 1, SIZE, SIZE, SIZE)
    for i in range(4):
        image[i, :, 4 * i : 4 * i + 12, 4:30] = 0.1 + 0.25 * i
    image[1::2] = 1 - image[1::2]
    views = (image, image * 0.9) * (VIEWS.get(name, 2) // 2)
    batch = Batch(views, batch.seeds, batch.patients, 0.5)
    opt = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(25):
        loss = task(batch)["loss"]
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


# --- masking and mim ---


def test_masks_hide_whole_blocks_and_the_asked_share():
    masked = block_mask(batch_of(3), (16, 16, 16), block=4, ratio=0.75)
    assert masked.dtype == torch.bool and masked.shape == (3, 16, 16, 16)
    assert (masked.flatten(1).float().mean(1) == 0.75).all()
    blocks = masked.view(3, 4, 4, 4, 4, 4, 4).float().mean((2, 4, 6))
    assert ((blocks == 0) | (blocks == 1)).all()
    assert not torch.equal(masked[0], masked[1])
    assert block_mask(batch_of(1), (5, 3, 4), block=4, ratio=0.5).shape == (1, 5, 3, 4)


def test_the_encoder_never_sees_what_is_hidden():
    tokens, token = torch.rand(1, 4, 4, 4, 6), torch.rand(6)
    masked = block_mask(batch_of(1), (4, 4, 4), block=2, ratio=0.5)
    hidden = hide(tokens, masked, token)
    assert (hidden[masked] == token).all() and torch.equal(hidden[~masked], tokens[~masked])


def test_mim_puts_each_predicted_voxel_where_it_belongs():
    head = TASKS["mim"](ctssl.Swin(**SMALL["swin"])).head
    s = head.stride
    image = torch.arange(8 * 12 * 16.0).view(1, 8, 12, 16)
    patches = image.unfold(1, s, s).unfold(2, s, s).unfold(3, s, s).flatten(-3)  # (1, 2, 3, 4, s^3)
    head.linear = torch.nn.Identity()
    assert torch.equal(head(patches.permute(0, 4, 1, 2, 3), (8, 12, 16)), image)


def test_mim_counts_masked_voxels_only(monkeypatch):
    task = TASKS["mim"](ctssl.Swin(**SMALL["swin"])).eval()
    chosen = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    chosen[:, :8] = True
    monkeypatch.setattr("training.pretext.masking.block_mask", lambda *args, **kwargs: chosen)
    torch.nn.init.zeros_(task.head.linear.weight)
    torch.nn.init.zeros_(task.head.linear.bias)
    image = torch.zeros(1, 1, 32, 32, 32)
    image[:, :, :16] = 0.25
    for visible in (0.9, 0.1):  # the visible half changes, the loss does not: prediction 0, masked half 0.25
        image[:, :, 16:] = visible
        assert task(Batch((image,), torch.tensor([1]), torch.tensor([0])))["loss"].item() == pytest.approx(
            0.25
        )


# --- contrast ---


def naive_nt_xent(embeddings, patients, temperature):
    """One anchor at a time, in float64, straight from the definition."""
    views, count, _ = embeddings.shape
    rows = [(embeddings[v, i].double(), int(patients[i]), i) for v in range(views) for i in range(count)]
    losses = []
    for a, (x, patient, number) in enumerate(rows):
        positive = [y for b, (y, _, s) in enumerate(rows) if b != a and s == number]
        negatives = [y for y, p, _ in rows if p != patient]
        scores = torch.stack([x @ y for y in positive + negatives]) / temperature
        losses.append(scores.logsumexp(0) - scores[0])
    return torch.stack(losses).mean()


def test_nt_xent_is_its_definition_and_leaves_pairs_of_one_patient_out():
    torch.manual_seed(0)
    rows = F.normalize(torch.randn(2, 6, 8), dim=-1)
    for patients in ([0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 1, 2]):
        owner = torch.tensor(patients)
        found, _ = nt_xent(rows, owner, temperature=0.2)
        assert found.item() == pytest.approx(naive_nt_xent(rows, owner, 0.2).item(), rel=1e-5)
    moved = rows.clone()
    moved[:, 1] = F.normalize(torch.randn(2, 8), dim=-1)  # of the same patient as 0
    owner = torch.tensor([0, 0, 1, 1, 1, 2])

    change = nt_xent(rows, owner, temperature=0.2)[0] - nt_xent(moved, owner, temperature=0.2)[0]
    expected = naive_nt_xent(rows, owner, 0.2) - naive_nt_xent(moved, owner, 0.2)
    assert change.item() == pytest.approx(expected.item(), abs=1e-5) and abs(expected) > 1e-3
    alone = torch.zeros(6, dtype=torch.long)  # all of one patient: nothing repels
    assert nt_xent(rows, alone, temperature=0.2)[0].item() == pytest.approx(0.0, abs=1e-6)


# --- distillation ---


@pytest.fixture
def distillation():
    torch.manual_seed(0)
    encoder = ctssl.Swin(**SMALL["swin"])
    return encoder, Distillation(encoder, patch=True, warm=0.1, **HEADS).train()


def test_tokens_are_standardised_by_what_the_teacher_saw_lately():
    torch.manual_seed(0)
    encoder = ctssl.Swin(**SMALL["swin"])
    task = Distillation(encoder, patch=True, standardise=True, **HEADS).train()
    x = torch.randn(5, encoder.channels[-1])
    assert torch.equal(task.even("patch", x), x)  # nothing seen yet
    batch = batch_of(progress=0.5)
    masks = [torch.rand(2, 8, 8, 8) < 0.5 for _ in range(2)]
    kept = []
    for _ in range(2):
        task(batch, [encoder(view)[-1].detach() for view in batch.views], masks)
        taught = torch.cat(
            [task.teacher(view)[-1].flatten(2).transpose(1, 2).flatten(0, 1) for view in batch.views]
        ).detach()
        kept.append(torch.stack([taught.mean(0), taught.square().mean(0)]))
        task.after_step(encoder, 0.5)
        if len(kept) == 1:
            torch.testing.assert_close(task.moments_patch, kept[0])
            even = task.even("patch", taught)
            torch.testing.assert_close(even.mean(0), torch.zeros(len(even[0])), atol=1e-4, rtol=0)
            torch.testing.assert_close(even.std(0, correction=0), torch.ones(len(even[0])), atol=1e-2, rtol=0)
            with torch.no_grad():
                task.teacher.patch_embed.proj.bias.add_(0.5)  # other tokens
    torch.testing.assert_close(task.moments_patch, 0.9 * kept[0] + 0.1 * kept[1], atol=1e-5, rtol=1e-4)
    plain = Distillation(encoder, patch=True, **HEADS)
    assert torch.equal(plain.even("patch", x), x) and not any(
        "moments" in name for name, _ in plain.named_buffers()
    )


def test_the_losses_are_cross_entropies_with_the_centred_teacher(distillation):
    """Recomputed token by token with numpy."""
    encoder, task = distillation
    torch.nn.init.normal_(task.centre_image, std=0.1)
    torch.nn.init.normal_(task.centre_patch, std=0.1)
    batch = batch_of(progress=0.15)
    maps = [encoder(view)[-1].detach() for view in batch.views[::-1]]  # something else than the teacher's
    masks = [torch.rand(2, 8, 8, 8) < 0.5 for _ in range(2)]
    result = task(batch, maps, masks)
    taught = [task.teacher(view)[-1] for view in batch.views]

    def scores(heads, kind, x):
        return heads[kind](x).detach().double().numpy()

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def distance(student, target):
        return -(target * np.log(softmax(student / 0.1))).sum(-1)

    centre = task.centre_image.double().numpy()
    image = []
    for a, b in ((0, 1), (1, 0)):
        target = softmax((scores(task.teacher_heads, "image", taught[a].mean((2, 3, 4))) - centre) / 0.07)
        image.append(distance(scores(task.heads, "image", maps[b].mean((2, 3, 4))), target).mean())
    assert result["image"].item() == pytest.approx(np.mean(image), rel=1e-4)
    centre, heat = task.centre_patch.double().numpy(), 0.04 + 0.03 * (0.15 - 0.1) / 0.1
    patch = []
    for a in range(2):
        for n in range(2):
            place = masks[a][n].flatten()
            target = softmax(
                (scores(task.teacher_heads, "patch", taught[a][n].flatten(1).t()[place]) - centre) / heat
            )
            patch.append(
                distance(scores(task.heads, "patch", maps[a][n].flatten(1).t()[place]), target).mean()
            )
    assert result["patch"].item() == pytest.approx(np.mean(patch), rel=1e-4)


def test_momentum_and_temperatures_follow_their_formulas_over_the_whole_run(distillation):
    """One schedule over all epochs: the published code begins it again in each."""
    _, task = distillation
    steps = 1000
    momenta = [task.momentum_at((i + 1) / steps) for i in range(steps)]
    assert momenta == pytest.approx(
        [1 - 0.004 * (1 + math.cos(math.pi * (i + 1) / steps)) / 2 for i in range(steps)]
    )
    assert momenta == sorted(momenta) and momenta[0] == pytest.approx(0.996, abs=1e-6) and momenta[-1] == 1.0
    heats = [task.temperature("image", i / steps) for i in range(steps)]
    assert (
        heats[0] == 0.04 and heats[50] == pytest.approx(0.055) and heats[100:] == [pytest.approx(0.07)] * 900
    )
    later = [task.temperature("patch", i / steps) for i in range(steps)]
    assert later[100:] == pytest.approx(heats[:900]) and later[:100] == [0.04] * 100


def test_the_teacher_is_a_moving_average_and_the_centre_too(distillation):
    encoder, task = distillation
    batch = batch_of(3, progress=0.2)
    maps = [encoder(view)[-1] for view in batch.views]
    masks = [torch.ones(3, 8, 8, 8, dtype=torch.bool)] * 2
    with torch.no_grad():
        said = torch.cat(
            [task.teacher_heads["image"](task.teacher(v)[-1].mean((2, 3, 4))) for v in batch.views]
        )
    for p in encoder.parameters():
        p.data += 1.0
    old = {k: v.clone() for k, v in task.teacher.state_dict().items()}
    for half in range(2):  # two pieces of one step: one update of the centre
        pieces = Batch(
            tuple(v[half * 2 : half * 2 + 2] for v in batch.views), batch.seeds, batch.patients, 0.2
        )
        task(pieces, [m[half * 2 : half * 2 + 2] for m in maps], [m[half * 2 : half * 2 + 2] for m in masks])
        assert not task.centre_image.any()
    task.after_step(encoder, 0.2)
    assert torch.allclose(task.centre_image, 0.1 * said.mean(0), atol=1e-6)
    m = task.momentum_at(0.2)
    for key, value in encoder.state_dict().items():
        torch.testing.assert_close(task.teacher.state_dict()[key], m * old[key] + (1 - m) * value)


def test_collapse_shows(distillation):
    encoder, task = distillation
    batch = batch_of()
    maps, masks = [encoder(v)[-1] for v in batch.views], [torch.ones(2, 8, 8, 8, dtype=torch.bool)] * 2
    alive = task(batch, maps, masks)
    torch.nn.init.zeros_(task.teacher_heads["image"].mlp[-1].weight)
    dead = task(batch, maps, masks)
    assert dead["image_spread"] < 1e-6 < alive["image_spread"]
    task.centre_image[0] = -100.0  # everything goes to one prototype
    assert task(batch, maps, masks)["image_mean_entropy"] < 1e-3


def test_the_prototypes_keep_still_at_first():
    task = TASKS["itd"](ctssl.Swin(**SMALL["swin"]), **HEADS)
    for progress, still in ((0.0, True), (0.5, False)):
        task.zero_grad(set_to_none=True)
        task(batch_of(progress=progress))["loss"].backward()
        assert (task.distillation.heads["image"].prototypes.grad is None) == still


def test_smit_adds_its_parts_with_the_published_weights():
    task = TASKS["smit"](ctssl.Swin(**SMALL["swin"]), **HEADS)
    result = task(batch_of())
    whole = result["voxels"] + 0.1 * result["image"] + 0.1 * result["patch"]
    assert torch.equal(result["loss"], whole)


# --- mae and Tang ---


def test_mae_hides_the_asked_share_and_counts_hidden_tokens_only(monkeypatch):
    encoder = ctssl.ViT(**SMALL["vit"])
    task = MaskedAutoencoder(encoder, width=24).eval()
    seen = []
    original = encoder.encode_tokens
    monkeypatch.setattr(
        encoder, "encode_tokens", lambda t, p, grid: seen.append((t, p)) or original(t, p, grid=grid)
    )
    batch = batch_of(1, views=1)
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    loss = task(batch)["loss"]
    kept, places = seen[0]
    assert kept.shape[1] == 16 and len(set(map(tuple, places[0].tolist()))) == 16  # a quarter of 4^3
    targets = task.voxels(batch.image)[0].view(4, 4, 4, -1)
    hidden = torch.ones(4, 4, 4, dtype=torch.bool)
    hidden[tuple(places[0].unbind(-1))] = False
    assert loss.item() == pytest.approx(targets[hidden].square().mean().item(), rel=1e-5)
    x, y, z = places[0, 0].tolist()
    patch = batch.image[0, 0, 8 * x : 8 * x + 8, 8 * y : 8 * y + 8, 8 * z : 8 * z + 8]
    expected = ((patch - patch.mean()) / (patch.std() + 1e-3)).flatten()
    torch.testing.assert_close(targets[x, y, z], expected, atol=1e-4, rtol=1e-4)


def test_rotation_turns_about_z_and_no_more_than_the_share_is_overwritten():
    task = TASKS["rotate_inpaint_contrast"](ctssl.Swin(**SMALL["swin"]))
    batch = batch_of(6, views=1)
    changed = (task.overwrite(batch, batch.image, salt=3) != batch.image).float().flatten(1).mean(1)
    assert (changed > 0.05).all() and (changed <= 0.3).all()
    result = task(batch)
    assert result["loss"].item() == pytest.approx(
        sum(result[k].item() for k in ("rotation", "voxels", "joint")), rel=1e-5
    )


# --- views ---


def test_one_view_is_a_mirrored_crop_and_two_views_overlap():
    scan = np.linspace(0, 1, 60 * 50 * 40, dtype=np.float32).reshape(60, 50, 40)

    def views_of(count: int, how: Views, seed: int) -> list[torch.Tensor]:
        crops = Crops(count, twins=count > 1)
        preprocess = Preprocess()
        cubes, spacing = crops_of(scan, crop=24, crops=crops, how=how, preprocess=preprocess, seed=seed)
        draws = Draws.of_samples([seed])
        views = compose(
            None, cubes[None], torch.tensor([spacing]), how=how, preprocess=preprocess, draws=draws
        )
        return [view[0, 0] for view in views]

    (one,) = views_of(1, Views(), 4)
    values = set(scan.flatten().tolist())
    assert one.shape == (24, 24, 24) and set(one.flatten().tolist()) <= values
    plain = Views(zoom=1.0, intensity=0, gamma=1.0, noise=0, blur=0)
    left, right = views_of(2, plain, 5)
    shared = set(left.flatten().tolist()) & set(right.flatten().tolist())
    assert 0.4 * 24**3 < len(shared) <= 24**3
    again = views_of(2, Views(), 5)
    assert all(torch.equal(a, b) for a, b in zip(again, views_of(2, Views(), 5), strict=True))
    assert all(a.shape == (24, 24, 24) and a.min() >= 0 and a.max() <= 1 for a in again)


def test_a_view_is_changed_within_its_limits_and_labels_are_only_mirrored():
    image = torch.rand(64, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    labels = (image > 0.5).float()
    nothing = Views(intensity=0, gamma=1.0, noise=0, blur=0)
    same, mirrored = change(image, labels, nothing, Draws.of_samples(list(range(64))))
    assert torch.equal((same > 0.5).float(), mirrored)
    assert sum(torch.equal(a, b) for a, b in zip(same, image, strict=True)) in range(
        1, 24
    )  # about one in eight
    for field, value in (("intensity", 0.2), ("gamma", 2.0), ("noise", 0.1), ("blur", 1.0), ("holes", 1)):
        how = dataclasses.replace(nothing, **{field: value})
        changed, kept = change(image, labels, how, Draws.of_samples(list(range(64))))
        assert torch.equal(kept.flatten(1).sum(1), labels.flatten(1).sum(1))
        assert changed.min() >= 0 and changed.max() <= 1
        assert not torch.equal(changed.flatten(1).mean(1), image.flatten(1).mean(1))
    thick, _ = change(
        image, labels, dataclasses.replace(nothing, thick=3.0), Draws.of_samples(list(range(64)))
    )
    assert thick.std() < 0.95 * image.std()


# --- together ---


@pytest.mark.parametrize(
    "other", sorted(name for name, kind in TASKS.items() if not hasattr(kind, "compose"))
)
def test_lesions_are_learned_together_with_every_task_that_has_no_views_of_its_own(other):
    torch.manual_seed(0)
    args = SMALL_ARGS.get(other, {})
    task = TASKS["together"](ctssl.ViT(**SMALL["vit"]), other=other, weight=0.5, **args).train()
    crops = torch.rand(2, task.crops.count, SIZE, SIZE, SIZE)
    assert task.crops.count == 1 + getattr(TASKS[other], "views", 1)
    how = dict(how=Views(), preprocess=Preprocess(1.5, (-1000.0, 400.0)), draws=Draws.of_samples([3, 4]))
    batch = Batch(
        compose(task, crops, torch.tensor([1.5, 1.5]), **how), torch.arange(2), torch.arange(2), 0.5
    )
    result = {key: value.item() for key, value in task(batch).items()}
    alone = dataclasses.replace(batch, views=batch.views[2:])
    assert result["other"] == pytest.approx(task.other(alone)["loss"].item(), rel=1e-5)
    assert result["loss"] == pytest.approx(result["lesions"] + 0.5 * result["other"], rel=1e-5)
    assert set(batch.views[1].unique().tolist()) <= {0.0, 1.0}
    assert hasattr(task, "embed") == hasattr(task.other, "embed")
    assert hasattr(task, "after_step") == hasattr(task.other, "after_step")
    if hasattr(task, "embed"):  # also of a copy, by its own weights
        copied = copy.deepcopy(task)
        torch.nn.init.normal_(next(copied.other.project.parameters()))
        assert torch.equal(copied.embed(batch), copied.other.embed(alone))
        assert not torch.equal(copied.embed(batch), task.embed(batch))


@pytest.mark.parametrize("other", ["lesions", "fusion", "together", "nothing"])
def test_lesions_are_not_learned_together_with_a_task_that_makes_its_own_views(other):
    with pytest.raises(ValueError, match="cannot add .* use mim, contrastive"):
        TASKS["together"](ctssl.ViT(**SMALL["vit"]), other=other)
