"""Results as people and scripts read them: a terminal table, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyprune_core.errors import ConfigError
from polyprune_core.results import Results, Row, Summary

FORMATS = ("table", "json", "csv", "markdown")
PIPED_WIDTH = 160


@dataclass(frozen=True)
class Column:
    """A column of the summary table; `optional` ones appear where there is room."""

    title: str
    text: Callable[[Summary], str]
    optional: bool = False


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number short enough for a table."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "inf"
    return f"{value:.{digits}f}" if abs(value) < 10_000 else f"{value:.1e}".replace("e+0", "e").replace("e+", "e")


def _perplexity(summary: Summary) -> str:
    if summary.perplexity is None:
        return "failed"
    spread = "" if summary.perplexity.sd is None else f" ± {number(summary.perplexity.sd, 1)}"
    return number(summary.perplexity.mean) + spread


def _versus(summary: Summary) -> str:
    if summary.versus is None:
        return ""
    interval = summary.versus.ci95
    if interval is None:
        return f"×{summary.versus.ratio:.3f} (n=1)"
    mark = {"better": " ✓", "worse": " ✗"}.get(summary.versus.verdict, " ~")
    return f"×{summary.versus.ratio:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]{mark}"


def _sparsity(summary: Summary) -> str:
    row = summary.row
    if row.sparsity is None:
        return ""
    return f"{row.sparsity:g} / {'?' if row.sparsity_achieved is None else f'{row.sparsity_achieved:.3f}'}"


def _passes(summary: Summary) -> str:
    return str(summary.row.backward_passes or "") if summary.row.kind != "dense" else ""


def _millions(count: int | None) -> str:
    return f"{count / 1e6:.3g} M" if count else ""


COLUMNS = (
    Column("sparsity asked / got", _sparsity),
    Column("perplexity", _perplexity),
    Column("against its start", _versus),
    Column("n", lambda s: str(len(s.seeds)) if s.row.kind != "dense" else "1"),
    Column("forward tokens", lambda s: _millions(s.row.forward_tokens)),
    Column("backward passes", _passes, optional=True),
    Column("parameters", lambda s: _millions(s.row.parameters_kept), optional=True),
    Column("KL to dense", lambda s: number(s.row.kl_to_dense, 3), optional=True),
    Column(
        "same top-1", lambda s: "" if s.row.top1_agreement is None else f"{s.row.top1_agreement:.1%}", optional=True
    ),
    Column("seconds", lambda s: number(s.row.search_seconds, 0) if s.row.search_seconds else "", optional=True),
    Column("peak MB", lambda s: number(s.row.peak_memory_mb, 0), optional=True),
)


def label(row: Row, varied: frozenset[str] = frozenset()) -> str:
    """Returns what a row is called; `varied` names the settings that tell rows of this table apart."""
    if row.kind == "dense":
        return "dense"
    name = row.initializer or ""
    if row.kind == "start":
        name += " → no search"
    if row.kind == "search":
        name += f" → {row.estimator}"
    notes = [str(getattr(row, key)) for key in ("granularity", "scope", "scale") if key in varied and getattr(row, key)]
    return f"{name} ({', '.join(notes)})" if notes else name


def line(row: Row) -> str:
    """Returns one finished cell as one line of console markup."""
    where = "" if row.kind == "dense" else f", sparsity {row.sparsity:g}, seed {row.seed}"
    outcome = (
        f"perplexity {number(row.perplexity)}" if row.status == "ok" else f"[red]failed:[/] {escape(row.error or '')}"
    )
    return f"{escape(label(row, frozenset({'granularity', 'scope', 'scale'})))}{where}: {outcome}"


def caption(results: Results) -> str:
    """Returns the conditions that every row of the table shares."""
    model, texts, config = results.model, results.texts, results.config
    evaluation = texts["evaluation"]
    prunable = ", ".join(f"{count / 1e6:.1f} M {name}" for name, count in model["prunable_parameters"].items())
    return (
        f"{model['name']}, {model['parameters'] / 1e6:.1f} M parameters (prunable: {prunable}), "
        f"{model['dtype']} on {model['device']}. "
        f"Perplexity on {evaluation['name']}: {evaluation['windows']} windows of {evaluation['tokens_per_window']}; "
        f"calibrated on {texts['calibration']['name']}, {config['seq_len']}-token windows. "
        f"Mean ± sd over n seeds. Against its start: perplexity ratio to the same metric without search, "
        f"paired by seed, 95 % t interval: ✓ better, ✗ worse, ~ no difference shown."
    )


def varied(results: Results) -> frozenset[str]:
    """Returns the settings that rows of one table differ in."""
    return frozenset(
        key
        for key in ("granularity", "scope", "scale")
        if len({getattr(row, key) for row in results.rows} - {None}) > 1
    )


def table(results: Results, width: int) -> Table:
    """Returns the summary as a rich table of at most `width` columns where that is possible."""
    summaries, differs = results.summaries(), varied(results)
    names = [label(s.row, differs) for s in summaries]
    used = max(map(len, [*names, "criterion"]))
    grid = Table(
        caption=caption(results),
        caption_justify="left",
        header_style="bold",
        pad_edge=False,
        box=None,
        padding=(0, 2, 0, 0),
    )
    grid.add_column("criterion", no_wrap=True)
    chosen = []
    for column in COLUMNS:
        cells = [column.text(s) for s in summaries]
        need = 2 + max(len(word) for word in (*cells, *column.title.split()))
        if any(cells) and (not column.optional or used + need <= width):
            used += need
            chosen.append(cells)
            grid.add_column(column.title, justify="right", no_wrap=False)
    for index, (name, summary) in enumerate(zip(names, summaries, strict=True)):
        following = summaries[index + 1 :][:1]
        last = bool(following) and _section(following[0]) != _section(summary)
        grid.add_row(escape(name), *(escape(cells[index]) for cells in chosen), end_section=last)
    return grid


def _section(summary: Summary) -> tuple[str | None, float | None]:
    return (summary.row.granularity, summary.row.sparsity)


def markdown(results: Results, titles: Sequence[str] = tuple(column.title for column in COLUMNS)) -> str:
    """Returns the summary as a Markdown table of the columns `titles`, with its conditions below."""
    summaries, differs = results.summaries(), varied(results)
    chosen = [column for column in COLUMNS if column.title in titles]
    lines = ["| criterion | " + " | ".join(c.title for c in chosen) + " |", "|---" + "|---:" * len(chosen) + "|"]
    lines += [f"| {label(s.row, differs)} | " + " | ".join(c.text(s) for c in chosen) + " |" for s in summaries]
    return "\n".join([*lines, "", caption(results)])


def to_csv(results: Results) -> str:
    """Returns one line a measured row, every field of the results schema but the plugins."""
    names = [field.name for field in dataclasses.fields(Row) if field.name != "plugins"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in results.rows)
    return out.getvalue()


def write(results: Results, form: str, console: Console | None = None) -> None:
    """Prints the results to stdout as one of `FORMATS`; a table in a pipe is not cut to 80 columns."""
    console = console or Console(highlight=False)
    if form == "table":
        if not console.is_terminal:
            console = Console(file=console.file, width=PIPED_WIDTH, highlight=False)
        console.print(table(results, console.width))
        return
    writers = {
        "json": lambda: json.dumps(results.to_json(), indent=1, allow_nan=False) + "\n",
        "csv": lambda: to_csv(results),
        "markdown": lambda: markdown(results) + "\n",
    }
    if form not in writers:
        raise ConfigError(f"format {form!r} is not one of {', '.join(FORMATS)}.")
    console.file.write(writers[form]())
