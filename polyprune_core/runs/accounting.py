"""What the cells of a comparison would leave of a model, found on the meta device: without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from polyprune_core.config.cell import Cell, Pruned
from polyprune_core.config.grid import cells
from polyprune_core.config.settings import Comparison
from polyprune_core.models.checkpoint import stored_dtype
from polyprune_core.models.describe import describe
from polyprune_core.models.placement import pick_device, pick_dtype
from polyprune_core.models.reading import model_without_weights
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pricing import ADDITIVE, PricedBudget, Sizes, price_sum
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.runs.asked_shapes import legal_shapes
from polyprune_core.runs.pooling import in_scopes


@dataclass(frozen=True)
class Account:
    """Parameters of the model, units and parameters that each granularity may remove, and about what each cell leaves.

    A cell whose budget has to be measured is left out.
    """

    parameters: int
    units: Mapping[str, int]
    prunable: Mapping[str, int]
    left: Mapping[Cell, int]


@dataclass(frozen=True)
class _Sizes:
    """Bytes of a number as the model computes and as its files store it."""

    itemsize: int
    stored_itemsize: int


def account(folder: Path, config: Comparison, registry: Registry) -> Account:
    """Returns the account of a comparison on the model in `folder`.

    Raises:
        ModelError: no family describes the model.
        BudgetError: a budget cannot be met.
    """
    layout, stored = describe(model_without_weights(folder, config.trust_remote_code)), stored_dtype(folder)
    computed = pick_dtype(config.dtype, pick_device(config.device), stored)
    sizes = _Sizes(computed.itemsize, getattr(torch, stored).itemsize)
    spaces = {name: registry.space(name, layout) for name in config.granularity}
    asked = [cell for cell in cells(config) if isinstance(cell, Pruned) and cell.target.currency in ADDITIVE]
    removed = {cell: _removed(cell, config, spaces[cell.granularity], sizes, registry) for cell in asked}
    total = layout.total_parameters
    return Account(
        total,
        {name: len(space) for name, space in spaces.items()},
        {name: space.total_cost for name, space in spaces.items()},
        {cell: total - gone for cell, gone in removed.items()},
    )


def _removed(cell: Pruned, config: Comparison, space: MaskSpace, sizes: Sizes, registry: Registry) -> int:
    """Returns the parameters that a selection under the cell's budget removes, in the first scope that can meet it."""
    shapes, protect, least = legal_shapes(cell.shapes, space.layout, registry), config.protected, config.min_keep

    def price(scope: str) -> PricedBudget:
        return price_sum(cell.target, space, scope, least, sizes, protect, shapes)

    scope, terms = next(iter(in_scopes(cell.scope, price).items()))
    rule = SelectionRule(terms.sparsity, scope, least, shapes, protect)
    selection = rule.select(torch.arange(len(space), 0, -1.0), terms.space)
    return selection.total_cost - selection.kept_cost
