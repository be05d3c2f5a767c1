"""The pooling of a metric alone, where it is left open: by the loss of its selection on text held back from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, get_args

from polyprune_core.config.cell import AUTO, Metric, Scale, Scope
from polyprune_core.errors import BudgetError

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core.evaluation.losses import Objective
    from polyprune_core.pruning.pricing import PricedBudget

SCOPE_NAMES: tuple[Scope, ...] = get_args(Scope)
SCALE_NAMES: tuple[Scale, ...] = get_args(Scale)
# Tokens that go through the model at a time.
BATCH_TOKENS = 2048


def scales(cell: Metric, comparable: bool) -> tuple[str, ...]:
    """Returns the scales that a cell may take; scores that are comparable already are taken as they are."""
    if cell.scale != AUTO:
        return (cell.scale,)
    return ("raw",) if comparable else SCALE_NAMES


def in_scopes(asked: str, price: Callable[[Scope], PricedBudget]) -> dict[Scope, PricedBudget]:
    """Returns what a budget means in the scope asked, or in each that may be chosen; `price` finds it.

    Raises:
        BudgetError: it cannot be met in any of them.
    """
    found: dict[Scope, PricedBudget] = {}
    refused: list[BudgetError] = []
    for scope in (each for each in SCOPE_NAMES if asked in (AUTO, each)):
        try:
            found[scope] = price(scope)
        except BudgetError as error:
            refused.append(error)
    if not found:
        raise refused[0]
    return found


def most_candidates(cell: Metric, comparable: bool) -> int:
    """Returns how many poolings are tried at most: those that select the same units are tried once."""
    scopes = len(SCOPE_NAMES) if cell.scope == AUTO else 1
    return scopes * len(scales(cell, comparable)) if cell.open else 0


def selection_losses(
    objective: Objective,
    kept: Sequence[Tensor],
    windows: Tensor,
    progress: Callable[[int], None] = lambda done: None,
) -> list[float]:
    """Returns the mean loss in nats per token of each of `kept` (U,) on `windows` (N, T); equal ones are run once.

    A loss that is not finite is infinite. `progress` sees how many are done.
    """
    batches = windows.split(max(1, BATCH_TOKENS // windows.shape[1]))
    found: dict[bytes, float] = {}
    keys = [keep.numpy().tobytes() for keep in kept]
    for done, (key, keep) in enumerate(zip(keys, kept, strict=True), 1):
        if key not in found:
            totals = [float(objective.losses(keep[None], ids)[0]) * len(ids) for ids in batches]
            loss = sum(totals) / len(windows)
            found[key] = loss if math.isfinite(loss) else math.inf
        progress(done)
    return [found[key] for key in keys]
