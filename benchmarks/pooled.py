"""What it gains to choose the pooling of a metric's scores by loss, and how few windows of text are enough for that."""

from __future__ import annotations

from typing import Any

from repaired import NONE, texts

from polyprune_core.report.columns import short

# What would be taken without a choice: every layer alike, and scores standardised within their layer.
FIXED = ("layer, raw", "kind, raw", "kind, zscore", "global, raw", "global, per-parameter")


def few_windows(record: dict[str, Any]) -> str:
    """Returns a Markdown table: how much more than the best pooling those lose that few windows choose."""
    rows = record["results"]
    counts = list(dict.fromkeys(row["windows"] for row in rows))
    told = ["| metric | sparsity | " + " | ".join(f"{count} windows" for count in counts) + " |"]
    told.append("|---" + "|---:" * (1 + len(counts)) + "|")
    for metric, sparsity in dict.fromkeys((row["metric"], row["sparsity"]) for row in rows):
        found = [row for row in rows if (row["metric"], row["sparsity"]) == (metric, sparsity)]
        cells = " | ".join(f"{row['mean']:.3f} ({row['worst']:.2f})" for row in found)
        told.append(f"| {metric} | {sparsity:g} | {cells} |")
    return "\n".join(told)


def choices(record: dict[str, Any]) -> str:
    """Returns a Markdown table: nats per token on the windows that decided, by metric, sparsity and pooling."""
    told = [f"| metric | sparsity | chosen | {' | '.join(FIXED)} |", "|---|---:|---|" + "---:|" * len(FIXED)]
    for row in sorted(record["rows"], key=lambda row: (row["initializer"] or "", row["sparsity"] or 0)):
        losses = record["poolings"].get(row["id"])
        if losses is None or row["kind"] != "baseline" or row["repair"] != NONE or row["seed"]:
            continue
        if len(set(losses.values())) == 1:  # all poolings select the same
            continue
        cells = []
        for name in FIXED:
            value = f"{losses[name]:.2f}" if name in losses else ""
            cells.append(f"**{value}**" if losses.get(name) == min(losses.values()) else value)
        chosen = f"{row['scope_chosen']}, {row['scale_chosen']}"
        told.append(f"| {row['initializer']} | {row['sparsity']:g} | {chosen} | {' | '.join(cells)} |")
    return "\n".join(told)


def gains(record: dict[str, Any]) -> str:
    """Returns a Markdown table: nats over the dense model in the chosen pooling, and the best and worst fixed."""
    rows = [row for row in record["rows"] if row["kind"] == "baseline" and row["status"] == "ok"]
    names = texts(record)
    told = [f"| metric | sparsity | chosen | forward tokens | without a choice | {' | '.join(names)} |"]
    told.append("|---|---:|---|---:|---:" + "|---:" * len(names) + "|")
    for metric, sparsity in sorted({(row["initializer"], row["sparsity"]) for row in rows}):
        here = [row for row in rows if (row["initializer"], row["sparsity"]) == (metric, sparsity)]
        (chosen,) = (row for row in here if row["scope"] == "auto")
        fixed = [row for row in here if row["scope"] != "auto"]
        tokens = [short(row["forward_tokens"]) for row in (chosen, fixed[0])]
        cells = [_beside(chosen, fixed, name) for name in names]
        pooling = f"{chosen['scope_chosen']}, {chosen['scale_chosen']}"
        told.append(f"| {' | '.join([metric, f'{sparsity:g}', pooling, *tokens, *cells])} |")
    return "\n".join(told)


def _beside(chosen: dict[str, Any], fixed: list[dict[str, Any]], text: str) -> str:
    ours, *others = (
        next(each["excess"] for each in one["evaluations"] if each["text"] == text) for one in (chosen, *fixed)
    )
    return f"{ours:.2f} ({min(others):.2f} to {max(others):.2f})"
