"""Hooks of MkDocs: what the pages need on the site beyond what the repository's own site shows.

- Links to files outside of docs/ lead to copies in the site. A folder has no page: its link becomes text.
- The drawing of the rooms is Mermaid, whose script would come from the network: a table of its arrows takes its place.
- Docstrings have roles, such as ``:func:`fec_fast.prune```, and names of pages; both become links.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_LINK = re.compile(r"\[([^\]]*)\]\((\.\.?/[^)#\s]+)\)")
_ROLE = re.compile(r":(?:func|class|meth|mod|attr|exc|data|obj):<code>~?([^<]*?)(?:\(\))?</code>")
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PAGE = re.compile(r"\bdocs/(\w+)\.md\b")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Copies the linked files of the repository into the site, and makes a table of the drawing."""
    docs = Path(config.docs_dir).resolve()

    def replace(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = (docs / posixpath.dirname(page.file.src_uri) / target).resolve()
        if path.is_relative_to(docs) or not path.is_relative_to(docs.parent):
            return match[0]
        if path.is_dir():
            return text
        copy = f"repository/{path.relative_to(docs.parent).as_posix()}"
        if path.is_file() and files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, abs_src_path=str(path)))
        return f"[{text}]({posixpath.relpath(copy, posixpath.dirname(page.file.src_uri) or '.')})"

    return _LINK.sub(replace, _MERMAID.sub(_table_of_arrows, markdown))


def _table_of_arrows(drawing: re.Match[str]) -> str:
    names = re.findall(r'^ *(\w+)\["\w+: (.*)"\]$', drawing[1], re.MULTILINE)
    arrows = re.findall(r"^ *(\w+) --> (\w+)$", drawing[1], re.MULTILINE)
    rows = [
        f"| `{name}` | {words} | {', '.join(f'`{end}`' for start, end in arrows if start == name)} |"
        for name, words in names
    ]
    return "\n".join(["| room | what it does | imports |", "| --- | --- | --- |", *rows])


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Makes links of the roles and of the names of pages in docstrings."""
    if not page.file.src_uri.startswith("api/"):
        return html
    html = _ROLE.sub(r'<autoref identifier="\1" optional><code>\1</code></autoref>', html)
    return _PAGE.sub(r'<a href="../\1.html">\1</a>', html)
