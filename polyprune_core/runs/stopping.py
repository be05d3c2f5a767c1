"""A search that stops by its loss on text held back: what it looks at, and what is told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from polyprune_core.runs.pooling import selection_losses
from polyprune_core.search.early_stopping import EarlyStopping

if TYPE_CHECKING:
    from torch import Tensor

    from polyprune_core.evaluation.losses import Objective
    from polyprune_core.plugins.contracts import BoundPolicy
    from polyprune_core.pruning.budget import SelectionRule
    from polyprune_core.search.trace import Trace


def stopping(
    patience: int, policy: BoundPolicy, rule: SelectionRule, objective: Objective, windows: Tensor
) -> EarlyStopping:
    """Returns what stops a search by the loss, on `windows` (N, T), of what it would select."""

    def loss(parameters: Tensor) -> float:
        keep = rule.select(policy.ranking(parameters), objective.space).keep
        return selection_losses(objective, [keep], windows)[0]

    return EarlyStopping(loss, patience)


def told(trace: Trace, steps: int) -> str | None:
    """Returns how far a search of so many steps went and what it gave, where it looked at text held back."""
    if trace.held_back is None:
        return None
    looks = {0: trace.held_back} | {each.step: each.held_back for each in trace.steps if each.held_back is not None}
    best = min(looks, key=looks.__getitem__)
    ran = f"all {steps} steps" if len(trace.steps) == steps else f"stopped after {len(trace.steps)} of {steps} steps"
    return (
        f"{ran}; taken is what it had after {best} of them, which loses least on text held back "
        f"({looks[best]:.3f} nats, the start {looks[0]:.3f})"
    )
