"""How Sphinx builds the documentation: `make docs`."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / '_extensions'), str(HERE.parent)]

project = 'prsgd_jax'
author = 'the authors of prsgd_jax'
project_copyright = 'the authors of prsgd_jax; Apache-2.0'

extensions = [
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'myst_nb',
  'api_pages',
  'copied_files',
  'cost_table',
  'docstrings',
  'mathml',
  'signatures',
]
exclude_patterns = ['_build', '_extensions', '_generated']

# Single backquotes in docstrings are code.
default_role = 'code'
autodoc_member_order = 'bysource'
python_maximum_signature_line_length = 72
napoleon_numpy_docstring = False
# As a list: the types of a class's fields are in its signature.
napoleon_custom_sections = [('Attributes', 'params_style')]
# Dashes only: quotes are of code.
smartquotes_action = 'D'

myst_enable_extensions = ['colon_fence', 'deflist', 'dollarmath', 'fieldlist']
myst_heading_anchors = 3
# Outputs are those that are stored in the notebooks.
nb_execution_mode = 'off'
nb_render_text_lexer = 'none'

html_math_renderer = 'mathml'
html_theme = 'sphinx_book_theme'
html_title = 'prsgd_jax'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_copy_source = False
html_show_sphinx = False
html_context = {'default_mode': 'auto'}
html_theme_options = {
  # The sidebar has a field of its own to search with.
  'navbar_persistent': [],
  'use_download_button': False,
  'use_fullscreen_button': False,
  'show_toc_level': 2,
  'home_page_in_toc': True,
  # Each page lists the pages of its own section only: a hundred in each of a
  # hundred pages double the time to build.
  'collapse_navbar': True,
}
