"""What it gains to choose the pooling of a metric's scores by loss: the choice, and what the others would have lost."""

from __future__ import annotations

from typing import Any

from repaired import NONE

# What would be taken without a choice: every layer alike, and scores standardised within their layer.
FIXED = ("layer, raw", "kind, raw", "kind, zscore", "global, raw", "global, per-parameter")


def choices(record: dict[str, Any]) -> str:
    """Returns a Markdown table: nats per token on the windows that decided, by metric, sparsity and pooling."""
    told = [f"| metric | sparsity | chosen | {' | '.join(FIXED)} |", "|---|---:|---|" + "---:|" * len(FIXED)]
    for row in sorted(record["rows"], key=lambda row: (row["initializer"] or "", row["sparsity"] or 0)):
        losses = record["poolings"].get(row["id"])
        if losses is None or row["kind"] != "baseline" or row["repair"] != NONE or row["seed"]:
            continue
        cells = []
        for name in FIXED:
            value = f"{losses[name]:.2f}" if name in losses else ""
            cells.append(f"**{value}**" if losses.get(name) == min(losses.values()) else value)
        chosen = f"{row['scope_chosen']}, {row['scale_chosen']}"
        told.append(f"| {row['initializer']} | {row['sparsity']:g} | {chosen} | {' | '.join(cells)} |")
    return "\n".join(told)
