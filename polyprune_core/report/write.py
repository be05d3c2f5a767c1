"""One comparison to a stream, in the forms that `polyprune compare` and `polyprune report` share."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from polyprune_core.errors import ConfigError
from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.csvfile import to_csv
from polyprune_core.report.latex import latex
from polyprune_core.report.markdown import markdown
from polyprune_core.report.terminal import PIPED_WIDTH, table
from polyprune_core.results.results import Results
from polyprune_core.utils.numbers import finite

FORMATS = ("table", "json", "csv", "markdown", "latex")


def write(results: Results, form: str, console: Console | None = None, arrangement: Arrangement = AS_RUN) -> None:
    """Prints the results to stdout as one of `FORMATS`; a table in a pipe is not cut to 80 columns."""
    console = console or Console(highlight=False)
    if form == "table":
        if not console.is_terminal:
            console = Console(file=console.file, width=PIPED_WIDTH, highlight=False)
        console.print(table(results, console.width, arrangement))
        return
    writers = {
        "json": lambda: to_json(results, arrangement) + "\n",
        "csv": lambda: to_csv(results, arrangement),
        "markdown": lambda: markdown(results, arrangement=arrangement) + "\n",
        "latex": lambda: latex(results, arrangement=arrangement) + "\n",
    }
    if form not in writers:
        raise ConfigError(f"format {form!r} is not one of {', '.join(FORMATS)}.")
    console.file.write(writers[form]())


def to_json(results: Results, arrangement: Arrangement = AS_RUN) -> str:
    """Returns schema 1 with the rows and summaries that are shown."""
    record: dict[str, Any] = arrangement.of_seeds(results).to_json()
    record["rows"] = finite([row.to_json() for row in arrangement.rows(results)])
    record["summary"] = finite([s.to_json() for _, group in arrangement.groups(results) for s in group])
    return json.dumps(record, indent=1, allow_nan=False)
