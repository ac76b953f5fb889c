"""The documents are true: files that they name exist, commands that they show parse, figures are the measured ones."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

import ctssl
from ctssl.cli.main import _parser
from ctssl.zoo import MODELS
from training.experiments import lung, lung_nodules, sarcoma, trials

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCUMENTS = [
    README,
    *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "SECURITY", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "model_cards" / "README.md",
    ROOT / "model_cards" / "RESULTS.md",
    ROOT / "training" / "README.md",
]
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def code_of(document: Path) -> str:
    """The lines inside fences."""
    return "\n".join(re.findall(r"^```\w*\n(.*?)^```", document.read_text(), re.M | re.S))


def test_the_readme_is_one_page():
    assert len(README.read_text().split()) <= 1300


def test_links_of_the_readme_work_on_a_package_index_too():
    links = re.findall(r"(?<!!)\[[^]]*\]\(([^)]*)\)", README.read_text())
    assert links and all(link.startswith(("https://", "#")) for link in links)


@each_document
def test_files_that_a_document_names_exist(document):
    text = document.read_text()
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [
        link for link in links if not link.startswith("https://") and not (document.parent / link).exists()
    ]
    named = re.findall(r"`([\w.-]+(?:/[\w.-]*)*)`", text)
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"runs"}
    paths = [n for n in named if n.split("/")[0] in tops and "/" in n and "/NAME" not in n]
    paths += [n for n in named if re.fullmatch(r"[A-Z]+\.(md|cff)", n)]
    missing += [
        path for path in paths if not (ROOT / path).exists() and not (document.parent / path).exists()
    ]
    assert not missing


@each_document
def test_commands_that_a_document_shows_are_understood(document):
    for line in code_of(document).splitlines():
        line = line.split("  #")[0].strip()
        if not line.startswith("ctssl ") or "..." in line:
            continue
        args = shlex.split(re.sub(r"[\[\]]", "", line))[1:]
        parsed = _parser(args[0]).parse_args(args)
        if getattr(parsed, "model", None) in MODELS:
            assert parsed.model in ctssl.list_models()


@each_document
def test_modules_that_a_document_runs_exist(document):
    for module in set(re.findall(r"python -m ((?:training|tests|ctssl)[\w.]*)", document.read_text())):
        assert importlib.util.find_spec(module), module


def test_the_models_of_the_readme_have_the_measured_figures():
    measured = {
        experiment: json.loads(module.RESULTS.read_text())["models"]
        for experiment, module in (("sarcoma", sarcoma), ("nodules", lung_nodules))
    }

    def mean(experiment: str, label: str) -> str:
        return f"{np.mean(list(trials.of_cases(measured[experiment][label]).values())):.3f}"

    rows = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in README.read_text().split("| model | parameters |")[1].split("\n\n")[0].splitlines()[2:]
    ]
    labels = {
        "Swin from scratch": "swin-scratch",
        "ellipsoid in the middle, no image": trials.BLIND,
    }
    for name, parameters, _, of_sarcoma, of_nodules, licence in rows:
        if name in MODELS:
            assert parameters == f"{MODELS[name].parameters / 1e6:.1f} M"
            assert licence == MODELS[name].licence.replace("-", " ")
        if name in MODELS and MODELS[name].kind == "segmenter":
            best = max(row["mean_dsc"] for row in measured["sarcoma"][name.removeprefix("sarcoma-")])
            assert of_sarcoma == f"{best:.3f}" and not of_nodules
        else:
            label = labels.get(name, name)
            assert [of_sarcoma, of_nodules] == [mean("sarcoma", label), mean("nodules", label)], name


def test_the_gain_on_lung_tumours_is_the_measured_one():
    models = trials.read(lung.EXPERIMENT.results)["models"]
    one, two = (models[f"{name}, 50 cases"] for name in ("vit-wild-contrastive", "vit-scratch"))
    gain = trials.gained(trials.of_cases(one), trials.of_cases(two))
    means = [f"{np.mean(list(trials.of_cases(rows).values())):.3f}" for rows in (one, two)]
    text = " ".join(README.read_text().split())
    assert f"has a DSC of {means[0]}, the same ViT from scratch {means[1]}" in text
    assert f"a gain of {gain['difference']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})" in text
    assert gain["p"] < 0.001 and len(one) == len(two) == 2 and len(trials.of_cases(one)) == 98


def test_the_version_is_the_same_everywhere():
    version = ctssl.__version__
    toml = pytest.importorskip("tomllib")  # Python 3.11
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == version
    assert project["license"] == citation["license"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version {version}" in README.read_text()
