"""Settings of the book: `python -m sphinx -q -W -E -d build/doctrees notebooks build/site`."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import pvae  # noqa: E402

project = "pvae"
version = release = pvae.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "book"]
nb_execution_mode = "off"  # the notebooks are stored executed
nb_code_prompt_show = "Code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["attrs_inline", "dollarmath"]
myst_heading_anchors = 4
exclude_patterns = ["**/.ipynb_checkpoints"]
html_math_renderer = "mathml"  # of book.py
html_theme = "furo"
html_static_path = ["static"]
html_css_files, html_js_files = ["book.css"], [("book.js", {"defer": "defer"})]
html_show_copyright = False
html_theme_options = {"top_of_page_buttons": []}
html_sourcelink_suffix = ""  # so that a notebook is downloaded under its own name
html_logo = html_favicon = "made/logo.svg"  # which book.py writes
html_title = f"pvae {release}"
highlight_language = "text"
smartquotes = False  # --option
default_role = "py:obj"  # `VAE` in a docstring
python_use_unqualified_type_names = True
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_custom_sections = ["Reference"]
napoleon_use_ivar = True
