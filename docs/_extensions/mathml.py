"""Equations as MathML, which browsers draw themselves: a page fetches no script and no font."""

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.writers.html5 import HTML5Translator

logger = getLogger(__name__)


def inline(translator: HTML5Translator, node: nodes.math) -> None:
    """Write an equation within a sentence."""
    translator.body.append(converted(node, as_block=False))
    raise nodes.SkipNode


def block(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write an equation that stands alone."""
    translator.body.append(f'<div class="math">{converted(node, as_block=True)}</div>\n')
    raise nodes.SkipNode


def converted(node: nodes.Node, *, as_block: bool) -> str:
    """The MathML of an equation; the LaTeX itself, with a warning, if it cannot be read."""
    latex: str = node.astext()
    try:
        return str(latex2mathml.tex2mathml(latex, as_block=as_block))
    except MathError as error:
        logger.warning("equation %r: %s", latex[:60], error, location=node)
        return latex


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer, in place of the one that loads MathJax from elsewhere."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
