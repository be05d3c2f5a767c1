"""Results as people and scripts read them: a terminal table, Markdown, CSV, JSON."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from polyprune_core.errors import ConfigError
from polyprune_core.results import Results, Row, Summary
from polyprune_core.target import Target

FORMATS = ("table", "json", "csv", "markdown")
PIPED_WIDTH = 160
WIDE = Console(width=10_000)


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
    ratio, interval = summary.versus.ratio, summary.versus.ci95
    if interval is None:
        return f"×{ratio:.3f}"
    mark = {"better": "✓", "worse": "✗"}.get(summary.versus.verdict, "~")
    return f"×{ratio:.3f} ±{max(interval[1] - ratio, ratio - interval[0]):.3f} {mark}"


def _sparsity(summary: Summary) -> str:
    row = summary.row
    if row.kind == "dense":
        return ""
    achieved = "?" if row.sparsity_achieved is None else f"{row.sparsity_achieved:.3f}"
    return achieved if row.sparsity is None else f"{row.sparsity:g} → {achieved}"


def _budget(summary: Summary) -> str:
    row = summary.row
    if row.budget is None:
        return ""
    achieved = "?" if row.budget_achieved is None else Target.parse(row.budget).words(row.budget_achieved)
    return f"{row.budget} → {achieved}"


def _passes(summary: Summary) -> str:
    return str(summary.row.backward_passes or "") if summary.row.kind != "dense" else ""


def _short(count: int | None) -> str:
    if not count:
        return ""
    return f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} k"


COLUMNS = (
    Column("budget asked → got", _budget),
    Column("sparsity asked → got", _sparsity),
    Column("perplexity", _perplexity),
    Column("against its start", _versus),
    Column("n", lambda s: str(len(s.seeds) or 1), optional=True),
    Column("forward tokens", lambda s: _short(s.row.forward_tokens), optional=True),
    Column("backward passes", _passes, optional=True),
    Column("non-finite losses", lambda s: str(s.row.non_finite_losses or "")),
    Column("parameters", lambda s: _short(s.row.parameters_kept), optional=True),
    Column("KL to dense", lambda s: number(s.row.kl_to_dense, 3), optional=True),
    Column(
        "same top-1", lambda s: "" if s.row.top1_agreement is None else f"{s.row.top1_agreement:.1%}", optional=True
    ),
    Column("seconds", lambda s: number(s.row.search_seconds, 0) if s.row.search_seconds else "", optional=True),
    Column("peak MB", lambda s: number(s.row.peak_memory_mb, 0), optional=True),
)


def columns(summaries: Sequence[Summary]) -> list[Column]:
    """Returns the columns there are: those that every comparison has, and one for each task."""
    tasks = dict.fromkeys(task for summary in summaries for task in summary.row.tasks)
    return [*COLUMNS, *(Column(task, functools.partial(_accuracy, task=task)) for task in tasks)]


def _accuracy(summary: Summary, task: str) -> str:
    scores = summary.row.tasks.get(task)
    return accuracy(scores, next(iter(scores))) if scores else ""


def accuracy(scores: Mapping[str, float], metric: str) -> str:
    """Returns a task's metric with its standard error over items."""
    stderr = scores.get(f"{metric}_stderr")
    return f"{scores[metric]:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


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
    name += " ∇" if row.backward_passes else ""
    return f"{name} ({', '.join(notes)})" if notes else name


def line(row: Row) -> str:
    """Returns one finished cell as one line of console markup."""
    asked = f"budget {row.budget}" if row.sparsity is None else f"sparsity {row.sparsity:g}"
    where = "" if row.kind == "dense" else f", {asked}, seed {row.seed}"
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
        f"Mean ± sd over n seeds. Against its start: perplexity ratio to the same metric without search, paired "
        f"by seed, with the wider side of its 95 % t interval: ✓ better, ✗ worse, ~ no difference shown. "
        f"∇: needs back-propagation."
        + (" Tasks: score ± standard error over items." if any(row.tasks for row in results.rows) else "")
    )


def varied(results: Results) -> frozenset[str]:
    """Returns the settings that rows of one table differ in."""
    return frozenset(
        key
        for key in ("granularity", "scope", "scale")
        if len({getattr(row, key) for row in results.rows} - {None}) > 1
    )


def table(results: Results, width: int) -> Table:
    """Returns the summary as a rich table; optional columns go, the last first, until `width` columns are enough."""
    summaries, differs = results.summaries(), varied(results)
    filled = [column for column in columns(summaries) if any(map(column.text, summaries))]
    optional = [column for column in filled if column.optional]
    for left_out in range(len(optional) + 1):
        shown = [column for column in filled if column not in optional[len(optional) - left_out :]]
        grid = _grid(summaries, differs, shown)
        if Measurement.get(WIDE, WIDE.options, grid).minimum <= width:
            break
    grid.caption = caption(results)
    return grid


def _grid(summaries: list[Summary], differs: frozenset[str], columns: list[Column]) -> Table:
    grid = Table(caption_justify="left", header_style="bold", pad_edge=False, box=SIMPLE_HEAD)
    names = [label(s.row, differs) for s in summaries]
    grid.add_column("criterion", width=max(map(len, [*names, "criterion"])), no_wrap=True)
    for column in columns:
        widest = max(map(len, (*map(column.text, summaries), *column.title.split())))
        grid.add_column(column.title, justify="right", width=widest)
    for index, (name, summary) in enumerate(zip(names, summaries, strict=True)):
        following = summaries[index + 1 :][:1]
        last = bool(following) and _section(following[0]) != _section(summary)
        grid.add_row(escape(name), *(escape(column.text(summary)) for column in columns), end_section=last)
    return grid


def _section(summary: Summary) -> tuple[str | None, float | None, str | None]:
    return (summary.row.granularity, summary.row.sparsity, summary.row.budget)


def markdown(results: Results, titles: Sequence[str] | None = None) -> str:
    """Returns the summary as a Markdown table with its conditions below; of the columns `titles`, or of all."""
    summaries, differs = results.summaries(), varied(results)
    chosen = [column for column in columns(summaries) if titles is None or column.title in titles]
    lines = ["| criterion | " + " | ".join(c.title for c in chosen) + " |", "|---" + "|---:" * len(chosen) + "|"]
    lines += [f"| {label(s.row, differs)} | " + " | ".join(c.text(s) for c in chosen) + " |" for s in summaries]
    return "\n".join([*lines, "", caption(results)])


def to_csv(results: Results) -> str:
    """Returns one line a measured row: the results schema but the plugins, and every metric of every task."""
    names = [field.name for field in dataclasses.fields(Row) if field.name not in ("plugins", "tasks")]
    scores = dict.fromkeys((task, metric) for row in results.rows for task in row.tasks for metric in row.tasks[task])
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, *(f"{task} {metric}" for task, metric in scores)])
    writer.writerows(
        [*(getattr(row, name) for name in names), *(row.tasks.get(task, {}).get(metric) for task, metric in scores)]
        for row in results.rows
    )
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
