"""The one fine-tuning loop: a pretrained encoder, labelled scans, and a segmenter at the end."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from tqdm import tqdm

from ctssl.datasets import Case, Dataset, find_cases, problems, read_case, refuse
from ctssl.encoders import ENCODERS
from ctssl.encoders.pixels import Pixels
from ctssl.heads import HEADS
from ctssl.inference import segment
from ctssl.lint import check
from ctssl.loading import load, segmenter
from ctssl.metrics import dsc
from ctssl.sampling import augment, crop_at, random_start
from ctssl.shifts.transform import shifted_copies
from ctssl.volume import Volume, prepare, resample
from ctssl.zoo import ModelSpec, Preprocess, info, list_models

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter


BASELINES: dict[str, Callable[[], Any]] = {
    "swin-scratch": lambda: published("swin"), "vit-scratch": lambda: published("vit"), "dynunet": Pixels,
}  # fmt: skip
"""What can be trained without any pretraining, by name."""
TIMED = 10  # steps from which the speed is known


@dataclass(frozen=True)
class Settings:
    """How a segmenter is trained. `crop` in voxels of the model's spacing; `warmup` a share of `steps`.

    `minutes`: train for about so long instead of `steps`; the number of steps follows from the speed of the first ten.
    `encoder_lr` is the learning rate of a pretrained encoder; one from scratch, and every head, takes `lr`. `layer_decay`
    multiplies it once more for every block further from the end (timm). `freeze`: leave the encoder as it is.
    `shift_augment`: so many copies of each training scan, as another protocol or kernel would have given it (`ctssl.shifts`).
    """

    steps: int = 600
    minutes: float | None = None
    batch: int = 4
    crop: int = 64
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    layer_decay: float = 1.0
    freeze: bool = False
    weight_decay: float = 0.01
    warmup: float = 0.05
    foreground: float = 0.6  # share of crops centred on a labelled voxel
    intensity: float = 0.1
    seed: int = 0
    save_minutes: float = 5.0
    shift_augment: int = 0


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
             hold_out: float | list[str] | None = None, few_shot: int | None = None, folds: int | None = None, fold: int = 0,
             spacing_mm: float | None = None, names: dict[int, str] | None = None, settings: Settings | None = None,
             from_scratch: bool = False, device: str = "auto", overwrite: bool = False,
             progress: bool = True) -> Report:  # fmt: skip
    """Train a segmenter on labelled scans, and score it on cases it has not seen, whole and on their own grid.

    Args:
        data: folder or CSV in a layout that `ctssl.datasets.find_cases` knows; or give `images` and `labels` apart.
        roi: the structure to learn, where RTSTRUCT or SEG files hold several.
        out: folder for the segmenter (`ctssl.load_segmenter(out)`). Started again, an interrupted training goes on.
        model: a name, folder or repository for `ctssl.load`, an encoder, or a baseline: `swin-scratch`, `vit-scratch` (the
            published encoders, untrained) or `dynunet` (nnU-Net's network), under the same recipe.
        hold_out: share of the patients to hold out (drawn by `settings.seed`), or names of cases; 0 trains on all. None: what the
            table's column `split` does not call train, or a fifth.
        few_shot: train on so many of the patients only, drawn by `settings.seed`; the held-out cases stay the same.
        folds, fold: hold out part `fold` of `folds` equal parts of the patients instead.
        spacing_mm: at which the segmenter works. None: a tenth of the median tumour's diameter, between the scans' own
            and the encoder's.
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
    if folds is not None and hold_out is not None:
        raise ValueError("give folds or hold_out, not both")
    train, held = divide(
        dataset.cases, part(dataset.cases, folds, fold, settings.seed) if folds else hold_out, settings.seed
    )
    if few_shot is not None:
        train = few(train, few_shot, settings.seed)
    encoder: Any
    if isinstance(model, str) and model in BASELINES:
        encoder, from_scratch, parent = BASELINES[model](), True, model
        head = model if model in HEADS else head
    else:
        encoder = model if isinstance(model, nn.Module) else load(model)
        parent = encoder.spec.name if encoder.spec else ""
    if from_scratch:
        encoder, spec = fresh(encoder, settings.seed), encoder.spec
        encoder.spec = spec
    refuse(problems(Dataset([*train, *held], dataset.names), progress=progress), len(train) + len(held))
    known = encoder.spec or ModelSpec("", "encoder", type(encoder).__name__.lower())
    chosen = spacing_mm or fitting_spacing(train, known.preprocess.spacing_mm)
    preprocess = replace(known.preprocess, spacing_mm=chosen)
    encoder.spec = replace(known, preprocess=preprocess)
    scans, classes = prepare_cases(
        train, preprocess, copies=settings.shift_augment, seed=settings.seed, progress=progress
    )
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


def divide(cases: list[Case], hold_out: float | list[str] | None, seed: int) -> tuple[list[Case], list[Case]]:
    """Training and held-out cases. The scans of one patient stay together."""
    if hold_out is None and any(case.split for case in cases):
        hold_out = [case.name for case in cases if case.split.lower() not in ("train", "training")]
    hold_out = 0.2 if hold_out is None else hold_out
    if isinstance(hold_out, (int, float)):
        if not 0 <= hold_out < 1:
            raise ValueError(f"hold_out={hold_out}: a share from 0 to below 1, or a list of case names")
        everyone = patients(cases)
        count = 0 if hold_out == 0 else max(1, round(hold_out * len(everyone)))
        drawn = set(np.random.default_rng(seed).choice(everyone, count, replace=False).tolist())
        chosen = {case.name for case in cases if case.patient in drawn}
    else:
        chosen = set(hold_out)
        unknown = chosen - {c.name for c in cases}
        if unknown:
            raise ValueError(
                f"cannot hold out {sorted(unknown)}: no such cases; they are called {cases[0].name!r} and so on"
            )
    train, held = [c for c in cases if c.name not in chosen], [c for c in cases if c.name in chosen]
    if not train:
        raise ValueError(f"nothing is left to train on: {len(cases)} cases, {len(chosen)} held out")
    both = sorted({c.patient for c in train} & {c.patient for c in held})
    if both:
        raise ValueError(
            f"patients {', '.join(both[:5])} have scans on both sides; hold out all scans of a patient, or none"
        )
    return train, held


def patients(cases: list[Case]) -> list[str]:
    """Each once, in the order of the cases."""
    return list(dict.fromkeys(case.patient for case in cases))


def part(cases: list[Case], folds: int, fold: int, seed: int) -> list[str]:
    """The cases of part `fold` when the patients are divided into `folds` equal parts."""
    everyone = patients(cases)
    if not 2 <= folds <= len(everyone) or not 0 <= fold < folds:
        raise ValueError(
            f"fold {fold} of {folds}: 2 to {len(everyone)} folds (there are so many patients), counted from 0"
        )
    mine = set(np.random.default_rng(seed).permutation(everyone)[fold::folds].tolist())
    return [case.name for case in cases if case.patient in mine]


def few(cases: list[Case], count: int, seed: int) -> list[Case]:
    """The cases of `count` patients."""
    everyone = patients(cases)
    if not 1 <= count <= len(everyone):
        raise ValueError(f"few_shot={count}: there are {len(everyone)} patients to train on")
    mine = set(np.random.default_rng(seed).permutation(everyone)[:count].tolist())
    return [case for case in cases if case.patient in mine]


def fitting_spacing(cases: list[Case], widest: float) -> float:
    """A tenth of the median tumour's diameter in mm, not finer than the scans are, nor coarser than `widest`."""
    diameters, finest = [], []
    for case in cases:
        _, mask = read_case(case)
        sizes = np.bincount(ndimage.label(mask.array)[0].ravel())[1:]  # type: ignore[index]
        if len(sizes):
            volume = sizes.max() * abs(np.linalg.det(mask.affine[:3, :3]))
            diameters.append(2 * (3 * volume / (4 * np.pi)) ** (1 / 3))
        finest.append(min(mask.spacing_mm))
    if not diameters:
        return widest
    return round(float(min(widest, max(np.median(diameters) / 10, np.median(finest)))), 2)


def published(kind: str) -> Any:
    """An encoder of the shape that is published, untrained."""
    name = next(name for name in list_models() if info(name).kind == "encoder" and info(name).encoder == kind)
    return ENCODERS[kind](**info(name).encoder_args)


def fresh(encoder: Any, seed: int) -> Any:
    """An encoder of the same shape with initial weights."""
    torch.manual_seed(seed)
    return type(encoder)(**encoder.config)


def prepare_cases(
    cases: list[Case], preprocess: Preprocess, *, progress: bool, copies: int = 0, seed: int = 0
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """(image 0..1 float16, labels uint8) of each case and its shifted copies on the model's grid; the number of classes."""
    done, top = [], 0
    for number, case in enumerate(tqdm(cases, desc="preparing scans", disable=not progress)):
        scan, mask = read_case(case)
        image = prepare(check(scan), preprocess)
        labels = onto_grid(mask, image)
        images = [image, *(prepare(c, preprocess) for c in shifted_copies(scan, copies, seed=seed + number))]
        done += [(one.array.astype(np.float16), labels) for one in images]
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
    opt = torch.optim.AdamW(groups(net, settings, from_scratch=facts["from_scratch"]))
    identity = {**facts, "settings": asdict(settings)}
    first, steps = resume(unfinished, net, opt, identity) or (0, None if settings.minutes else settings.steps)
    began = saved = time.monotonic()
    losses = []
    net.train()
    if settings.freeze:
        net.encoder.eval()
    bar = tqdm(total=steps, initial=first, desc="training", disable=not progress)
    step = first
    while steps is None or step < steps:
        for group in opt.param_groups:
            group["lr"] = group["peak"] * rate(step, steps or 10 * TIMED, settings.warmup)
        image, label = draw(scans, settings, step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            found = net.supervised(image.to(device))
        loss = torch.stack([weight * criterion(logits.float(), label.to(device)) for weight, logits in found]).sum()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ValueError(f"step {step}: the loss is not finite; lower the learning rate ({settings.lr})")
        step += 1
        if steps is None and step == TIMED:
            seconds = 60 * (settings.minutes or 0)
            steps = bar.total = max(step, round(seconds * TIMED / (time.monotonic() - began)))
        bar.set_postfix({"loss": f"{np.mean(losses[-30:]):.3f}"}, refresh=False)
        bar.update()
        if steps is not None and time.monotonic() - saved > 60 * settings.save_minutes:
            keep(unfinished, net, opt, identity, (step, steps))
            saved = time.monotonic()
    bar.close()


def groups(net: Segmenter, settings: Settings, *, from_scratch: bool) -> list[dict[str, Any]]:
    """Parameter groups with their peak learning rates. The encoder's blocks decay by `settings.layer_decay`, by timm."""
    decay = settings.weight_decay
    head = {"params": list(net.head.parameters()), "peak": settings.lr, "weight_decay": decay}
    net.encoder.requires_grad_(not settings.freeze)
    if settings.freeze:
        return [head]
    peak = settings.lr if from_scratch else settings.encoder_lr
    if settings.layer_decay == 1.0:
        return [{"params": list(net.encoder.parameters()), "peak": peak, "weight_decay": decay}, head]
    from timm.optim._param_groups import param_groups_layer_decay

    layers = param_groups_layer_decay(
        net.encoder, decay, weight_decay_exclude_1d=False, layer_decay=settings.layer_decay
    )
    return [{**layer, "peak": peak * layer["lr_scale"]} for layer in layers] + [head]


def rate(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up, then cosine to zero, as a factor."""
    warm = max(1, round(warmup * steps))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def keep(folder: Path, net: nn.Module, opt: torch.optim.Optimizer, identity: dict, place: tuple[int, int]) -> None:
    """Everything a training needs to go on: safetensors and JSON, replaced as one file each."""
    from safetensors.torch import save_file

    state = {f"net.{k}": v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    for number, moments in opt.state_dict()["state"].items():
        state |= {f"opt.{number}.{k}": v.detach().cpu().contiguous() for k, v in moments.items()}
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{place[0]}.safetensors"
    save_file(state, folder / name)
    part = folder / "state.json.part"
    part.write_text(json.dumps({"place": place, "file": name, "training": identity}))
    os.replace(part, folder / "state.json")
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def resume(folder: Path, net: nn.Module, opt: torch.optim.Optimizer, identity: dict) -> tuple[int, int] | None:
    """The step to go on from, and how many there are; None where there is nothing to resume."""
    from safetensors.torch import load_file

    if not (folder / "state.json").exists():
        return None
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
    return kept["place"][0], kept["place"][1]


def score(net: Segmenter, cases: list[Case], *, progress: bool) -> dict[str, dict[str, float]]:
    """DSC of each label of each case, on the case's own grid."""
    scores = {}
    for case in tqdm(cases, desc="held-out cases", disable=not progress or not cases):
        scan, mask = read_case(case)
        found = segment(net, scan)
        scores[case.name] = {name: dsc(found.array == k, mask.array == k) for k, name in net.labels.items()}
    return scores
