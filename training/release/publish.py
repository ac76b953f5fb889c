"""Publish checked model folders on the Hub, or in a mirror: `python -m training.release.publish NAME... --org
ORG [--private] [--tag TAG]`.

Each `model_cards/<name>/` becomes one commit of `ORG/<name>` with a tag (default: v and the package's
version), and `ctssl/zoo.py` gets repository and commit. A folder whose card, config, weights and table
disagree is refused before anything is uploaded. `--mirror FOLDER` writes git repositories `FOLDER/ORG/<name>`
instead (branch `main`), for a mirror in your own network, and changes the table only with `--table`.
"""

import argparse
import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import ctssl
from ctssl import hub, zoo
from ctssl.files.atomic import write_whole
from ctssl.files.names import REPOSITORY
from ctssl.hub.client import COMMIT, SIGN_IN, failures, upload
from training.release.card import CARDS, card
from training.release.segmenter import PORTRAITS, portraits, task_of
from training.release.segmenter import card as segmenter_card

FILES = {
    "encoder": {
        "README.md",
        "config.json",
        "features.png",
        "loss.png",
        "model.safetensors",
        "preprocessor_config.json",
        "seen.json",
        "training.json",
    },
    "segmenter": {
        "README.md",
        "best.png",
        "cases.csv",
        "config.json",
        "curves.png",
        "median.png",
        "model.safetensors",
        "preprocessor_config.json",
        "report.json",
        "seen.json",
        "worst.png",
    },
}
"""The files of a published folder, pretrained or fine-tuned; any other file is refused, so that no stray file is uploaded."""
TABLE = Path(zoo.__file__)
BEGIN, END = (
    "# --- published: `python -m training.release.publish` writes these lines ---\n",
    "# --- end of what it writes ---\n",
)


def check(folder: Path) -> None:
    """Raise `ValueError`, naming every disagreement, unless card, config, weights and table agree."""
    name = folder.name
    if name not in zoo.MODELS:
        raise ValueError(
            f"{name} is not in the table of ctssl/zoo.py; use one of {', '.join(zoo.list_models())}"
        )
    spec = zoo.MODELS[name]
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; `python -m training.release.encoder` writes it")
    present = {path.name for path in folder.iterdir()}
    expected = files_of(folder, spec)
    wrong = [f"{file} is missing" for file in sorted(expected - present)]
    wrong += [f"{file} does not belong there" for file in sorted(present - expected)]
    if not wrong:
        wrong = disagreements(folder, spec)
    if wrong:
        raise ValueError(f"{folder} cannot be published:\n" + "\n".join(f"  {one}" for one in wrong))


def files_of(folder: Path, spec: zoo.ModelSpec) -> set[str]:
    """Return the names of the files that a model folder has: without pictures of test scans that may not be shown."""
    if is_pretrained(folder):
        return FILES["encoder"]
    task = task_of(spec.name)
    hidden = set(PORTRAITS) - set(portraits(task, spec.licence)) if task else set()
    return FILES[spec.kind] - hidden


def is_pretrained(folder: Path) -> bool:
    """Return whether a pretext task made the folder, perhaps with its head, and no fine-tuning."""
    return (folder / "training.json").is_file()


def disagreements(folder: Path, spec: zoo.ModelSpec) -> list[str]:
    """Return how the files of a complete folder disagree with each other or with the table."""
    wrong = []
    try:
        hub.open_published(folder, spec)  # config and weights are those of the table
        hub.open_folder(folder)  # and the config has the sha256 of the weights
    except ValueError as error:
        wrong.append(str(error))
    config = hub.read_config(folder)
    for key in ("corpus", "pretext", "parameters", "licence", "data"):
        if config.get(key, "") != getattr(spec, key):
            wrong.append(f"config.json says {key} {config.get(key)!r}, the table {getattr(spec, key)!r}")
    if (folder / "README.md").read_text() != expected_card(folder, config):
        wrong.append(
            "README.md does not match the other files; write it again with --card of "
            "training.release.encoder or .segmenter"
        )
    return wrong


def expected_card(folder: Path, config: dict[str, Any]) -> str:
    if is_pretrained(folder):
        return card(config, json.loads((folder / "training.json").read_text()))
    report, rows = json.loads((folder / "report.json").read_text()), (folder / "cases.csv").read_text()
    return segmenter_card(config, report, rows, task_of(config["name"]))


def publish(
    names: list[str],
    *,
    org: str,
    private: bool = False,
    tag: str | None = None,
    mirror: Path | None = None,
    table: Path | None = TABLE,
    cards: Path = CARDS,
) -> dict[str, tuple[str, str]]:
    """Upload (or mirror) models and write the table.

    Every folder is checked before the first one is uploaded. Uploaded models are in the table even if a later
    one fails; a second call with unchanged folders returns the existing commits.

    Args:
        names: models of the table.
        org: organisation or user on the Hub.
        private: create private repositories.
        tag: tag of the commit. Default: v and the version of the package.
        mirror: write git repositories below this folder instead.
        table: the file to write repositories and commits to; None: do not.
        cards: folder of the model folders.

    Returns:
        Repository and commit by name.
    """
    for name in names:
        if not REPOSITORY.fullmatch(f"{org}/{name}"):
            raise ValueError(
                f"{org}/{name} is not a Hub repository; --org is the name of an organisation or user"
            )
        check(cards / name)
    done: dict[str, tuple[str, str]] = {}
    tag = tag or f"v{ctssl.__version__}"
    if mirror is None:
        check_signed_in()
    for name in names:
        repo = f"{org}/{name}"
        commit = (
            send(cards / name, repo, private, tag)
            if mirror is None
            else write_mirror(cards / name, mirror / repo, tag)
        )
        done[name] = (repo, commit)
        if table is not None:
            write_table(table, done)
    return done


def check_signed_in() -> None:
    """Raise `PermissionError` unless there is a valid token; called before anything is created."""
    from huggingface_hub import HfApi, constants

    try:
        HfApi().whoami()
    except failures() as error:
        raise PermissionError(
            f"{constants.ENDPOINT} does not accept your token ({type(error).__name__}): {SIGN_IN}"
        ) from error


def send(folder: Path, repo: str, private: bool, tag: str) -> str:
    """Upload one commit to the Hub and tag it; returns the commit."""
    from huggingface_hub import HfApi

    commit = upload(folder, repo, private=private, message=f"{folder.name} {tag}").oid
    api = HfApi()
    try:
        api.create_tag(repo, tag=tag, revision=commit)
    except failures() as error:
        taken = getattr(getattr(error, "response", None), "status_code", None) == 409
        tagged = api.repo_info(repo, revision=tag).sha if taken else None
        if tagged != commit:
            why = f"it already belongs to {tagged}; choose another --tag" if taken else f"{error}"
            raise ValueError(
                f"{repo} is uploaded as {commit}, but its tag {tag} could not be set: {why}"
            ) from error
    return commit


def write_mirror(folder: Path, target: Path, tag: str) -> str:
    """Create a git repository whose branch `main` has the folder as its only commit; returns the commit."""
    if target.exists():
        return check_mirror(folder, target, tag)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=target.parent) as place:
        part = Path(place, "repository")
        shutil.copytree(folder, part)
        git(part, "init", "--quiet", "--initial-branch=main")
        git(part, "add", "--all")
        git(part, "commit", "--quiet", "--message", f"{folder.name} {tag}")
        git(part, "tag", tag)
        commit = git(part, "rev-parse", "HEAD")
        os.rename(part, target)
    return commit


def check_mirror(folder: Path, target: Path, tag: str) -> str:
    """Return the commit of a mirror that already holds this folder. Raises `FileExistsError` if it holds
    another.
    """
    names = sorted(path.name for path in folder.iterdir())
    same = target.is_dir() and sorted(path.name for path in target.iterdir() if path.name != ".git") == names
    same = same and filecmp.cmpfiles(folder, target, names, shallow=False)[0] == names
    if not same or git(target, "status", "--porcelain") or git(target, "tag", "--points-at", "HEAD") != tag:
        raise FileExistsError(
            f"{target} exists and is not this model with the tag {tag}; it was not changed: move it away, "
            "or choose another --mirror"
        )
    return git(target, "rev-parse", "HEAD")


def git(folder: Path, *words: str) -> str:
    who = [
        "-c",
        "user.name=ctssl",
        "-c",
        "user.email=ctssl@localhost",
        "-c",
        "core.autocrlf=false",
        "-c",
        "commit.gpgsign=false",
    ]
    done = subprocess.run(["git", "-C", str(folder), *who, *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {words[0]} in {folder} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def write_table(path: Path, placed: dict[str, tuple[str, str]]) -> None:
    """Add repositories and commits to `PUBLISHED` in ctssl/zoo.py, atomically."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{path} lacks the two lines between which repositories are written:\n{BEGIN}{END}")
    for repo, commit in placed.values():
        if not REPOSITORY.fullmatch(repo) or not re.fullmatch(COMMIT, commit):
            raise ValueError(f"{repo!r} at {commit!r} is not a repository and a commit of 40 hex digits")
    before, rest = text.split(BEGIN)
    lines, after = rest.split(END)
    known = ast.literal_eval(lines.split("=", 1)[1].split("  # fmt")[0].strip())
    rows = "".join(
        f'    "{name}": ("{repo}", "{commit}"),\n'
        for name, (repo, commit) in sorted({**known, **placed}.items())
    )
    table = f"PUBLISHED: dict[str, tuple[str, str]] = {{\n{rows}}}\n"
    write_whole(path, before + BEGIN + table + END + after)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="models of `ctssl list`")
    parser.add_argument("--org", required=True, help="organisation or user on the Hub")
    parser.add_argument("--private", action="store_true", help="create private repositories")
    parser.add_argument("--tag", help="tag of the commit (default: v and the version of the package)")
    parser.add_argument(
        "--mirror",
        type=Path,
        metavar="FOLDER",
        help="write git repositories FOLDER/ORG/NAME instead of uploading",
    )
    parser.add_argument(
        "--table", action="store_true", help="with --mirror: write its commits into ctssl/zoo.py"
    )
    args = parser.parse_args(argv)
    if args.mirror and args.private:
        parser.error("--private applies to the Hub only; access to a mirror is controlled by its server")
    try:
        table = TABLE if args.table or not args.mirror else None
        done = publish(
            args.names, org=args.org, private=args.private, tag=args.tag, mirror=args.mirror, table=table
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise SystemExit(f"publish: {error}") from error
    for name, (repo, commit) in done.items():
        print(f'{name}: ctssl.load("{repo}", revision="{commit}")')


if __name__ == "__main__":
    main()
