"""Trainings of segmenters on a fixed split, one after the other, each kept as a row of a JSON file; and the
table of them."""

import argparse
import ast
import fcntl
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

import ctssl
from ctssl.evaluation import statistics
from ctssl.evaluation.statistics import add_holm, mean_interval, with_interval
from ctssl.files.atomic import write_whole
from ctssl.files.text import markdown
from ctssl.finetuning.start import BASELINES
from ctssl.heads import WHOLE
from ctssl.hub.lookup import open_model

RESULTS_PAGE = Path(__file__).parent.parent.parent / "model_cards" / "RESULTS.md"
BLIND = "an ellipsoid in the middle (no image)"  # a mask that `training.experiments.middle` draws
SHARE = 0.95  # of the last validation DSC, for the cost of a fine-tuning


@dataclass(frozen=True)
class Experiment:
    """Trainings that are compared with each other.

    Attributes:
        name: what folders and tables are called.
        command: what trains them.
        data: returns the folder or the CSV for `ctssl finetune`.
        test: names of the cases to judge on; empty: those that the CSV calls test.
        results: where the rows are kept.
        design: models that are trained without arguments.
        settings: what differs from the defaults.
        share: of the steps, for a model whose step costs more or less than the others', so that all take about the
            same time.
        spacing_mm: working spacing in mm; None as `ctssl finetune` derives it.
        window_hu: window in HU; None as `ctssl finetune` derives it.
        names: of the labels.
        contoured: returns the names of the labels that a case was contoured for, and is judged on; None: all.
    """

    name: str
    command: str
    data: Callable[[], Path]
    test: list[str]
    results: Path
    design: list[str]
    settings: ctssl.Settings
    share: dict[str, float] = field(default_factory=dict)
    spacing_mm: float | None = None
    window_hu: tuple[float, float] | None = None
    names: dict[int, str] | None = None
    contoured: Callable[[str], set[str]] | None = None


def label_of(model: str, head: str, few_shot: int | None, steps: int | None = None, changed: str = "") -> str:
    """Return what a trial is called in results and tables; `steps` and `changed` settings: those unlike the experiment's."""
    return (
        model
        + ("" if head == "light" or model in WHOLE else f" + {head}")
        + (f", {few_shot} cases" if few_shot else "")
        + (f", {steps} steps" if steps else "")
        + (f" [{changed}]" if changed else "")
    )


def read(results: Path) -> dict:
    return json.loads(results.read_text()) if results.exists() else {"models": {}}


@contextmanager
def lock_results(folder: Path) -> Iterator[None]:
    """Lock the results in a folder while this process changes them; others on this machine wait."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"ctssl-{os.getuid()}-{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def keep(results: Path, command: str, label: str, row: dict) -> None:
    """Add a training to the results; the same seed replaces its older entry."""
    with lock_results(results.parent):
        kept = {"command": command, "models": read(results)["models"]}
        rows = [r for r in kept["models"].get(label, []) if r["seed"] != row["seed"]] + [row]
        kept["models"][label] = sorted(rows, key=lambda r: r["seed"])
        write_whole(results, json.dumps(kept, indent=1) + "\n")


def weights_of(model: str) -> str:
    """Return the sha256 of starting weights; "" for initial ones."""
    return "" if model in BASELINES else open_model(model).config["sha256"]


def done(results: Path, label: str, settings: ctssl.Settings, spacing_mm: float | None, weights: str) -> bool:
    """Return whether this training is in the results. Settings that came later count as their defaults; rows without
    the hash of their starting weights, as those of these weights.

    Raises `SystemExit` where the rows are of other weights of this name.
    """
    rows = read(results)["models"].get(label, [])
    if any(row.get("weights", weights) != weights for row in rows):
        raise SystemExit(
            f"{results.name} has rows of {label} with other weights of this name; remove them, or give the weights another name"
        )
    return any(
        row.get("spacing_mm") == spacing_mm
        and {**asdict(ctssl.Settings()), **row["settings"]} == asdict(settings)
        for row in rows
    )


def measure(
    experiment: Experiment,
    model: str,
    *,
    head: str,
    few_shot: int | None,
    settings: ctssl.Settings,
    out: Path,
) -> dict:
    """Train a model and return its scores. A training that was interrupted goes on, one that is finished is not repeated."""
    report = ctssl.finetune(
        experiment.data(),
        model=model,
        head="" if model in WHOLE else head,
        few_shot=few_shot,
        out=out,
        hold_out=experiment.test or None,
        spacing_mm=experiment.spacing_mm,
        window_hu=experiment.window_hu,
        names=experiment.names,
        settings=settings,
        overwrite=True,
        keep=True,
    )
    cases = {}
    for name, scores in report.held_out.items():
        there = experiment.contoured(name) if experiment.contoured else set(scores)
        cases[name] = round(float(np.mean([scores[label] for label in scores if label in there])), 4)
    curve = [
        [row["step"], *(round(row[key], 4) for key in ("loss", "dsc") if key in row)] for row in report.curve
    ]
    return {
        "seed": settings.seed,
        "mean_dsc": round(float(np.mean(list(cases.values()))), 4),
        "cases": cases,
        "curve": curve,
        "seconds": round(report.seconds),
        "spacing_mm": experiment.spacing_mm,
        "settings": asdict(settings),
        "weights": weights_of(model),
    }


def of_cases(rows: list[dict]) -> dict[str, float]:
    """Return the DSC of each test case, averaged over the seeds."""
    return {case: float(np.mean([row["cases"][case] for row in rows])) for case in rows[0]["cases"]}


def steps_to_share(row: dict) -> int | None:
    """Return the step of the first evaluation with 95% of the last one's validation DSC; None where none was made."""
    curve = [point for point in row.get("curve") or [] if len(point) == 3]  # with a DSC
    return next((step for step, _, dsc in curve if dsc >= SHARE * curve[-1][2]), None) if curve else None


def scratch_of(label: str, models: Collection[str]) -> str | None:
    """Return the same training from initial weights, if it is in the results."""
    model = re.match("[^ ,]+", label)[0]  # type: ignore[index]
    rest = re.sub(r" \[.*", "", label[len(model) :])
    twin = f"{model.split('-')[0]}-scratch{rest}"  # with its head, cases and steps
    return twin if twin in models and twin != label else None


def same_seeds(rows: list[dict], others: list[dict]) -> tuple[list[dict], list[dict]]:
    """Return the rows of the seeds that both have."""
    both = {row["seed"] for row in rows} & {row["seed"] for row in others}
    return [row for row in rows if row["seed"] in both], [row for row in others if row["seed"] in both]


def gained(mine: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """Return the DSC of each case over that of another model: mean `difference`, its interval over patients (`low`,
    `high`), `p`."""
    return statistics.gained(
        [{"patient": c, "dsc": mine[c], "other_dsc": theirs[c]} for c in sorted(mine)], "dsc"
    )


def table(results: Path) -> str:
    """Return the results as Markdown: DSC with its interval over patients, and each model against its encoder from
    scratch (seeds that both have) and, where there is one, against a mask that was drawn without a look at
    the image."""
    models = read(results)["models"]
    against = {}
    for label, rows in models.items():
        both = same_seeds(rows, models[scratch]) if (scratch := scratch_of(label, models)) else ([], [])
        if all(both):
            against[label] = gained(*map(of_cases, both))
    add_holm(against.values())
    columns = ["model", "seeds", "mean DSC", "median", "each seed", "steps to 95%", "against scratch", "p"]
    columns += ["against no image"]
    lines = []
    for label in in_order(models):
        rows = models[label]
        values = of_cases(rows)
        low, high = mean_interval(np.array(list(values.values())))
        costs = [steps for row in rows if (steps := steps_to_share(row)) is not None]
        gain = against.get(label)
        cells = [
            shown(label),
            str(len(rows)),
            f"{np.mean(list(values.values())):.3f} ({low:.3f}-{high:.3f})",
            f"{np.median(list(values.values())):.3f}",
            ", ".join(f"{row['mean_dsc']:.3f}" for row in rows),
            f"{np.mean(costs):.0f}" if costs else "",
            told(gain) if gain else "",
            told_p(gain["p_holm"]) if gain else "",
            told(gained(values, of_cases(models[BLIND]))) if BLIND in models and label != BLIND else "",
        ]
        lines.append(cells)
    used = [number for number in range(len(columns)) if any(cells[number] for cells in lines)]
    return markdown([columns[n] for n in used], [[cells[n] for n in used] for cells in lines])


def in_order(labels: Iterable[str]) -> list[str]:
    """Return the labels of trials, those of a model together and by the number of labelled cases.

    >>> in_order(["vit, 50 cases", "swin", "vit", "vit, 5 cases", "vit, no labels"])
    ['vit, no labels', 'vit, 5 cases', 'vit, 50 cases', 'vit', 'swin']
    """
    kept = list(labels)
    recipes = [re.sub(r", \d+ cases|, no labels", "", label) for label in kept]
    models = [re.split(r",| \[", recipe)[0] for recipe in recipes]

    def place(number: int) -> tuple[int, int, float]:
        few = re.search(r", (\d+) cases", kept[number])
        count = float(few[1]) if few else 0.0 if ", no labels" in kept[number] else float("inf")
        return models.index(models[number]), recipes.index(recipes[number]), count

    return [kept[number] for number in sorted(range(len(kept)), key=place)]


def shown(label: str) -> str:
    """Return a label as a table shows it.

    >>> shown("vit, 1 cases"), shown("vit, 11 cases")
    ('vit, 1 case', 'vit, 11 cases')
    """
    return re.sub(r"\b1 cases", "1 case", label)


def told_p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def told(gain: dict[str, float]) -> str:
    return with_interval(gain["difference"], gain["low"], gain["high"])


def steps_of(experiment: Experiment, model: str, steps: int) -> int:
    """Return the steps of a model, when the others take `steps`."""
    return round(steps * experiment.share.get(model, 1.0))


def folder_of(experiment: Experiment, runs: Path, label: str, seed: int) -> Path:
    """Return where a training leaves its segmenter."""
    name = re.sub(r"[^\w.=-]+", "-", label.replace(" ", "").replace(",", "-"))
    return runs / f"{experiment.name}-{name}-{seed}"


def train(
    experiment: Experiment,
    model: str,
    *,
    seed: int,
    runs: Path,
    head: str = "light",
    few_shot: int | None = None,
    steps: int | None = None,
    changes: tuple[str, ...] = (),
) -> None:
    """Train and score one segmenter, unless it is in the results."""
    own = steps in (None, experiment.settings.steps)
    label = label_of(model, head, few_shot, None if own else steps, " ".join(changes))
    out = folder_of(experiment, runs, label, seed)
    steps = steps_of(experiment, model, steps or experiment.settings.steps)
    changed = {key: ast.literal_eval(value) for key, value in (one.split("=") for one in changes)}
    settings = replace(experiment.settings, **{"steps": steps, "seed": seed, **changed})
    if not done(experiment.results, label, settings, experiment.spacing_mm, weights_of(model)):
        row = measure(experiment, model, head=head, few_shot=few_shot, settings=settings, out=out)
        keep(experiment.results, experiment.command, label, row)


def options(description: str | None, *, few_shot: int | None = None) -> argparse.ArgumentParser:
    """Return the command line that the experiments share. `few_shot`: default of the option."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", help="default: those of the table")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="other than the usual ones: rows of their own")
    parser.add_argument("--head", default="light")
    parser.add_argument(
        "--few-shot",
        type=int,
        default=few_shot,
        metavar="N",
        help="train on N patients only (default: %(default)s)",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="change settings: rows of their own"
    )
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the segmenters")
    parser.add_argument("--show", action="store_true", help="print what was measured, train nothing")
    parser.add_argument(
        "--write", action="store_true", help="write the table into model_cards/RESULTS.md, train nothing"
    )
    return parser


def run(experiment: Experiment, args: argparse.Namespace) -> None:
    """Train and show an experiment as its command line (`options`) asks for."""
    for seed in [] if args.show or args.write else args.seeds:
        for model in args.models or experiment.design:
            train(
                experiment,
                model,
                seed=seed,
                runs=args.out,
                head=args.head,
                few_shot=args.few_shot,
                steps=args.steps,
                changes=tuple(args.set),
            )
    if args.write:
        write_table(experiment.name, table(experiment.results))
    print(table(experiment.results))


def write_table(name: str, text: str) -> None:
    """Replace the table between `<!-- name -->` and `<!-- end -->` in model_cards/RESULTS.md."""
    before, _, rest = RESULTS_PAGE.read_text().partition(f"<!-- {name} -->\n")
    write_whole(RESULTS_PAGE, f"{before}<!-- {name} -->\n{text}{rest[rest.index('<!-- end -->') :]}")
