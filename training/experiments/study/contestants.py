"""Who takes part in the study: every start of a fine-tuning, by name; see `training.experiments.robustness`."""

from dataclasses import dataclass, field, replace
from typing import Any

import ctssl

PRETEXTS = ("smit", "lesions", "mim", "contrastive")
STARTS = ("wild", "self", "wild-self")
SETTINGS = ctssl.Settings(steps=1000, crop=32, batch=8, ema=0.99, evaluations=20, patience=20)


@dataclass(frozen=True)
class Contestant:
    """A start of a fine-tuning, and what differs from `SETTINGS`."""

    model: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> ctssl.Settings:
        return replace(SETTINGS, **self.changes)


def contestants() -> dict[str, Contestant]:
    """Return every start by name: the paper's first, then the other pretexts, then augmentation, length and nnU-Net."""
    both = ("vit", "swin")
    found = {name: Contestant(name) for name in (f"{encoder}-scratch" for encoder in both)}
    for pretext in PRETEXTS:
        for name in (f"{encoder}-{start}-{pretext}" for start in STARTS for encoder in both):
            found[name] = Contestant(name)
    for name in (
        f"{encoder}-{start}" for start in ("scratch", "wild-smit", "wild-lesions") for encoder in both
    ):
        found[f"{name} + shifts"] = Contestant(name, {"shift_augment": 2})
    for name in (f"{encoder}-{start}" for start in ("scratch", "wild-lesions") for encoder in both):
        found[f"{name}, 3000 steps"] = Contestant(name, {"steps": 3000})
    for name in ("vit-scratch", "vit-wild-lesions"):
        found[f"{name} + shifts, 3000 steps"] = Contestant(name, {"shift_augment": 2, "steps": 3000})
    found["dynunet"] = Contestant("dynunet", {"steps": 3000, "crop": 64, "batch": 2})
    found["dynunet-8, 3000 steps"] = Contestant("dynunet-8", {"steps": 3000})
    return found


def twin_of(model: str) -> str:
    """Return the model of the other corpus; "" where there is none.

    >>> twin_of("vit-wild-smit"), twin_of("vit-self-mim"), twin_of("vit-scratch"), twin_of("vit-wild-self-smit")
    ('vit-self-smit', 'vit-wild-mim', '', '')
    """
    parts = model.split("-")
    if len(parts) != 3:
        return ""
    return "-".join([parts[0], "self" if parts[1] == "wild" else "wild", parts[2]])


CONTESTANTS = contestants()
