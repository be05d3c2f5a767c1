"""What a repair owes: values that fit the model that is left, from the text it is given, and the same in every form."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import PluginError
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.contracts import adds_biases
from polyprune_core.plugins.registry import Registered, load_registry
from polyprune_core.plugins.validation import check_updates
from polyprune_core.pruning.mask_file import MaskFile, write_masks
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.writable import write_model
from polyprune_core.testing.checking import check, global_randomness_unused, made, require, require_close
from polyprune_core.testing.tiny import (
    FAMILIES,
    logits_of,
    tiny_base,
    tiny_calibration,
    tiny_pruned,
    tiny_space,
)
from polyprune_core.testing.untouched import Snapshot, Stop, stopped_in
from polyprune_core.utils.rng import generator

FITS, USES_NO_RANDOMNESS = "updates_fit_what_is_left", "repairing_uses_no_global_randomness"
ALONE = "repair_leaves_its_inputs_alone"
ROUNDING = 1e-5  # float32 sums in another order
CLOSE = 0.02  # of the largest logit, where nothing was removed
EMPTIED = ("layers.1.mlp", "layers.2.attention")


@contextmanager
def _base(family: str = FAMILIES[0]) -> Iterator[LoadedModel]:
    with tempfile.TemporaryDirectory(prefix="polyprune-check-") as folder:
        yield tiny_base(Path(folder).resolve() / "base", family)


def _pruned(base: LoadedModel, *, whole: bool = False, emptied: tuple[str, ...] = ()) -> PrunedModel:
    """Returns a pruned model of heads and channels; of the axes `emptied` nothing is kept."""
    space = tiny_space(base.model)
    keep = torch.rand(len(space), generator=generator(0, "repaired")) < (2 if whole else 0.6)
    for where, group in zip(space.slices(), space.groups, strict=True):
        keep[where.start] = True
        if group.spans[0][0] in emptied:
            keep[where] = False
    return tiny_pruned(base, space, keep)


def _repaired(plugin: Registered, pruned: PrunedModel, calibration: Calibration | None = None) -> PrunedModel:
    updates = made(plugin).repair(pruned, calibration or tiny_calibration(pruned.base.model))
    return dataclasses.replace(pruned, updates=_own(updates))


def _own(updates: Any) -> Any:
    return {name: value.clone() for name, value in updates.items()} if isinstance(updates, Mapping) else updates


def _compact(pruned: PrunedModel) -> Tensor:
    keep = pruned.axis_keep()
    with Compactor(pruned.base.model, pruned.layout) as compactor, compactor.applied(keep, pruned.updates) as model:
        return logits_of(model)


@check("repair", "builds_with_its_defaults")
def updates_fit_what_is_left(plugin: Registered) -> None:
    """Updates are finite, named as in the dense model and shaped as what is left, whatever was removed."""
    for family in FAMILIES:
        with _base(family) as base:
            cases: dict[str, dict[str, Any]] = {
                "some units removed": {},
                "two sublayers emptied": {"emptied": EMPTIED},
                "nothing removed": {"whole": True},
            }
            for name, case in cases.items():
                updates = made(plugin).repair(_pruned(base, **case), tiny_calibration(base.model))
                try:
                    check_updates(updates, "it", _pruned(base, **case))
                except PluginError as error:
                    raise AssertionError(f"{name} from a {family}: {error}") from error


@check("repair", FITS)
def repair_costs_are_declared(plugin: Registered) -> None:
    """A repair that reads text declares `calibration`, one that back-propagates `gradients`; every pass is counted."""
    with _base() as base:
        calibration, passes = tiny_calibration(base.model), 0

        def count(*_: object) -> None:
            nonlocal passes
            passes += 1

        with base.model.get_input_embeddings().register_forward_hook(count):
            made(plugin).repair(_pruned(base), calibration)
        counted = calibration.forward_passes
        require(
            passes <= counted,
            f"the model ran {passes} times and {counted} passes are counted; take text from `calibration.batches()`",
        )
        for need, number in (("calibration", counted), ("gradients", calibration.backward_passes)):
            require(need in plugin.provider.needs or not number, f"it made {number} passes; add {need!r} to its needs")


@check("repair", FITS)
def added_biases_are_declared(plugin: Registered) -> None:
    """`adds_biases`, of the repair or of its `start`, says whether readers get biases that had none."""
    told = adds_biases(made(plugin), lambda spec: load_registry().build("repair", spec))
    with _base() as base:
        added = _repaired(plugin, _pruned(base)).added()
    require(told or not added, f"it adds {', '.join(added[:1])}; declare adds_biases = True")
    require(added or not told, "adds_biases is True, and it adds none to a model without biases; leave it out")


@check("repair", FITS, "building_uses_no_global_randomness")
def repairing_uses_no_global_randomness(plugin: Registered) -> None:
    """Repairing neither draws from nor seeds a generator that others share: there is `calibration.rng`."""
    with _base() as base:
        pruned = _pruned(base)
        with global_randomness_unused():
            made(plugin).repair(pruned, tiny_calibration(base.model))


@check("repair", FITS, USES_NO_RANDOMNESS)
def same_calibration_gives_the_same_updates(plugin: Registered) -> None:
    """The same model, text and seed give the same bits."""
    with _base() as base:
        first, again = (_repaired(plugin, _pruned(base)).updates for _ in range(2))
        require(first.keys() == again.keys(), "two runs changed different parameters")
        differing = [name for name, value in first.items() if not torch.equal(value, again[name])]
        require(not differing, f"two runs gave different values of {', '.join(differing[:3])}")


@check("repair", FITS)
def repair_leaves_its_inputs_alone(plugin: Registered) -> None:
    """The dense model's weights, hooks and flags, and the selection, are as before."""
    for family in FAMILIES:
        with _base(family) as base:
            pruned, before = _pruned(base), Snapshot(base.model)
            keep = pruned.selection.keep.clone()
            made(plugin).repair(pruned, tiny_calibration(base.model))
            before.require_as_it_was()
            require(torch.equal(pruned.selection.keep, keep), "the selection was changed")


@check("repair", FITS, ALONE)
def interrupted_repair_leaves_the_model_as_it_was(plugin: Registered) -> None:
    """Stopped inside the model, it leaves weights, hooks and flags as they were."""
    with _base() as base:
        pruned = _pruned(base)
        with stopped_in(base.model, "model.layers.2.mlp"):
            before = Snapshot(base.model)
            with contextlib.suppress(Stop, Exception):  # whatever it makes of the interruption
                made(plugin).repair(pruned, tiny_calibration(base.model))
            before.require_as_it_was()


@check("repair", FITS, ALONE)
def repaired_models_agree_in_every_form(plugin: Registered) -> None:
    """The model cut in memory, the one built, and those exported and read back, as folder and as masks, are one."""
    for family in FAMILIES:
        with _base(family) as base:
            pruned = _repaired(plugin, _pruned(base, emptied=EMPTIED))
            expected = _compact(pruned)
            built = pruned.build()
            forms: dict[str, nn.Module] = {"built": built} | _read_back(pruned)
            for name, model in forms.items():
                what = f"logits of the model {name} and of the one cut in memory, both repaired"
                require_close(logits_of(model), expected, ROUNDING, what)
            count = built.num_parameters()
            require(pruned.parameters == count, f"{pruned.parameters:,} parameters are told; {count:,} are there")


def _read_back(pruned: PrunedModel) -> dict[str, nn.Module]:
    with tempfile.TemporaryDirectory(prefix="polyprune-check-") as folder:
        whole, masks = Path(folder) / "whole", Path(folder) / "masks"
        whole.mkdir()
        masks.mkdir()
        write_model(pruned, whole, torch.float32, "5GB", {})
        write_masks(pruned, masks)
        return {
            "read back from a folder": load_model(str(whole), dtype="float32", device="cpu").model,
            "read back from masks": MaskFile.read(masks).apply(pruned.base).build(),
        }


@check("repair", FITS, ALONE, excusable=True)
def nothing_removed_needs_no_repair(plugin: Registered) -> None:
    """Where every unit stays the logits stay about those of the dense model."""
    for family in FAMILIES:
        with _base(family) as base:
            pruned = _repaired(plugin, _pruned(base, whole=True))
            what = "logits of the dense model, and after a repair with nothing removed"
            require_close(_compact(pruned), logits_of(base.model), CLOSE, what)
