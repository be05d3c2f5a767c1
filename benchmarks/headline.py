"""The README's headline: what is left of SmolLM2-135M without 30 % of its prunable parameters, by a few criteria."""

from __future__ import annotations

import statistics
from typing import Any

from repaired import HEADLINE_LENGTH, budgets, texts

from polyprune_core.report.columns import number

SPARSITY = 0.3
CALLED = {
    "wiki.test.raw": "WikiText-2",
    "builtin:pydocs": "Python reference",
    "tinystories.txt": "TinyStories (unseen)",
}
# What papers set, the best metrics alone, the best that is done without back-propagation and with it: (metric, repair,
# the forward tokens of a search from the metric).
SHOWN = (
    ("magnitude", "none", ""),
    ("wanda", "none", ""),
    ("flap", "bias", ""),
    ("llm-pruner", "none", ""),
    ("sleb", "none", ""),
    ("thinet", "none", ""),
    ("thinet", "sequential", ""),
    ("thinet", "sequential", "154 k tokens"),
    ("thinet", "distil:start=sequential:tokens=262144:warmup=0", ""),
)


def table(record: dict[str, Any]) -> str:
    """Returns a Markdown table of perplexities, one text a column; no row was calibrated on the last."""
    names = texts(record)
    dense = [row for row in record["rows"] if row["kind"] == "dense" and not row["repair"]]
    rows = [_line("dense model", dense[:1], names)]
    tokens = budgets(record)
    for metric, repair, searched in SHOWN:
        found = [row for row in record["rows"] if _is(row, metric, repair, searched, tokens)]
        if found:
            called = f"`{metric}`, then a search" if searched else f"`{metric}`"
            called += ", whole layers" if found[0]["granularity"] == "layer" else ""
            called += "" if repair == "none" else f", repaired by `{repair.partition(':')[0]}`"
            rows.append(_line(called + (" ∇" if found[0]["backward_passes"] else ""), found, names))
    head = f"| criterion | {' | '.join(CALLED.get(name, name) for name in names)} |"
    return "\n".join([head, "|---|" + "---:|" * len(names), *rows])


def _is(row: dict[str, Any], metric: str, repair: str, searched: str, tokens: dict[str, str]) -> bool:
    if row["status"] != "ok" or (row["initializer"], row["repair"], row["sparsity"]) != (metric, repair, SPARSITY):
        return False
    return row["kind"] == "search" and tokens[row["id"]] == searched if searched else row["kind"] == "baseline"


def _line(called: str, rows: list[dict[str, Any]], names: list[str]) -> str:
    means = (
        statistics.geometric_mean(
            each["perplexity"]
            for row in rows
            for each in row["evaluations"]
            if (each["text"], each["seq_len"]) == (name, HEADLINE_LENGTH)
        )
        for name in names
    )
    return f"| {called} | {' | '.join(number(mean, 0 if mean >= 100 else 1) for mean in means)} |"
