"""Folders: what they hold, and what describes them."""

import json
from pathlib import Path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def described(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content))
