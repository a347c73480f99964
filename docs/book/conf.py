"""Sphinx settings of the book: executed notebooks as pages. `make book` calls `build.py`, which stages the sources."""

project = "See less, recognise more"
author = "The fgvclib contributors"
project_copyright = "2026, the fgvclib contributors, Apache-2.0"
extensions = ["myst_nb"]
exclude_patterns = ["play"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

nb_execution_mode = "off"  # what the pages show was computed by the committed runs
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "sphinx_book_theme"
html_title = project
html_theme_options = {"use_download_button": True, "show_navbar_depth": 1, "home_page_in_toc": True}
