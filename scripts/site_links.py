"""What mkdocs needs told of these pages: links to files of the repository outside docs/ lead nowhere on the site, so
there they become the file's name; and what the search takes from elsewhere to work on pages opened from the disk is
replaced by docs/assets/worker.js."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>\.\./[^)#\s]+)(?:#[^)\s]*)?\)")
_FETCHED = "https://unpkg.com/iframe-worker/shim"
log = logging.getLogger("mkdocs.plugins.site_links")


def on_page_markdown(markdown: str, page: Any, **more: Any) -> str:
    """mkdocs' hook. A link to a file that is not there is a warning, which --strict makes an error."""
    folder = Path(page.file.abs_src_path).parent

    def named(found: re.Match[str]) -> str:
        target = (folder / found["path"]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return found[0]
        if not target.exists():
            log.warning(f"{page.file.src_uri}: a link to {found['path']}, which is not in the repository")
        name = target.relative_to(ROOT) if target.is_relative_to(ROOT) else target.name
        return f"`{name}`" if found["text"].strip("`") == str(name) else f"{found['text']} (`{name}` in the repository)"

    return _LINK.sub(named, markdown)


def on_post_page(output: str, page: Any, **more: Any) -> str:
    """mkdocs' hook, of a page."""
    return output.replace(_FETCHED, "../" * page.url.count("/") + "assets/worker.js")


def on_post_template(output_content: str, **more: Any) -> str:
    """mkdocs' hook, of 404.html."""
    return output_content.replace(_FETCHED, "assets/worker.js")
