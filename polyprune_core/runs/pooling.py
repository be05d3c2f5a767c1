"""The pooling of a metric alone, where it is left open: by the loss of its selection on text held back from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, get_args

from polyprune_core.config.cell import AUTO, Metric, Scale, Scope

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core.evaluation.losses import Objective

SCOPE_NAMES: tuple[Scope, ...] = get_args(Scope)
SCALE_NAMES: tuple[Scale, ...] = get_args(Scale)
# Tokens that go through the model at a time.
BATCH_TOKENS = 2048


def scales(cell: Metric, comparable: bool) -> tuple[str, ...]:
    """Returns the scales that a cell may take; scores that are comparable already are taken as they are."""
    if cell.scale != AUTO:
        return (cell.scale,)
    return ("raw",) if comparable else SCALE_NAMES


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
