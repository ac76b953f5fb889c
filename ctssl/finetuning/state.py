"""Where a training is, on disk and back, bit by bit."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ctssl.files.atomic import write_whole
from ctssl.files.weights import write_weights

RECENT = 50  # losses that a point of the curve is the mean of
SMOOTH = 0.9  # weight of the past in the average of validation DSCs


@dataclass
class Progress:
    """Where a training is: steps done and to do, loss and (with validation cases) DSC so far, where weights are
    chosen, the best ones, and the seconds that it took up to the last state."""

    step: int
    steps: int | None
    curve: list[dict[str, float]]
    best: dict[str, Tensor]
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def smoothed(self) -> list[float]:
        """Return the moving average of the validation DSC after each evaluation."""
        averages: list[float] = []
        for row in self.curve:
            averages.append(row["dsc"] if not averages else SMOOTH * averages[-1] + (1 - SMOOTH) * row["dsc"])
        return averages

    def keep_if_best(self, net: nn.Module) -> None:
        """Keep the weights if the last evaluation is the best so far (see `since_best`)."""
        if self.since_best() == 0:
            self.best = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}

    def since_best(self) -> int:
        """Return the number of evaluations since the best smoothed DSC. Those of the first half of the training count as 0:
        the learning rate is high, and weights that look good are luck."""
        late = [2 * row["step"] > (self.steps or 0) for row in self.curve]
        scores = [score if there else 0.0 for score, there in zip(self.smoothed(), late, strict=True)]
        return scores[::-1].index(max(scores)) if scores else 0


def save_state(
    folder: Path, net: nn.Module, average: Any, opt: torch.optim.Optimizer, identity: dict, now: Progress
) -> None:
    """Write everything a training needs to go on: safetensors and JSON, replaced as one file each."""
    state = {f"net.{k}": v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
    state |= {f"best.{k}": v for k, v in now.best.items()}
    if average is not None:
        state |= {f"ema.{k}": v.detach().cpu().contiguous() for k, v in average.module.state_dict().items()}
    for number, moments in opt.state_dict()["state"].items():
        state |= {f"opt.{number}.{k}": v.detach().cpu().contiguous() for k, v in moments.items()}
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{now.step}.safetensors"
    write_weights(folder / name, state)
    place = {"step": now.step, "steps": now.steps, "curve": now.curve, "losses": now.losses[-RECENT:]}
    place["seconds"] = now.seconds
    write_whole(folder / "state.json", json.dumps({"place": place, "file": name, "training": identity}))
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_state(
    folder: Path, net: nn.Module, average: Any, opt: torch.optim.Optimizer, identity: dict
) -> Progress | None:
    """Restore a training from its folder; None where there is nothing to resume.

    Raises `ValueError` for a damaged state, and for that of another training.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / "state.json").exists():
        return None
    try:
        kept = json.loads((folder / "state.json").read_text())
        state = load_file(folder / kept["file"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} holds a training that cannot go on, its state is damaged ({error}); remove that folder to "
            "start again"
        ) from error
    identity = json.loads(json.dumps(identity))
    if kept["training"] != identity:
        other = sorted(
            k for k in {*identity, *kept["training"]} if kept["training"].get(k) != identity.get(k)
        )
        raise ValueError(
            f"{folder} holds an unfinished training that differs in {', '.join(other)}; finish it with the same command and "
            "the same data, or remove that folder"
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    try:
        net.load_state_dict(part("net."))
    except RuntimeError as error:  # labels that a dataset.json names came or went
        raise ValueError(
            f"{folder} holds an unfinished training of a network of another shape, such as of other labels; remove that folder "
            "to start again"
        ) from error
    if average is not None:
        average.module.load_state_dict(part("ema."))
    own = opt.state_dict()
    own["state"] = {}
    for key, value in part("opt.").items():
        number, name = key.split(".")
        own["state"].setdefault(int(number), {})[name] = value
    opt.load_state_dict(own)
    return Progress(**kept["place"], best=part("best."))
