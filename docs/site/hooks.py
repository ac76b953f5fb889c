"""What MkDocs calls while it builds the site: adds the pages of `pages.py`, and links between documents."""

import posixpath
import re
from typing import Any

import pages
from mkdocs.structure.files import File, Files


def on_config(config: Any) -> Any:
    """List the pages of models and commands in the navigation."""
    cards = [{name: pages.place_of(name)} for name in pages.CARDS]
    for entry in config["nav"]:
        if "Models" in entry:
            entry["Models"] += cards
        if "Commands" in entry:
            entry["Commands"] = list(pages.command_pages())
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of `docs/`."""
    for path, content in pages.all_pages().items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the name of a document or a model in backticks into a link, and a link to a notebook into one to its page."""
    here = posixpath.dirname(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = pages.place_of(found[1])
        if not target or target == page.file.src_uri:
            return found[0]
        return f"[`{found[1]}`]({posixpath.relpath(target, here or '.')})"

    markdown = re.sub(r"(?<![\[`])`([\w./-]+)`(?![\]`])", link, markdown)
    return re.sub(r"(\]\((?!https?:)[\w./-]+)\.ipynb\)", r"\1.md)", markdown)
