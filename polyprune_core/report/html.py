"""HTML from the templates of this package: everything that they are given is escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from polyprune_core.report.sheet import Sheet


def table_html(sheet: Sheet) -> str:
    """Returns a sheet as a table with its caption and note, for a place in another page such as a notebook's output."""
    return rendered("table.html", sheet=sheet)


def rendered(template: str, **values: Any) -> str:
    """Returns what a template makes of these values."""
    environment = Environment(
        loader=PackageLoader("polyprune_core.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text: str = environment.get_template(template).render(**values)
    return text
