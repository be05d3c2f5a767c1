"""One HTML page of a report: self-contained, without script, everything escaped."""

from __future__ import annotations

from dataclasses import dataclass

from polyprune_core.errors import counted
from polyprune_core.report import charts
from polyprune_core.report.agreement import agreement_sheets
from polyprune_core.report.arrange import AS_RUN, Arrangement
from polyprune_core.report.charts import Chart
from polyprune_core.report.columns import MARKS, columns, number
from polyprune_core.report.commands import command, command_of
from polyprune_core.report.cost import cost_sheet
from polyprune_core.report.curves import curves
from polyprune_core.report.dots import Dots, dot_plots
from polyprune_core.report.html import rendered
from polyprune_core.report.kept import kept_sheets
from polyprune_core.report.load import Loaded, MergedResults
from polyprune_core.report.naming import criterion, label, section, varied
from polyprune_core.report.sheet import Sheet, heading, summary_sheet
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary
from polyprune_core.version import __version__

# The page has a table of costs.
IN_COSTS = ("forward tokens", "backward passes", "seconds", "peak MB")


@dataclass(frozen=True)
class Source:
    """How one row is made again."""

    name: str
    asked: str
    command: str
    cells: tuple[tuple[str, str], ...]
    plugins: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """One comparison on the page."""

    title: str
    findings: tuple[str, ...]
    summary: Sheet
    trade_offs: list[Chart]
    dots: list[Dots]
    searches: list[Chart]
    kept: list[Sheet]
    agreement: list[Sheet]
    cost: Sheet
    commands: tuple[str, ...]
    sources: tuple[Source, ...]
    facts: dict[str, str]
    traced: bool


def page(loaded: Loaded, arrangement: Arrangement = AS_RUN) -> str:
    """Returns the page of all comparisons."""
    parts = [_part(comparison, arrangement) for comparison in loaded.comparisons]
    return rendered("page.html", parts=parts, notes=loaded.notes, version=__version__, chart=charts)


def findings(results: Results, arrangement: Arrangement = AS_RUN) -> list[str]:
    """Returns for each granularity and budget which row has the lowest perplexity, and what that is worth."""
    differs = varied(results)
    sections: dict[str, list[Summary]] = {}
    for _, group in arrangement.groups(results):
        for summary in group:
            if summary.perplexity and summary.row.cell.kind != "dense":
                sections.setdefault(section(summary.row), []).append(summary)
    said = []
    for where, summaries in sections.items():
        first = min(summaries, key=lambda s: s.perplexity.mean if s.perplexity else 0.0)
        worth = (
            "better than every other row beyond the noise"
            if first.best
            else "not shown to be better than every other row"
        )
        mean = number(first.perplexity.mean if first.perplexity else None)
        said.append(
            f"{where}: lowest mean perplexity {mean} by {label(first.row, differs)} (n {len(first.rows)}), {worth}."
        )
    compared = [s.versus.verdict for section in sections.values() for s in section if s.versus]
    if compared:
        counts = {verdict: compared.count(verdict) for verdict in (*MARKS, "no difference shown")}
        told = "; ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
        against = "its own start" if len(compared) == 1 else "their own starts"
        said.append(f"{counted(len(compared), 'search', 'searches')} against {against}: {told}.")
    return said


def _part(comparison: MergedResults, arrangement: Arrangement) -> Part:
    results = comparison.results
    summaries = [summary for _, group in arrangement.groups(results) for summary in group]
    differs = varied(results)
    names = dict.fromkeys(criterion(s.row, differs) for s in summaries if s.row.cell.kind != "dense")
    styles = {name: index for index, name in enumerate(names)}
    lines = curves(results, summaries, comparison.folders)
    return Part(
        title=heading(results),
        findings=tuple(findings(results, arrangement)),
        summary=summary_sheet(results, arrangement, [column.title for column in columns(summaries)]).without(IN_COSTS),
        trade_offs=charts.trade_offs(results, summaries, styles),
        dots=dot_plots(results, summaries),
        searches=[charts.searches(title, found, styles) for title, found in lines.items()],
        kept=kept_sheets(results, arrangement),
        agreement=agreement_sheets(results, arrangement),
        cost=cost_sheet(results, arrangement),
        commands=tuple(dict.fromkeys(command(run["config"]) for run in comparison.runs)),
        sources=tuple(_source(s, results, differs) for s in summaries),
        facts=_facts(results),
        traced=bool(lines) or all(summary.row.cell.kind != "search" for summary in summaries),
    )


def _source(summary: Summary, results: Results, differs: frozenset[str]) -> Source:
    row = summary.row
    return Source(
        name=label(row, differs),
        asked=row.cell.asked if row.cell.target else "",
        command=command_of(summary, results.config),
        cells=tuple((r.id, "" if r.cell.seed is None else f"seed {r.cell.seed}") for r in summary.rows),
        plugins=tuple(f"{role}: {source}" for role, source in row.plugins.items()),
    )


def _facts(results: Results) -> dict[str, str]:
    model, texts, where = results.model, results.texts, results.environment
    facts = {
        "model": f"{model['name']}, {model['parameters']:,} parameters, {model['dtype']} on {model['device']}",
        "weights": model.get("source"),
        "weights, sha256": model.get("sha256"),
        "polyprune": results.polyprune,
        "environment": ", ".join(f"{name} {value}" for name, value in where.items() if value is not None),
    }
    named = [("calibration text", texts["calibration"]), ("evaluation text", texts["evaluation"])]
    further = enumerate(texts.get("evaluations") or (), 1)
    for what, text in [*named, *((f"evaluation {place}", each) for place, each in further if place > 1)]:
        cut = f"{text['windows']:,} windows of {text['tokens_per_window']} tokens"
        facts[what] = f"{text['name']}, {cut}, sha256 {text['sha256']}"
    return {name: str(value) for name, value in facts.items() if value}
