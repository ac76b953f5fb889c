"""Turn a segmenter of an experiment into a published model: `python -m training.release.segmenter sarcoma
swin-wild-mim --seed 0`.

Takes the folder that the experiment left in `runs/`, writes `model_cards/<task>-<model>/` (weights in fp16,
config, card, scores of every test case, pictures) and prints the entry for `ctssl/zoo.py` and the line for
`pyproject.toml` that puts it into the wheel. Models trained on data of unclear licence get neither: they are
loaded by their folder. `--card` writes only the card again, from the existing files.
"""

import argparse
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

import ctssl
from ctssl.datasets.seen import SEEN
from ctssl.files.text import markdown
from ctssl.files.weights import read_metadata
from ctssl.hub.card import Card
from ctssl.hub.client import WEIGHTS
from ctssl.hub.folder import read_config
from ctssl.zoo import info
from training.experiments import chests, trials
from training.release.card import CARDS, LICENCES, NON_COMMERCIAL, RESULTS

TASKS = {
    "sarcoma": dict(
        title="soft-tissue sarcoma of the limbs",
        dataset="soft-tissue-sarcoma",
        licence="CC BY 3.0",
        source="Soft-tissue-Sarcoma (TCIA), GTV drawn by physicians",
        command="python -m training.experiments.sarcoma",
        limits="The scans it was trained and tested on are cut around their tumours (8 to 50 mm of margin at each side), so that "
        "an ellipsoid in the middle, drawn without looking at them, is nearly as good (the README has "
        "the numbers); GE "
        "scanners, no contrast, 3.27 mm slices. Cut your scan likewise: on whole bodies, and in other "
        "body parts, it will mark "
        "what is no tumour.",
    ),
    "lung-nodule": dict(
        title="lung nodules",
        dataset="lung-nodules-of-lidc-origin",
        licence="unclear",
        source="cubes of 51 mm around nodules, LIDC origin inferred; the source has no licence file",
        command="python -m training.experiments.lung_nodules",
        limits="The scans it was trained and tested on are cubes of 51 mm with a nodule in their middle; it has not seen whole "
        "lungs and will mark vessels.",
    ),
    "lung-tumour": dict(
        title="lung tumours",
        dataset="nsclc-radiogenomics",
        judged_on="nsclc-radiomics",
        licence="CC BY 4.0",
        source="NSCLC-Radiogenomics (TCIA, CC BY 3.0), cubes of 92 mm around the tumours, semi-automatic masks; and twelve "
        "public chest CTs without a known tumour (COVID-CT-MD, ACRIN-FLT-Breast, CPTAC-PDA, RIDER Pilot and others, CC BY "
        "4.0, CC BY 3.0, Apache-2.0), whose masks are empty",
        command="python -m training.experiments.lung_tumour",
        limits="It was tested on boxes of 64 mm that each hold a tumour of NSCLC-Radiomics. On whole chests it marks other tissue "
        "too: {chests}",
        test="190 test cases of NSCLC-Radiomics, another collection with masks drawn for radiotherapy, that neither pretraining "
        "nor fine-tuning saw, in boxes of 64 mm off the centre of their tumours",
        portraits=False,  # the test scans are for non-commercial use
    ),
}
TASKS["lung-tumour-chest"] = {
    **TASKS["lung-tumour"],
    "title": "lung tumours in whole chests",
    "source": "NSCLC-Radiogenomics (TCIA, CC BY 3.0), cubes of 92 mm around the tumours, semi-automatic masks; and, for half of "
    "the crops, eighteen public CTs of chests, abdomens and a head without a known lung tumour (COVID-CT-MD, ACRIN-FLT-Breast, "
    "CPTAC-PDA, RIDER Pilot, Colorectal-Liver-Metastases, TCGA and others; CC BY 4.0, CC BY 3.0, Apache-2.0, BSD-3-Clause), "
    "whose masks are empty",
    "command": "python -m training.experiments.lung_tumour --chest",
}
"""Purpose and training data of the segmenters of each experiment. `test` and `portraits`: where they are not the usual."""
PORTRAITS = {"best.png": "The best test case", "median.png": "The median", "worst.png": "The worst"}


def task_of(name: str) -> str:
    """Return the task of a segmenter by its name, "" for any other model.

    >>> task_of("lung-tumour-chest-vit-wild-lesions")
    'lung-tumour-chest'
    """
    return max((task for task in TASKS if name.startswith(f"{task}-")), key=len, default="")


def export(task: str, model: str, source: Path, cards: Path = CARDS) -> Path:
    """Write the model folder of a finished segmenter."""
    net = ctssl.load_segmenter(source)
    net = net.half().float()  # rounded to fp16
    folder = cards / f"{task}-{model}"
    texts = {name: (source / name).read_text() for name in ("report.json", "cases.csv", SEEN)}
    parent = info(model).licence if model in ctssl.list_models() else ""
    facts = {"licence": strictest(TASKS[task]["licence"], parent), "data": TASKS[task]["source"]}
    shown = [*portraits(task, facts["licence"]), "curves.png"]
    pictures = {name: (source / name).read_bytes() for name in shown if (source / name).exists()}
    net.save_pretrained(
        folder,
        half=True,
        overwrite=True,
        extra={**texts, **pictures},
        config=facts,
        metadata=read_metadata(source / WEIGHTS) | {"licence": facts["licence"]},
    )
    write_card(folder, task)
    return folder


def portraits(task: str, licence: str) -> dict[str, str]:
    """Return the pictures of test scans that may be shown: none of scans of unclear or non-commercial licence."""
    return PORTRAITS if is_open_licence(licence) and TASKS[task].get("portraits", True) else {}


def is_open_licence(licence: str) -> bool:
    """Return whether a wheel may contain weights of this licence."""
    return licence.replace("-", " ") in LICENCES


def strictest(data: str, parent: str) -> str:
    """Return the stricter of the data's licence and that of the starting weights, as the table writes them."""
    if data not in LICENCES:
        return data
    order = [name.replace(" ", "-") for name in LICENCES | NON_COMMERCIAL]
    return max(data.replace(" ", "-"), parent or order[0], key=order.index)


def write_card(folder: Path, task: str) -> None:
    config, report = read_config(folder), json.loads((folder / "report.json").read_text())
    (folder / "README.md").write_text(card(config, report, (folder / "cases.csv").read_text(), task))


def card(config: dict, report: dict, cases: str, task: str) -> str:
    """Return `README.md` of a published segmenter, from its own files."""
    facts, rows = TASKS[task], list(csv.DictReader(io.StringIO(cases)))
    scores = {key: np.array([float(row[key]) for row in rows]) for key in ("dsc", "hd95_mm", "nsd")}
    known = scores["hd95_mm"][np.isfinite(scores["hd95_mm"])]
    distance = f"{np.median(known):.1f}" if len(known) else "-"
    trained = len(report["train"]) - len(report["validated"])
    pre, (low, high) = config["preprocess"], config["preprocess"]["window_hu"]
    shown = portraits(task, config["licence"])
    pictures = "".join(f"![{title}]({name})\n" for name, title in shown.items())
    usual = (
        f"{len(rows)} test cases that neither pretraining nor fine-tuning saw, whole scans on their own grid"
    )
    only = trials.read(RESULTS / f"{task.replace('-', '_')}.json")["models"].values()
    flattered = (
        "Of the trainings of that\nexperiment it is the one with the best of these scores, which flatters it a little."
        if sum(map(len, only)) != 1
        else "It is the only training of that experiment."
    )
    where = "a CPU" if report.get("device", "cpu") == "cpu" else report["device"]
    start = "initial weights" if report["from_scratch"] else f"`{report['model']}`"
    columns = ("mean DSC", "median DSC", "median HD95 (mm)", "mean NSD")
    dsc, nsd = scores["dsc"], scores["nsd"]
    limits = facts["limits"]
    if "{chests}" in limits:
        limits = limits.format(chests=chests.sentence(config["name"]))
    table = markdown(columns, [[f"{dsc.mean():.3f}", f"{np.median(dsc):.3f}", distance, f"{nsd.mean():.3f}"]])
    return Card(
        title=config["name"],
        front=front_matter(config, report, facts, float(dsc.mean()), len(rows)),
        limits=f"""{limits} It is a model for research, not a medical device, and must not be used for diagnosis.""",
        about=f"""It segments {facts["title"]} in CT: {config["parameters"] / 1e6:.1f} M parameters, from {start}, head `{config["head"]}`, at
{pre["spacing_mm"]:g} mm, {low:g} to {high:g} HU.""",
        code=f'mask = ctssl.load_segmenter("{loaded_as(config)}").segment("scan.nii.gz")',
        sections=[
            (
                "Data and training",
                f"""{facts["source"]} ({facts["licence"]}): {trained} cases to train on, {len(report["validated"])} that chose the weights among
{len(report["curve"])} evaluations and the threshold ({config["threshold"]:g}: the probability from which on a voxel counts),
{report["settings"]["steps"]} steps, {report["seconds"] / 60:.0f} minutes on {where}.
Licence of the weights: {config["licence"]}.""",
            ),
            (
                "What it is worth",
                f"""{facts.get("test", usual)}, by `{facts["command"]}`; all
rows are in `cases.csv`. NSD at 2 mm; cases without a distance (nothing found): {len(rows) - len(known)}. {flattered}

{table}
{pictures}![Training](curves.png)""",
            ),
        ],
    ).render()


def loaded_as(config: dict) -> str:
    """Return the model's name if the wheel contains it, otherwise its folder in a checkout."""
    return config["name"] if is_open_licence(config["licence"]) else f"model_cards/{config['name']}"


def front_matter(config: dict, report: dict, facts: dict, mean: float, cases: int) -> dict[str, Any]:
    """Return what the Hub reads."""
    from huggingface_hub import EvalResult

    result = EvalResult(
        "image-segmentation",
        facts.get("judged_on", facts["dataset"]),
        f"{facts.get('judged_on', facts['dataset'])}, {cases} held-out cases",
        "dice",
        round(mean, 4),
        metric_name="mean DSC",
    )
    known = is_open_licence(config["licence"])
    return {
        "license": config["licence"].lower() if known else "other",
        "pipeline_tag": "image-segmentation",
        "tags": ["ct", "medical-imaging", "3d", "segmentation", config["encoder"]],
        "datasets": [facts["dataset"]],
        "eval_results": [result],
        "model_name": config["name"],
        "license_name": None if known else "unclear",
    }


def entry(folder: Path) -> str:
    """Return the line for `ctssl/zoo.py`."""
    c = read_config(folder)
    spacing, window, (label,) = (
        c["preprocess"]["spacing_mm"],
        c["preprocess"]["window_hu"],
        c["labels"].values(),
    )
    return (
        f'        _segmenter("{c["name"]}", "{c["encoder"]}", "{c["corpus"]}", "{c["pretext"]}", '
        f"{c['parameters']},\n"
        f'                   "{c["sha256"]}",\n'
        f'                   preprocess=Preprocess({spacing}, {tuple(window)}), licence="{c["licence"]}", '
        f'data="{c["data"]}", label="{label}"),'
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=sorted(TASKS), help="the experiment")
    parser.add_argument("model", help="the encoder that it started from")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder of the trainings (default: %(default)s)"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder of the training, if it is not RUNS/TASK-MODEL-SEED"
    )
    parser.add_argument("--card", action="store_true", help="write only the card")
    args = parser.parse_args()
    if args.card:
        write_card(CARDS / f"{args.task}-{args.model}", args.task)
        return
    folder = export(args.task, args.model, args.folder or args.runs / f"{args.task}-{args.model}-{args.seed}")
    print(folder)
    if is_open_licence(read_config(folder)["licence"]):
        print(
            f"The entry for ctssl/zoo.py:\n{entry(folder)}\nThe line for pyproject.toml:\n"
            f'"model_cards/{folder.name}" = "ctssl/_models/{folder.name}"'
        )


if __name__ == "__main__":
    main()
