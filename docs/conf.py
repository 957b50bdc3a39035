"""Settings of Sphinx for the site: `make docs`.

The source folder is the root of the checkout, so that a link between pages is the same file path on the site as in the
repository. The menu comes from the tables of docs/README.md: a page that has a row there is in it.
"""

from __future__ import annotations

import re
from pathlib import Path

import ccrk

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "ccrk"
author = "the authors of ccrk"
copyright = f"{author}, Apache-2.0"
version = release = ccrk.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

root_doc = "docs/README"
include_patterns = ["*.md", "docs/**.md", "metrics/*/README.md", "examples/**"]
exclude_patterns = [".*", "**/.*", "build", "dist", "*_output", "shared", "docs/_build", "tests", "**.egg-info"]
suppress_warnings = ["myst.header"]  # a page may begin with a smaller heading; the card of a metric does

# --- pages ----------------------------------------------------------------------------------------------------------

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
# Notebooks are kept without output; the site shows them with it. Results are kept in docs/_build between builds.
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / ".jupyter_cache")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"

# --- reference ------------------------------------------------------------------------------------------------------

default_role = "code"  # a name between single backticks is code in our docstrings
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "__init__, __new__"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a dataclass are documented twice otherwise
napoleon_use_rtype = False

nitpicky = True
# Types of other libraries: their inventories are on the net, and a build has to do without it. Whatever is ours must
# resolve.
nitpick_ignore_regex = [("py:.*", r"(?!ccrk\b|CCRk).*")]
# parts inside that a signature names and the reference leaves out
nitpick_ignore = [
    ("py:class", "ccrk.draws_ccrk.Draws"),
    ("py:class", "ccrk.hub_cards.collecting.Collection"),
    ("py:class", "ccrk.hub_cards.collecting.Entry"),
    ("py:class", "ccrk.objectives_ccrk.SingleProcess"),
    ("py:class", "ccrk.pipelines.gallery_tables.StoredPhoto"),
    ("py:class", "ccrk.pipelines.image_states.ImageStateStore"),
    ("py:class", "ccrk.processing_ccrk.CCRkProcessorKwargs"),
    ("py:class", "ccrk.trainer.cards.CardWriting"),
    ("py:class", "ccrk.trainer.checkpoints.SafeCheckpoints"),
]

# --- looks ----------------------------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"ccrk {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_additional_pages = {"index": "to_start.html"}
templates_path = ["_templates"]


def menu(text: str) -> str:
    """Toctrees for the sections of docs/README.md: one for each heading whose table names pages.

    Args:
        text: docs/README.md.

    Returns:
        MyST, to be put behind it.
    """
    trees = []
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title = section.splitlines()[0].strip()
        rows = re.findall(r"^\| \[([^\]]+)\]\(([^)#\s]+)\)", section, flags=re.MULTILINE)
        pages = [f"{name if name.startswith(project) else name[0].upper() + name[1:]} <{page}>" for name, page in rows]
        if pages:
            trees.append("\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"]))
    return "\n\n".join(trees)


def add_menu(app, docname: str, source: list[str]) -> None:
    """Puts the menu behind the start page."""
    if docname == root_doc:
        source[0] += "\n\n" + menu(source[0]) + "\n"


def plain_names(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """Takes the brackets from [`Name`], as transformers writes references: here they would be shown."""
    lines[:] = [re.sub(r"\[(`[\w.]+`)\]", r"\1", line) for line in lines]


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_menu)
    app.connect("autodoc-process-docstring", plain_names)
