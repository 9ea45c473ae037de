"""Formulas as MathML, which browsers render by themselves.

MathJax would be a script from another host, or two megabytes of one in this
repository. docutils converts LaTeX to MathML while the pages are built. A
formula that it cannot read is a warning, so that the build fails.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html import HTML5Translator

NAME = 'mathml'
# Sizes of brackets, which docutils does not know and browsers choose well.
_SIZE = re.compile(r'\\[bB]igg?[lrm]?(?![A-Za-z])')
_log = logging.getLogger(__name__)


def converted(formula: str, node: nodes.Node, *, as_block: bool) -> str:
  """Return the markup of a formula; the formula itself if it has an error."""
  try:
    return str(
      latex2mathml.tex2mathml(_SIZE.sub('', formula), as_block=as_block)
    )
  except MathError as error:
    _log.warning('formula %r: %s', formula, error, location=node)
    return f'<code>{nodes.unescape(formula)}</code>'


def visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
  translator.body.append(converted(node.astext(), node, as_block=False))
  raise nodes.SkipNode


def visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
  formula = node.astext()
  if r'\\' in formula and r'\begin{' not in formula:
    formula = rf'\begin{{aligned}}{formula}\end{{aligned}}'
  markup = converted(formula, node, as_block=True)
  translator.body.append(f'<div class="formula">{markup}</div>\n')
  raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
  """Offer the renderer; `html_math_renderer` chooses it."""
  app.add_html_math_renderer(NAME, (visit_inline, None), (visit_block, None))
  return {'version': '1', 'parallel_read_safe': True}
