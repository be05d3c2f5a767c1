"""A plan as a table that fits 80 columns, or as JSON."""

from __future__ import annotations

import json

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from polyprune_core.cli.live import duration
from polyprune_core.errors import ConfigError
from polyprune_core.report import PIPED_WIDTH, label, short
from polyprune_core.runs.dry_run import Plan
from polyprune_core.utils.numbers import finite

FORMATS = ("table", "json")
STYLES = {"finished": "green", "started": "cyan", "broken": "red", "to do": "", "not known": "dim"}


def check_format(form: str) -> None:
    """Raises ConfigError unless a plan can be shown so."""
    if form not in FORMATS:
        raise ConfigError(f"--dry-run prints a table or json, not {form}; give --format table or json.")


def write(plan: Plan, form: str, varied: frozenset[str]) -> None:
    """Prints the plan to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH, highlight=False)
    if form == "json":
        console.file.write(json.dumps(finite(plan.to_json()), indent=1, allow_nan=False) + "\n")
        return
    console.print(table(plan, varied))
    for name, text in _totals(plan).items():
        console.print(f"{name:<15} {escape(text)}", soft_wrap=True)


def table(plan: Plan, varied: frozenset[str]) -> Table:
    """Returns a row for every cell."""
    grid = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    grid.add_column("cell", overflow="fold")
    for title in ("sparsity", "seed", "forward\ntokens"):
        grid.add_column(title, justify="right", no_wrap=True)
    grid.add_column("state", no_wrap=True)
    for cell in plan.cells:
        row, style = cell.row, STYLES[cell.state]
        asked = row.cell.budget if row.cell.sparsity is None else f"{row.cell.sparsity:g}"
        texts = [escape(asked or ""), "" if row.cell.seed is None else str(row.cell.seed)]
        state = f"[{style}]{cell.state}[/]" if style else cell.state
        grid.add_row(escape(label(row, varied)), *texts, f"{cell.forward_tokens:,}", state)
    return grid


def _totals(plan: Plan) -> dict[str, str]:
    states = [cell.state for cell in plan.cells]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STYLES if state in states)
    speed, memory = plan.speed, plan.memory_mb
    totals = {
        "cells": f"{len(states)}: {counts}",
        "parameters": _parameters(plan),
        "forward tokens": f"{plan.forward_tokens:,} in the table; {plan.work:,} to go, evaluations included",
        "time": f"not known: {speed.source}",
        "memory": f"not known: {memory.source}",
    }
    if plan.seconds is not None:
        totals["time"] = f"about {duration(plan.seconds)} at {speed.value:,.0f} tokens a second ({speed.source})"
    if memory.value is not None:
        totals["memory"] = f"about {memory.value:,.0f} MB ({memory.source})"
    return totals | {"note" + " " * index: note for index, note in enumerate(plan.notes)}


def _parameters(plan: Plan) -> str:
    if plan.parameters is None:
        return "not known: the model is not on this machine"
    return f"{short(plan.parameters)}" + "".join(f"; {name}: {_left(plan, name)}" for name in plan.prunable)


def _left(plan: Plan, granularity: str) -> str:
    """What a granularity may remove, and about how many parameters each budget leaves."""
    budgets = {each.row.cell.asked: each.parameters for each in plan.cells if each.row.cell.granularity == granularity}
    told = [f"{asked} leaves {short(left)}" for asked, left in budgets.items() if left is not None]
    return ", ".join([f"{short(plan.prunable[granularity])} prunable", *told])
