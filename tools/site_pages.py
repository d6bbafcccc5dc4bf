"""A hook of MkDocs: pages of the site that lie outside `docs/`, and links as GitHub reads them.

README.md becomes the home page; CONTRIBUTING.md and CHANGELOG.md become pages of their own. In all
of them and in `docs/`, links are relative to the file, as on GitHub. The site has no page for a
file of the code: a link to one becomes its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
# [text](target) and ![text](target)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that lie outside `docs/`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Rewrites a page's links for the site."""
    sources = {page: source for source, page in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def link(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, hash_sign, anchor = target.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        name = PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else "")
        if name and files.get_file_from_path(name):
            return f"{image}[{text}]({name}{hash_sign}{anchor})"
        if (ROOT / path).exists():
            return text
        return match[0]

    return LINK.sub(link, markdown)
