"""The one fine-tuning loop: a pretrained encoder, labelled scans, and a segmenter at the end."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ctssl.datasets import Case, Dataset, find_cases, problems, read_case, refuse
from ctssl.inference import segment
from ctssl.lint import check
from ctssl.loading import load, segmenter
from ctssl.metrics import dsc
from ctssl.sampling import augment, crop_at, random_start
from ctssl.volume import Volume, prepare, resample
from ctssl.zoo import Preprocess

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter


@dataclass(frozen=True)
class Settings:
    """How a segmenter is trained. `crop` in voxels of the model's spacing; `warmup` a share of `steps`.

    `encoder_lr` is the learning rate of a pretrained encoder; one from scratch, and every head, takes `lr`.
    """

    steps: int = 600
    batch: int = 4
    crop: int = 64
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    weight_decay: float = 0.01
    warmup: float = 0.05
    foreground: float = 0.6  # share of crops centred on a labelled voxel
    intensity: float = 0.1
    seed: int = 0
    save_minutes: float = 5.0


@dataclass(frozen=True)
class Report:
    """What came out: the folder of the segmenter, and the DSC of every held-out case for every label."""

    folder: Path
    held_out: dict[str, dict[str, float]]
    train: list[str]
    seconds: float

    @property
    def mean_dsc(self) -> float:
        """Mean over held-out cases of each case's mean over labels; NaN when none was held out."""
        return (
            float(np.mean([np.mean(list(case.values())) for case in self.held_out.values()]))
            if self.held_out
            else math.nan
        )


def finetune(data: str | os.PathLike | None = None, *, out: str | os.PathLike, model: Any = "swin-wild-mim",
             images: str | os.PathLike | None = None, labels: str | os.PathLike | None = None,
             roi: str | None = None, head: str = "light",
             hold_out: float | list[str] = 0.2, names: dict[int, str] | None = None, settings: Settings | None = None,
             from_scratch: bool = False, device: str = "auto", overwrite: bool = False,
             progress: bool = True) -> Report:  # fmt: skip
    """Train a segmenter on labelled scans, and score it on cases it has not seen, whole and on their own grid.

    Args:
        data: folder or CSV in a layout that `ctssl.datasets.find_cases` knows; or give `images` and `labels` apart.
        roi: the structure to learn, where RTSTRUCT or SEG files hold several.
        out: folder for the segmenter (`ctssl.load_segmenter(out)`). Started again, an interrupted training goes on.
        model: a name, folder or repository for `ctssl.load`, or an encoder.
        hold_out: share of the cases to hold out (drawn by `settings.seed`), or their names; 0 trains on all.
        names: of the labels, `{1: "tumour"}`.
        from_scratch: forget the pretrained weights, to see what they are worth.
        overwrite: replace a finished segmenter in `out`.

    Raises `ValueError` or `FileNotFoundError` for data that cannot be used, before any training.
    """
    settings, out = settings or Settings(), Path(out)
    if (out / "config.json").exists() and not overwrite:
        raise FileExistsError(f"{out} holds a finished model; choose another --out, or overwrite it on purpose")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another --out")
    dataset = find_cases(data, images=images, labels=labels, roi=roi)
    train, held = divide(dataset.cases, hold_out, settings.seed)
    encoder: Any = model if isinstance(model, nn.Module) else load(model)
    parent = encoder.spec.name if encoder.spec else ""
    if from_scratch:
        encoder, spec = fresh(encoder, settings.seed), encoder.spec
        encoder.spec = spec
    preprocess = encoder.spec.preprocess if encoder.spec else Preprocess()
    refuse(problems(Dataset([*train, *held], dataset.names), progress=progress), len(train) + len(held))
    scans, classes = prepare_cases(train, preprocess, progress=progress)
    torch.manual_seed(settings.seed)
    if names and sorted(names) != list(range(1, classes)):
        raise ValueError(f"names for labels {sorted(names)}, but the masks hold labels 1..{classes - 1}")
    if not names and dataset.names:
        classes = max(classes, max(dataset.names) + 1)
        names = {k: dataset.names.get(k, f"class {k}") for k in range(1, classes)}
    net = segmenter(encoder, head=head, classes=classes, labels=names)
    net.window, net.parent = settings.crop, "" if from_scratch else parent
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    began = time.monotonic()
    facts = {"train": [c.name for c in train], "model": parent, "from_scratch": from_scratch, "head": head}
    fit(net.to(where), scans, settings, unfinished=out / ".unfinished", facts=facts, progress=progress)
    net.eval()
    scores = score(net, held, progress=progress)
    report = Report(out, scores, facts["train"], time.monotonic() - began)
    text = {"held_out": scores, "mean_dsc": report.mean_dsc if held else None, **facts, "settings": asdict(settings)}
    net.cpu().save_pretrained(out, overwrite=True, extra={"report.json": json.dumps(text, indent=1) + "\n"})
    shutil.rmtree(out / ".unfinished", ignore_errors=True)
    return report


def divide(cases: list[Case], hold_out: float | list[str], seed: int) -> tuple[list[Case], list[Case]]:
    """Training and held-out cases."""
    if isinstance(hold_out, (int, float)):
        if not 0 <= hold_out < 1:
            raise ValueError(f"hold_out={hold_out}: a share from 0 to below 1, or a list of case names")
        count = 0 if hold_out == 0 else max(1, round(hold_out * len(cases)))
        chosen = set(np.random.default_rng(seed).choice([c.name for c in cases], count, replace=False).tolist())
    else:
        chosen = set(hold_out)
        unknown = chosen - {c.name for c in cases}
        if unknown:
            raise ValueError(
                f"cannot hold out {sorted(unknown)}: no such cases; they are called {cases[0].name!r} and so on"
            )
    train = [c for c in cases if c.name not in chosen]
    if not train:
        raise ValueError(f"nothing is left to train on: {len(cases)} cases, {len(chosen)} held out")
    return train, [c for c in cases if c.name in chosen]


def fresh(encoder: Any, seed: int) -> Any:
    """An encoder of the same shape with initial weights."""
    torch.manual_seed(seed)
    return type(encoder)(**encoder.config)


def prepare_cases(
    cases: list[Case], preprocess: Preprocess, *, progress: bool
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """(image 0..1 float16, labels uint8) of each case on the model's grid, and the number of classes."""
    done, top = [], 0
    for case in tqdm(cases, desc="preparing scans", disable=not progress):
        scan, mask = read_case(case)
        image = prepare(check(scan), preprocess)
        done.append((image.array.astype(np.float16), onto_grid(mask, image)))
        top = max(top, int(mask.array.max()))
    if top == 0:
        raise ValueError(f"all {len(cases)} masks are empty: nothing to learn from")
    return done, top + 1


def onto_grid(mask: Volume, grid: Volume) -> np.ndarray:
    """Labels on another grid, each voxel the label that fills most of it."""
    classes = int(mask.array.max()) + 1
    shares = np.stack(
        [resample(mask.array == k, mask.affine, grid.shape, grid.affine, fill=float(k == 0)) for k in range(classes)]
    )
    return shares.argmax(0).astype(np.uint8)


def draw(scans: list[tuple[np.ndarray, np.ndarray]], settings: Settings, step: int) -> tuple[Tensor, Tensor]:
    """Images `(B, 1, S, S, S)` and labels of a step: they depend on the settings and the step alone."""
    rng = np.random.default_rng([settings.seed, step])
    images, masks = [], []
    for _ in range(settings.batch):
        image, label = scans[rng.integers(len(scans))]
        start = random_start(image.shape, settings.crop, rng)
        if rng.random() < settings.foreground and label.any():
            labelled = np.flatnonzero(label)
            centre = np.unravel_index(labelled[rng.integers(len(labelled))], label.shape)
            start = tuple(
                s if n <= settings.crop else int(np.clip(c - rng.integers(settings.crop), 0, n - settings.crop))
                for c, n, s in zip(centre, image.shape, start, strict=True)
            )
        one, two = augment(crop_at(image, start, settings.crop), crop_at(label, start, settings.crop), rng,
                           intensity=settings.intensity)  # fmt: skip
        images.append(one)
        masks.append(two)
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(masks).astype(np.int64))[:, None]


def fit(net: Segmenter, scans: list[tuple[np.ndarray, np.ndarray]], settings: Settings, *, unfinished: Path,
        facts: dict[str, Any], progress: bool) -> None:  # fmt: skip
    """Train in place, from where a training with the same facts stopped."""
    from monai.losses.dice import DiceCELoss

    device = next(net.parameters()).device
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    encoder_lr = settings.lr if facts["from_scratch"] else settings.encoder_lr
    groups = [
        {"params": list(net.encoder.parameters()), "peak": encoder_lr},
        {"params": list(net.head.parameters()), "peak": settings.lr},
    ]
    opt = torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    identity = {**facts, "settings": asdict(settings)}
    first = resume(unfinished, net, opt, identity)
    saved, losses = time.monotonic(), []
    net.train()
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc="training", disable=not progress)
    for step in bar:
        for group in opt.param_groups:
            group["lr"] = group["peak"] * rate(step, settings)
        image, label = draw(scans, settings, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = net(image.to(device))
        loss = criterion(logits.float(), label.to(device))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"step {step}: the loss is not finite; lower the learning rate ({settings.lr})")
        bar.set_postfix({"loss": f"{np.mean(losses[-30:]):.3f}"}, refresh=False)
        if time.monotonic() - saved > 60 * settings.save_minutes:
            keep(unfinished, net, opt, identity, step + 1)
            saved = time.monotonic()


def rate(step: int, settings: Settings) -> float:
    """Linear warm-up, then cosine to zero, as a factor."""
    warm = max(1, round(settings.warmup * settings.steps))
    return (
        (step + 1) / warm
        if step < warm
        else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, settings.steps - warm)))
    )


def keep(folder: Path, net: nn.Module, opt: torch.optim.Optimizer, identity: dict, step: int) -> None:
    """Everything a training needs to go on: safetensors and JSON, replaced as one file each."""
    from safetensors.torch import save_file

    state = {f"net.{k}": v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    for number, moments in opt.state_dict()["state"].items():
        state |= {f"opt.{number}.{k}": v.detach().cpu().contiguous() for k, v in moments.items()}
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{step}.safetensors"
    save_file(state, folder / name)
    part = folder / "state.json.part"
    part.write_text(json.dumps({"step": step, "file": name, "training": identity}))
    os.replace(part, folder / "state.json")
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def resume(folder: Path, net: nn.Module, opt: torch.optim.Optimizer, identity: dict) -> int:
    """The step to go on from: 0 where there is nothing to resume."""
    from safetensors.torch import load_file

    if not (folder / "state.json").exists():
        return 0
    kept = json.loads((folder / "state.json").read_text())
    if kept["training"] != json.loads(json.dumps(identity)):
        raise ValueError(f"{folder} holds an unfinished training with other settings or cases; finish it with the same "
                         "command, or remove that folder")  # fmt: skip
    state = load_file(folder / kept["file"])
    net.load_state_dict({k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")})
    own = opt.state_dict()
    own["state"] = {}
    for key, value in state.items():
        if key.startswith("opt."):
            _, number, name = key.split(".")
            own["state"].setdefault(int(number), {})[name] = value
    opt.load_state_dict(own)
    return kept["step"]


def score(net: Segmenter, cases: list[Case], *, progress: bool) -> dict[str, dict[str, float]]:
    """DSC of each label of each case, on the case's own grid."""
    scores = {}
    for case in tqdm(cases, desc="held-out cases", disable=not progress or not cases):
        scan, mask = read_case(case)
        found = segment(net, scan)
        scores[case.name] = {name: dsc(found.array == k, mask.array == k) for k, name in net.labels.items()}
    return scores
