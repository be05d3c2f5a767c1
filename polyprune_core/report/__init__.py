"""Results as people and scripts read them: terminal, Markdown, LaTeX, CSV, JSON and one HTML page. No torch here."""

from __future__ import annotations

from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.caption import caption
from polyprune_core.report.columns import COLUMNS, Column, accuracy, number, short
from polyprune_core.report.csvfile import to_csv
from polyprune_core.report.latex import latex
from polyprune_core.report.markdown import markdown
from polyprune_core.report.naming import label, varied
from polyprune_core.report.sheet import summary_sheet
from polyprune_core.report.terminal import PIPED_WIDTH, line, table
from polyprune_core.report.write import FORMATS, write

__all__ = [
    "AS_RUN",
    "COLUMNS",
    "FORMATS",
    "PIPED_WIDTH",
    "Arrangement",
    "Column",
    "accuracy",
    "caption",
    "label",
    "latex",
    "line",
    "markdown",
    "number",
    "short",
    "summary_sheet",
    "table",
    "to_csv",
    "varied",
    "write",
]
