"""Sphinx configuration. `sphinx-build -W docs build/docs` builds the site; a warning is an error."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from typing_extensions import is_protocol

from polyprune_core import __version__

logger = logging.getLogger(__name__)

project = "polyprune"
copyright = "the polyprune developers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = True
# Types that are documented elsewhere, or are no part of the interface.
nitpick_ignore_regex = [
    (r"py:.*", r"(torch|transformers|pandas|pluggy|collections|pathlib|types|typing)\..*|Axes"),
    (r"py:class", r"tuple\[(~polyprune_core\.results\.row\.)?TextScores|Dense|Metric|Start|Search"),
    (r"py:class", r"polyprune_core\.(config\.cell\.\w+|runs\.(evaluation_report\.Side|export\.Exported))|Paired"),
    (r"py:class", r"nn\.(Module|Parameter)|Tensor|Generator|Path|Sequence|Mapping|Callable|Iterable|Iterator|Any"),
    (r"py:class", r"ModuleType"),
    (r"py:.*", r"PreTrained\w+|(dict|Mapping|Sequence\[Mapping)\[str|P|T|State"),
    (r"py:.*", r"polyprune_core\.plugins\.(\w+\.[FRT]|registry\.\w+)"),
    (
        r"py:class",
        r"polyprune_core\.(pruning\.(mask_header\.Base|pricing\.PricedBudget)|evaluation\.(moments\.Reading|losses\.Spent)|models\.layout\.Stack)",
    ),
]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
add_module_names = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = "polyprune"
html_static_path = ["_static"]
html_css_files = ["polyprune.css"]
html_math_renderer = "mathml"
html_show_sourcelink = False
html_show_sphinx = False


def _mathml(node: nodes.Element, block: bool) -> str:
    try:
        return tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logger.warning("%s in %s", error, node.astext(), location=node)
        return node.astext()


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_mathml(node, block=True)}</div>')
    raise nodes.SkipNode


def _without_arguments_of_protocols(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, None] | None:
    return ("", None) if what == "class" and is_protocol(obj) else None


def _without_paths(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str, str | None] | None:
    """Sphinx shows a signature as it stands where a default is no expression; there types are named without modules."""
    if not signature or "<" not in signature:
        return None
    return re.sub(r"~?(?:[a-zA-Z_]\w*\.)+(?=[a-zA-Z_])", "", signature), returns


def _from_markdown(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings indent examples after a blank line, put letters behind `code`, and colons into a property's text."""
    found = ["", *(re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line) for line in lines)]
    lines.clear()
    for before, line, after in zip(["", *found], found, [*found[1:], ""], strict=False):
        starts = not line and after.startswith("    ") and before[:1].strip()
        lines += ["", "::", ""] if starts else [line]
    if what == "property":
        lines[1] = lines[1].replace(": ", ", ", 1)


def setup(app: Sphinx) -> None:
    """Formulas become MathML, which browsers draw themselves: no script and nothing fetched by a reader."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("autodoc-process-signature", _without_arguments_of_protocols)
    app.connect("autodoc-process-signature", _without_paths, priority=600)
    app.connect("autodoc-process-docstring", _from_markdown, priority=400)  # before napoleon
