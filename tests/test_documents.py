"""The documents are true: files that they name exist, commands that they show parse, figures are the measured ones."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import yaml

import ctssl
from ctssl.cli.main import _parser
from ctssl.zoo import DEFAULT, GAINS, MODELS, best_first
from training.experiments import lung, trials
from training.release import readme

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
        named = getattr(parsed, "model", None) or []
        for model in [named] if isinstance(named, str) else named:
            assert model in MODELS or not model.startswith(("swin-", "vit-", "lung-", "sarcoma-"))


@each_document
def test_modules_that_a_document_runs_exist(document):
    for module in set(re.findall(r"python -m ((?:training|tests|ctssl)[\w.]*)", document.read_text())):
        assert importlib.util.find_spec(module), module


def test_the_models_of_the_readme_are_those_of_the_table():
    rows = [
        [cell.strip().strip("`") for cell in line.split("|")[1:-1]]
        for line in README.read_text().split("| model | parameters |")[1].split("\n\n")[0].splitlines()[2:]
    ]
    known = [row for row in rows if row[0] in MODELS]
    assert len(known) >= 5 and [row[0] for row in known] == best_first([row[0] for row in known])
    for name, parameters, *_, licence in known:
        assert parameters == f"{MODELS[name].parameters / 1e6:.1f} M"
        assert licence == MODELS[name].licence.replace("-", " ")
    assert all(row[0].endswith("from scratch") for row in rows[len(known) :])


def test_gains_of_the_table_and_the_readme_are_those_measured():
    models = trials.read(lung.EXPERIMENT.results)["models"]
    gains = readme.gains_of(models)
    assert {name: round(gain["difference"], 3) for name, gain in gains.items()} == GAINS
    for name, gain in gains.items():
        rows = models[f"{name}, 50 cases"]
        assert gain["p"] < 0.001 and len(rows) >= 2 and len(trials.of_cases(rows)) == 98
    assert readme.table(models, gains) in README.read_text()
    assert readme.sentences(models) in README.read_text()
    assert max(GAINS, key=lambda name: GAINS[name]) == DEFAULT


def test_the_version_is_the_same_everywhere():
    version = ctssl.__version__
    toml = pytest.importorskip("tomllib")  # Python 3.11
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == version
    assert project["license"] == citation["license"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version {version}" in README.read_text()
