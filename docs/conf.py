"""Sphinx settings; `make docs` builds with warnings as errors."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tables import TABLES

project = "efface"
author = "the efface authors"
version = release = importlib.metadata.version("efface")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"efface {release}"


def filled(app, page, source):
    """A page with its tables in the places of their names."""
    for place, table in TABLES.items():
        if place in source[0]:
            source[0] = source[0].replace(place, table())


def setup(app):
    app.connect("source-read", filled)
