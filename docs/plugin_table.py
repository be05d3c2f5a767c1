"""The directive `plugins`: a table of the installed plugins of one kind, from what they say of themselves."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from polyprune_core.plugins.options import describe_options
from polyprune_core.plugins.registry import load_registry


class Plugins(SphinxDirective):
    """`{plugins} estimator` lists polyprune's own estimators."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns the table."""
        rows = ["| name | what it does | options | source |", "|---|---|---|---|"]
        for item in load_registry().all(self.arguments[0]):
            if item.source.distribution == "polyprune":
                provider = item.provider
                needs = "".join(f"; needs {need}" for need in sorted(provider.needs - {"calibration"}))
                options = ", ".join(f"`{name}`: {text}" for name, text in describe_options(provider).items())
                cells = (f"`{provider.name}`", provider.summary + needs, options, provider.reference)
                rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        container = nodes.container()
        self.state.nested_parse(StringList(rows, source=self.get_source_info()[0]), self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the directive."""
    app.add_directive("plugins", Plugins)
    return {"parallel_read_safe": True}
