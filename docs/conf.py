"""The site of the documents: `make docs` writes it to build/docs."""

import sys
from pathlib import Path

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "latent-prior"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",  # this and the next two are in _extensions
    "outside",
    "reference",
]
exclude_patterns = ["_extensions"]

myst_enable_extensions = ["amsmath", "attrs_block", "dollarmath"]
myst_heading_anchors = 4  # links to headings work here as they do in the repository

smartquotes = False  # they would turn the dashes of a flag into one
highlight_language = "text"  # of blocks that name none

# Docstrings say `name` as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = "latent-prior"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_use_index = False
html_copy_source = False
html_show_sourcelink = False


def setup(app: Sphinx) -> None:
    """Pygments has no colours for CSV."""
    app.add_lexer("csv", TextLexer)
