"""The log of a run: one JSON object per step, and a picture of the curves."""

import json
from collections import deque
from pathlib import Path

import numpy as np

from ctssl.files.atomic import write_whole

WIDEST = 5  # curves per row of the picture


class Log:
    """Append entries to `path`. Steps from `first` on, which a resumed run repeats, are cut off first."""

    def __init__(self, path: Path, first: int, *, enabled: bool = True) -> None:
        self.losses: deque[float] = deque(maxlen=50)
        self.file = None
        if enabled:
            kept = [entry for entry in read(path) if entry["step"] < first] if path.exists() else []
            write_whole(path, "".join(json.dumps(entry) + "\n" for entry in kept))
            self.file = open(path, "a", buffering=1)  # noqa: SIM115

    def add(self, entry: dict[str, float]) -> None:
        self.losses.append(entry["loss"])
        if self.file:
            self.file.write(json.dumps({key: round(value, 7) for key, value in entry.items()}) + "\n")

    def recent(self) -> float:
        return float(np.mean(self.losses))

    def close(self) -> None:
        if self.file:
            self.file.close()


def read(path: Path) -> list[dict[str, float]]:
    """Return every complete entry of a log."""
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # the run was killed while writing
            break
    return entries


def thin(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the curve averaged over (at most) 150 equal stretches of steps."""
    parts = np.array_split(np.arange(len(entries)), min(150, len(entries)))
    return [
        {key: round(float(np.mean([entries[i][key] for i in part])), 6) for key in entries[0]}
        for part in parts
    ]


def picture(path: Path, out: Path, *, title: str) -> None:
    """Draw the curves of a log as PNG, the loss first."""
    draw(thin(read(path)), out, title=title)


def draw(curve: list[dict[str, float]], out: Path, *, title: str) -> None:
    """Draw curves as PNG, the loss first."""
    from matplotlib.figure import Figure

    names = [name for name in curve[0] if name not in ("step", "lr", "norm", "joint")]
    columns = min(len(names), WIDEST)
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.6 * lines), layout="constrained")
    steps = [row["step"] for row in curve]
    places = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in places[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(places, names, strict=False):
        axes.plot(steps, [row[name] for row in curve], lw=1.2)
        axes.set(title=name.replace("_", " "), xlabel="step")
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    figure.savefig(out, dpi=100)
