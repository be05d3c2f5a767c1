"""What a family owes: tiny models of each of its types that are one model gated, cut, written and read back.

Everything is tried on the units of every kind that the family describes, evenly and unevenly cut.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import PolypruneError
from polyprune_core.evaluation.losses import last_hidden
from polyprune_core.models.describe import describe
from polyprune_core.models.families import FamilyFile, also, family_of
from polyprune_core.models.heads import logits_head
from polyprune_core.models.layout import ModelLayout
from polyprune_core.models.quiet import quiet
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.guard import FAULTS, described, require_no_interrupt
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import UnitGroup
from polyprune_core.pruning.writable import write_model
from polyprune_core.testing.checking import require, require_close, world_restored
from polyprune_core.testing.kit import CheckResult
from polyprune_core.testing.tiny import logits_of, tiny_model, tiny_pruned, tiny_tokenizer, tiny_windows
from polyprune_core.utils.rng import generator

# Float32 sums in another order, over three layers.
ROUNDING = 1e-5
Checked = Callable[[str], None]
FAMILY_CHECKS: list[Checked] = []


def _check(run: Checked) -> Checked:
    FAMILY_CHECKS.append(run)
    return run


@cache
def _model(model_type: str) -> Any:
    with quiet():
        return tiny_model(model_type)


def kinds_of(layout: ModelLayout) -> list[str]:
    """Returns the kinds of axes and views in a layout, in their order."""
    return list(dict.fromkeys(axis.kind for axis in layout.axis.values()))


def space_of(layout: ModelLayout, kind: str) -> MaskSpace:
    """Returns the units of one kind, as fine as the entries can be cut."""
    return MaskSpace(layout, [UnitGroup.finest(kind, axis) for axis in layout.of_kind(kind)], kind)


def masks_of(space: MaskSpace) -> Iterator[tuple[str, Tensor]]:
    """Yields names of masks and masks (U,): a draw with the first unit of each group, layers alike, a sublayer gone."""
    keep = torch.rand(len(space), generator=generator(0, "family masks")) < 0.5
    for where, least in zip(space.slices(), space.floors, strict=True):
        keep[where.start : where.start + max(1, least)] = True
    yield f"half of {space.name} kept", keep
    alike = torch.zeros(len(space), dtype=torch.bool)
    for where, group, least in zip(space.slices(), space.groups, space.floors, strict=True):
        alike[where.start : where.start + max(1, least, group.count // 2)] = True
    if not alike.all():
        yield f"as many of {space.name} kept in every layer", alike
    if not any(space.floors):
        keep = torch.ones(len(space), dtype=torch.bool)
        keep[space.slices()[0]] = False
        yield f"the first {space.name} sublayer gone", keep


@dataclass(frozen=True, eq=False)
class Case:
    """One mask (U,) of a tiny model, and what is made of it: each once, and looked at by all checks."""

    name: str
    model: Any
    space: MaskSpace
    keep: Tensor

    def pruned_from(self, base: LoadedModel) -> PrunedModel:
        """Returns `base`, which is the same model, without what the mask removes."""
        return tiny_pruned(base, self.space, self.keep)

    @cached_property
    def pruned(self) -> PrunedModel:
        """The model without what the mask removes."""
        return self.pruned_from(LoadedModel("tiny", self.model, tiny_tokenizer(), "", None))

    @cached_property
    def built(self) -> Any:
        """The smaller model."""
        with quiet():
            return self.pruned.build()

    @cached_property
    def gated(self) -> Tensor:
        """Logits of the whole model, multiplied by the mask."""
        with gated(self.model, self.space.layout, self.space.axis_keep(self.keep)):
            return logits_of(self.model)


def _cases(model_type: str) -> tuple[Case, ...]:
    return _cases_of(model_type, repr(family_of(model_type)))


@lru_cache(maxsize=1)
def _cases_of(model_type: str, _described: str) -> tuple[Case, ...]:
    """Returns the cases of a type, as its family describes it now: the checks of one type come after one another."""
    model = _model(model_type)
    layout = describe(model)
    spaces = [space_of(layout, kind) for kind in kinds_of(layout)]
    return tuple(Case(name, model, space, keep) for space in spaces for name, keep in masks_of(space))


def _uneven(model_type: str) -> list[Case]:
    """Returns one case for each kind."""
    first: dict[str, Case] = {}
    for case in _cases(model_type):
        first.setdefault(case.space.name, case)
    return list(first.values())


@_check
def layers_and_sublayers_are_found(model_type: str) -> None:
    """The layout names axes in the layers, and their parameters add up to no more than the model's."""
    layout = describe(_model(model_type))
    require(layout.axes, "there is nothing that can be cut")
    inside = sum(axis.size * axis.entry_parameters + axis.module_parameters for axis in layout.axes)
    require(0 < inside < layout.total_parameters, f"{inside} of {layout.total_parameters} parameters can be pruned")
    require(all(axis.module_parameters >= 0 for axis in layout.axes), "entries own more than their sublayer has")


@_check
def last_hidden_states_give_the_logits(model_type: str) -> None:
    """The output layer, scaled and capped as the family says, gives the model's own logits."""
    model = _model(model_type)
    with torch.no_grad():
        found = logits_head(model)(last_hidden(model, tiny_windows()))
    require_close(found, logits_of(model), ROUNDING, "logits")


@_check
def keeping_all_changes_no_bit(model_type: str) -> None:
    """With everything kept, the gated model, the compacted one and the one that is built give the model's own bits."""
    model = _model(model_type)
    layout = describe(model)
    whole = logits_of(model)
    for kind in kinds_of(layout):
        space = space_of(layout, kind)
        case = Case(kind, model, space, torch.ones(len(space), dtype=torch.bool))
        require(torch.equal(case.gated, whole), f"gated {kind} is another model with all kept")
        with Compactor(model, layout) as compactor, compactor.applied(space.axis_keep(case.keep)):
            require_close(logits_of(model), whole, ROUNDING, f"compacted {kind} with all kept")
        require(torch.equal(logits_of(case.built), whole), f"built {kind} with all kept")


@_check
def gated_is_compact(model_type: str) -> None:
    """Multiplying by the mask gives what running the smaller model in place gives."""
    for case in _cases(model_type):
        keep, expected = case.space.axis_keep(case.keep), case.gated
        with Compactor(case.model, case.space.layout) as compactor, compactor.applied(keep):
            require_close(logits_of(case.model), expected, ROUNDING, case.name)


@_check
def built_is_gated_and_as_large_as_said(model_type: str) -> None:
    """The smaller model gives the gated one's logits, and has the parameters that its price says."""
    for case in _cases(model_type):
        require_close(logits_of(case.built), case.gated, ROUNDING, case.name)
        found, expected = sum(parameter.numel() for parameter in case.built.parameters()), case.pruned.parameters
        require(found == expected, f"{case.name}: {found} parameters, of which {expected} were expected")


@_check
def written_and_read_back_is_gated(model_type: str) -> None:
    """The folder that is written loads to a model with the gated one's logits."""
    with tempfile.TemporaryDirectory() as dense, quiet():
        _model(model_type).save_pretrained(dense)
        tiny_tokenizer().save_pretrained(dense)
        base = load_model(dense, dtype="float32", device="cpu")
        for case in _uneven(model_type):
            with tempfile.TemporaryDirectory() as folder:
                write_model(case.pruned_from(base), Path(folder), torch.float32, "5GB", {})
                read = load_model(folder, dtype="float32", device="cpu").model
            require_close(logits_of(read), case.gated, ROUNDING, case.name)


@_check
def generation_with_a_cache_is_that_without(model_type: str) -> None:
    """The smaller model generates the same tokens with its cache and without it."""
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    for case in _uneven(model_type):
        with quiet():
            with_, without = (
                case.built.generate(tiny_windows()[:2], use_cache=use, **options) for use in (True, False)
            )
        require(torch.equal(with_, without), f"{case.name}: other tokens with the cache")


@_check
def padding_on_the_left_changes_nothing(model_type: str) -> None:
    """A text with padding before it gets the same logits from the smaller model."""
    ids = tiny_windows()[:2, :6]
    padded = torch.cat([torch.ones(2, 2, dtype=ids.dtype), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 2, dtype=ids.dtype), torch.ones_like(ids)], dim=1)
    for case in _uneven(model_type):
        with quiet(), torch.no_grad():
            alone = case.built(input_ids=ids, use_cache=False).logits
            places = (mask.cumsum(1) - 1).clamp(min=0)
            told = {"position_ids": places} if _takes_places(case.built) else {}
            after = case.built(input_ids=padded, attention_mask=mask, use_cache=False, **told).logits[:, 2:]
        require_close(after, alone, 10 * ROUNDING, case.name)


def _takes_places(model: nn.Module) -> bool:
    import inspect

    return "position_ids" in inspect.signature(model.forward).parameters


def run_family_checks(file: FamilyFile) -> list[CheckResult]:
    """Returns the result of every check on a tiny model of every type that a file of families describes."""
    results = []
    for family, model_type in [(one, model_type) for one in file.families for model_type in one.model_types]:
        for check in FAMILY_CHECKS:
            status, message = "passed", ""
            if model_type not in family.tiny:
                status, message = "not run", f"[{family.name}.tiny] has no {model_type}: what a tiny model of it needs"
            else:
                try:
                    with world_restored():
                        check(model_type)
                except FAULTS as error:
                    require_no_interrupt(error)
                    own = isinstance(error, AssertionError | PolypruneError)
                    status, message = "failed", str(error) if own else described(error)
            results.append(CheckResult("family", model_type, check.__name__, status, message))  # type: ignore[arg-type]
    return results


def family_tests(path: str | Path) -> Callable[..., None]:
    """Returns a test function for pytest, with one case for every check of every model type in a file of families.

    Raises:
        ModelError: the file cannot be used.
    """
    import pytest

    with also(Path(path)) as file:
        cases = [(kind, check) for family in file.families for kind in family.model_types for check in FAMILY_CHECKS]

    @pytest.mark.parametrize(("model_type", "check"), cases, ids=[f"{kind}-{check.__name__}" for kind, check in cases])
    def test_family(model_type: str, check: Checked) -> None:
        with also(Path(path)), world_restored():
            check(model_type)

    run: Callable[..., None] = test_family
    return run
