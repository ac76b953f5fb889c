"""Pages of the site that are made when it is built: Python API, commands, tutorials, and documents outside `docs/`.

They come from docstrings, from the parser of the `ctssl` command and from files of the repository, so none is committed.
A page is a path in the site with its content; nothing here needs MkDocs.
"""

import argparse
import base64
import json
import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Any

import ctssl
from ctssl.cli.main import _parser
from ctssl.zoo import MODELS, best_first

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
API = {
    "Models": ("list_models", "info", "pair", "load", "load_segmenter", "download"),
    "Scans": ("read", "Volume", "Channels"),
    "Encoders": ("ViT", "Swin"),
    "Segmenters": ("segmenter", "Segmenter", "Ensemble"),
    "Fine-tuning": ("finetune", "Settings", "Report", "measure_curve"),
    "Evaluation": ("evaluate", "Evaluation"),
    "Shifts and robustness": ("shift", "measure_robustness", "Robustness"),
    "Import and export": ("import_checkpoint", "to_monai", "to_onnx", "to_program"),
}
"""Sections of the API page; together they hold every public name."""
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "training/README.md",
    "model_cards/README.md",
    "model_cards/RESULTS.md",
    "model_cards/STUDY.md",
)
"""Documents outside `docs/` that the site shows under `project/`, beside the model cards."""
CARDS = {name: f"model_cards/{name}/README.md" for name in best_first(list(MODELS))}
"""The card of each model, the best first."""
HELP_WIDTH = 100  # characters


def all_pages() -> dict[str, str | bytes]:
    """Return every page that is made, and the pictures of these pages, by path in the site."""
    pages: dict[str, str | bytes] = {"api.md": api_page(), **command_pages()}
    for path in sorted((DOCS / "tutorials").glob("*.ipynb")):
        pages |= tutorial_pages(path)
    for name in (*DOCUMENTS, *CARDS.values()):
        pages |= document_pages(name)
    return pages


def api_page() -> str:
    """Return the page of the public names. Raises `ValueError` where `API` does not list each of them once."""
    listed = [name for names in API.values() for name in names]
    public = [name for name in dir(ctssl) if not name.startswith("_")]
    if sorted(listed) != sorted(public):
        raise ValueError(f"API of docs/site/pages.py differs from dir(ctssl): {set(listed) ^ set(public)}")
    parts = ["# Python API", "Every public name of `ctssl`, from the docstrings."]
    for title, names in API.items():
        parts += [f"## {title}", *(f"::: ctssl.{name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def command_pages() -> dict[str, str]:
    """Return a page for each command, after one that lists them."""
    names = _commands("")
    rows = [f"| [`ctssl {name}`]({name}.md) | {sub.description} |" for name, sub in names.items()]
    text = "# Commands\n\n`ctssl COMMAND --help` prints these pages. `--json` prints one JSON object for a program to read.\n\n"
    index = text + "| command | what it does |\n|---|---|\n" + "\n".join(rows) + "\n"
    return {"commands/index.md": index, **{f"commands/{name}.md": command_page(name) for name in names}}


def command_page(name: str) -> str:
    """Return the help of a command, with examples from the guides and links to these."""
    sub = _commands(name)[name]
    sub.formatter_class = partial(argparse.HelpFormatter, width=HELP_WIDTH)  # type: ignore[assignment]
    text = f"# ctssl {name}\n\n```text\n{sub.format_help()}```\n"
    found = {path: _shown(path, name) for path in sorted(DOCS.glob("*.md"))}
    lines = list(dict.fromkeys(line for lines in found.values() for line in lines))
    if lines:
        guides = ", ".join(f"[{_title(path)}](../{path.name})" for path, shown in found.items() if shown)
        text += "\n## Examples\n\n```sh\n" + "\n".join(lines) + f"\n```\n\nFrom {guides}.\n"
    return text


def _commands(chosen: str) -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command; that of `chosen` has all of its flags."""
    actions = _parser(chosen)._actions
    return next(dict(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))


def _shown(path: Path, command: str) -> list[str]:
    """Return the lines that show a command in the fences of a document."""
    fences = re.findall(r"^```sh\n(.*?)^```", path.read_text(), re.M | re.S)
    lines = "".join(fences).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(f"ctssl {command} ")]


def _title(path: Path) -> str:
    return path.read_text().splitlines()[0].removeprefix("# ")


def tutorial_pages(path: Path) -> dict[str, str | bytes]:
    """Return the page of an executed notebook, and its pictures."""
    place, pictures = f"tutorials/{path.stem}", {}
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture is None:
                parts.append(_words_of(output))
                continue
            name = f"{place}-{len(pictures) + 1}.png"
            pictures[name] = base64.b64decode("".join(picture))
            parts.append(f"![Output of the cell above]({posixpath.basename(name)})")
    parts.append(f"[Download this notebook]({path.name}){{ download }}")
    return {f"{place}.md": "\n\n".join(parts) + "\n", **pictures}


def _words_of(output: dict[str, Any]) -> str:
    """Return an output without a picture as Markdown."""
    data = output.get("data", {})
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text", data.get("text/plain", []))).rstrip("\n")
    return f'```text title="output"\n{text}\n```'


def document_pages(name: str) -> dict[str, str | bytes]:
    """Return the page of a document outside `docs/`, and its pictures."""
    text = (ROOT / name).read_text()
    pages: dict[str, str | bytes] = {f"project/{name}": text}
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        picture = posixpath.normpath(posixpath.join(posixpath.dirname(name), link))
        pages[f"project/{picture}"] = (ROOT / picture).read_bytes()
    return pages


def place_of(name: str) -> str:
    """Return the path in the site of a model's card, or of a document named from the top of the repository; "" if none."""
    name = CARDS.get(name, name)
    if name in DOCUMENTS or name in CARDS.values():
        return f"project/{name}"
    inside = name.removeprefix("docs/")
    shown = name.startswith("docs/") and name.endswith((".md", ".ipynb")) and (DOCS / inside).is_file()
    return inside if shown else ""
