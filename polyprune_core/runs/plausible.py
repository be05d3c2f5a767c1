"""What a decision cannot be, checked before anything is reported of it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from polyprune_core.config.cell import Pruned
from polyprune_core.errors import ResultError
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pools import pools
from polyprune_core.pruning.pricing import PricedBudget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.shapes import ANY_SHAPE
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.search.trace import Trace

ROUNDING = 1e-9


def check_decision(
    cell: Pruned, pruned: PrunedModel, terms: PricedBudget, rule: SelectionRule, trace: Trace | None, steps: int
) -> None:
    """Raises ResultError where a decision is not what was asked for, or its figures do not add up.

    `rule` is what selected, `steps` are those that a search was to take.
    """
    for reason in _reasons(cell, pruned, terms, rule, trace, steps):
        raise ResultError(f"{cell.label}: {reason}. The row would say what cannot be, so it is not kept.")


def _reasons(
    cell: Pruned, pruned: PrunedModel, terms: PricedBudget, rule: SelectionRule, trace: Trace | None, steps: int
) -> Iterator[str]:
    space, selection = pruned.space, pruned.selection
    keep = selection.keep
    if keep.dtype != torch.bool or tuple(keep.shape) != (len(space),):
        yield f"what stays is {keep.dtype} {tuple(keep.shape)}, where one truth value for each of {len(space)} units is"
        return
    # Costs of its own, whatever has become of those that plugins were given.
    cost = MaskSpace(space.layout, space.groups, space.name).cost
    if not (torch.equal(cost, space.cost) and torch.equal(cost, terms.space.cost)):
        yield "the units no longer cost what the model's layout says"
    if (selection.kept_cost, selection.total_cost) != (int(cost[keep].sum()), int(cost.sum())):
        found = 1 - float(cost[keep].sum() / cost.sum())
        yield f"a sparsity of {selection.sparsity:.4f} is reported where {found:.4f} of the parameters are removed"
    if cell.sparsity is not None and not math.isclose(cell.sparsity, terms.sparsity, rel_tol=ROUNDING):
        yield f"sparsity {cell.sparsity:g} was asked and {terms.sparsity:g} selected"
    yield from _of_budget(cell, keep, terms, rule)
    for units, group, least in zip(space.slices(), space.groups, rule.least(space), strict=True):
        kept = int(keep[units].sum())
        if kept < least:
            yield f"layer {group.layer} keeps {kept} of its {group.kind} units, where at least {least} were asked"
    counted = sum(math.prod(shape) for shape in pruned.shapes().values())
    counted += sum(pruned.updates[name].numel() for name in pruned.added())
    if pruned.parameters != counted:
        yield f"{pruned.parameters:,} parameters are reported where what is left has {counted:,}"
    stopped = trace is not None and trace.held_back is not None
    if trace is not None and len(trace.steps) != steps and not (stopped and 0 < len(trace.steps) < steps):
        yield f"{len(trace.steps)} steps were taken where {steps} were asked"
    if trace is not None and trace.steps and trace.steps[-1].forward_tokens != trace.forward_tokens:
        yield f"its steps add up to {trace.steps[-1].forward_tokens:,} forward tokens, not to {trace.forward_tokens:,}"


def _of_budget(cell: Pruned, keep: torch.Tensor, terms: PricedBudget, rule: SelectionRule) -> Iterator[str]:
    """Whether each pool keeps what its budget holds: no more, and as much as units and shapes allow."""
    price = terms.space.price
    for pool in pools(terms.space, "kind" if cell.scope == "layer" else cell.scope):
        whole = float(price[pool].sum())
        budget, held = (1 - terms.sparsity) * whole, float(price[pool][keep[pool]].sum())
        gone = price[pool][~keep[pool]]
        fits = rule.shapes == ANY_SHAPE and bool(len(gone)) and float(gone.min()) < budget - held - ROUNDING * whole
        if held > budget + ROUNDING * whole or fits:
            more = ", and what is gone would fit" if fits else ""
            yield f"{held / whole:.4f} of a pool is kept where {cell.asked} leaves {budget / whole:.4f}{more}"
