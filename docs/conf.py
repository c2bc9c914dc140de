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


def whole(app, what, name, item, options, lines):
    """An attribute's text as it was written: napoleon takes what is before a colon for a type."""
    kinds = [line for line in lines if line.startswith(":type: ")]
    if what in ("attribute", "data", "property") and kinds:
        lines.remove(kinds[0])
        lines[0] = f"{kinds[0].removeprefix(':type: ')}: {lines[0]}"


def setup(app):
    app.connect("source-read", filled)
    app.connect("autodoc-process-docstring", whole, priority=501)  # after napoleon
