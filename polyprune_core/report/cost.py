"""What each criterion cost."""

from __future__ import annotations

from collections.abc import Callable

from polyprune_core.report.arrange import AS_RUN, TARGET, Arrangement
from polyprune_core.report.columns import number
from polyprune_core.report.naming import label, varied
from polyprune_core.report.sheet import Band, Cell, Sheet, heading
from polyprune_core.results.results import Results
from polyprune_core.results.summaries import Summary

COSTS: dict[str, Callable[[Summary], str]] = {
    "budget": lambda s: s.row.cell.budget or "",
    "sparsity": lambda s: "" if s.row.cell.sparsity is None else f"{s.row.cell.sparsity:g}",
    "n": lambda s: str(len(s.rows)),
    "forward passes": lambda s: f"{s.row.forward_passes:,}",
    "forward tokens": lambda s: f"{s.row.forward_tokens:,}",
    "backward passes": lambda s: f"{s.row.backward_passes:,}",
    "seconds": lambda s: number(s.row.search_seconds, 1),
    "peak MB": lambda s: number(s.row.peak_memory_mb, 0),
    "non-finite losses": lambda s: str(s.row.non_finite_losses),
}


def cost_sheet(results: Results, arrangement: Arrangement = AS_RUN) -> Sheet:
    """Returns passes, tokens, time and memory of deciding what to remove; evaluation is not counted."""
    differs = varied(results)
    groups = arrangement.groups(results)
    summaries = [summary for _, group in groups for summary in group]
    bands = tuple(
        Band(title, tuple((Cell(label(s.row, differs)), *(Cell(text(s)) for text in COSTS.values())) for s in group))
        for title, group in groups
    )
    where = results.environment
    processor = where.get("gpu") or where.get("cpu") or "an unknown processor"
    note = (
        "Passes, tokens and non-finite losses are those of one seed, seconds the mean over seeds, memory the highest. "
        f"The passes of a search include those of its metric. On {processor}; threads: {where.get('threads', '?')}."
    )
    sheet = Sheet(f"Cost, {heading(results)}", ("criterion", *COSTS), bands, note)
    return sheet.without([title for title in TARGET if not any(map(COSTS[title], summaries))])
