"""Links to the Markdown files outside of docs/, such as ../SECURITY.md, lead to pages here.

Each of these files has a page that includes it. In the repository the links lead to the file.
"""

import re
from pathlib import Path

from sphinx.application import Sphinx

PAGES = {"README": "index", "SECURITY": "security", "CONTRIBUTING": "contributing"}
LINK = re.compile(rf"\]\((?:\.\./)*({'|'.join(PAGES)})\.md")


def redirect(text: str) -> str:
    """The text of a page with such links changed to the pages."""
    return LINK.sub(lambda link: f"](/{PAGES[link[1]]}.md", text)


def on_page(app: Sphinx, page: str, source: list[str]) -> None:
    """Change a page when it is read."""
    source[0] = redirect(source[0])


def on_include(app: Sphinx, path: Path, page: str, source: list[str]) -> None:
    """Change a file when it is included."""
    source[0] = redirect(source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Change links as Sphinx reads."""
    app.connect("source-read", on_page)
    app.connect("include-read", on_include)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
