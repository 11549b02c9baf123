"""What the repository's Markdown, written for GitHub, needs to become a site. MkDocs loads this file (mkdocs.yml).

- Pages that lie outside docs/ are taken in.
- Links that leave docs/ lead to those pages; else into the repository, where mkdocs.yml has its ``repo_url``, or
  nowhere: then their text stands alone. A link to what is not there is left to MkDocs, which tells.
- A list may follow a line of text without an empty line between them.
- Links to elsewhere are listed in site/external-links.txt: nothing here can tell whether they still lead anywhere.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TAKEN = {ROOT / "CHANGELOG.md": "changelog.md", ROOT / "CONTRIBUTING.md": "contributing.md"}
FENCES = re.compile(r"(^ *```.*?^ *```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
ITEM = re.compile(r"(- |\* |\d+\. )")
ROLE = re.compile(r":(class|meth|func|mod|attr):(?=<code)")  # of Sphinx, in docstrings

elsewhere: set[str] = set()


def on_files(files: Files, config: Any) -> Files:
    for path, page in TAKEN.items():
        files.append(File.generated(config, page, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    parts = FENCES.split(markdown)  # every second one is code
    parts[::2] = [_spaced(_linked(part, page, config.repo_url)) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    elsewhere.update(re.findall(r'href="(https?://[^"]+)"', html))
    return ROLE.sub("", html)


def on_post_build(config: Any) -> None:
    listed = "".join(f"{link}\n" for link in sorted(elsewhere))
    (Path(config.site_dir) / "external-links.txt").write_text(listed, encoding="utf-8")


def _linked(markdown: str, page: Any, repository: str | None) -> str:
    source = Path(page.file.abs_src_path)

    def lead(link: re.Match[str]) -> str:
        label, path, anchor = link[1], link[2], link[3] or ""
        if re.match(r"[a-z]+:", path):
            return link[0]
        target = Path(os.path.normpath(source.parent / path))
        if not target.is_relative_to(ROOT) or not target.exists():
            return link[0]
        if target in TAKEN or (target.is_relative_to(DOCS) and target.is_file()):
            place = TAKEN.get(target) or target.relative_to(DOCS).as_posix()
            return f"[{label}]({posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or '.')}{anchor})"
        if repository is None:
            return label
        return f"[{label}]({repository.rstrip('/')}/blob/main/{target.relative_to(ROOT).as_posix()}{anchor})"

    return LINK.sub(lead, markdown)


def _spaced(markdown: str) -> str:
    lines: list[str] = []
    for line in markdown.split("\n"):
        before = lines[-1] if lines else ""
        if ITEM.match(line) and before.strip() and not ITEM.match(before) and not before.startswith((" ", "#")):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
