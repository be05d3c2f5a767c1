"""Repairs: what they may change, and that the change is the same in memory, built, exported and read back."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from polyprune_core.errors import PluginError
from polyprune_core.evaluation.losses import token_losses
from polyprune_core.plugins.guard import Guarded
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.mask_file import MaskFile
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.testing.tiny import tiny_base, tiny_calibration, tiny_pruned, tiny_space, tiny_windows
from polyprune_plugins.exporters.huggingface import HuggingFace
from polyprune_plugins.exporters.masks import Masks
from polyprune_plugins.repairs.bias import Bias

EMPTIED = "layers.1.mlp"


@pytest.fixture(params=["llama", "qwen2"])
def pruned(request, tmp_path):
    base = tiny_base(tmp_path / "base", request.param)
    space = tiny_space(base.model)
    keep = torch.rand(len(space), generator=torch.Generator().manual_seed(0)) < 0.6
    for where, group in zip(space.slices(), space.groups, strict=True):
        keep[where.start] = True
        if group.spans[0][0] == EMPTIED:
            keep[where] = False
    return tiny_pruned(base, space, keep)


def repaired(pruned):
    return replace(pruned, updates=Bias().repair(pruned, tiny_calibration(pruned.base.model)))


def test_the_bias_is_the_mean_of_what_the_removed_columns_added(pruned) -> None:
    updates = repaired(pruned).updates
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        pruned.base.model.get_submodule(axis.reader_module).register_forward_pre_hook(
            lambda _, inputs, name=axis.name: seen.setdefault(name, []).append(inputs[0].flatten(0, -2))
        )
        for axis in pruned.layout.axes
    ]
    pruned.base.model(tiny_windows())
    for hook in hooks:
        hook.remove()
    assert len(updates) == len(pruned.layout.axes) - 1
    for axis in pruned.layout.axes:
        keep = pruned.axis_keep()[axis.name]
        if axis.name == EMPTIED:
            continue
        reader = pruned.base.model.get_submodule(axis.reader_module)
        removed = torch.cat(seen[axis.name]) * ~keep.repeat_interleave(axis.reader_width)
        expected = (removed @ reader.weight.T).mean(dim=0)
        torch.testing.assert_close(updates[f"{axis.reader_module}.bias"], expected, rtol=1e-4, atol=1e-5)


def test_a_repaired_model_is_one_in_memory_built_and_read_back(pruned, tmp_path) -> None:
    whole, ids = repaired(pruned), tiny_windows()
    with Compactor(pruned.base.model, pruned.layout) as compactor:
        with compactor.applied(whole.axis_keep(), whole.updates) as model:
            expected = token_losses(model, ids)
        with compactor.applied(whole.axis_keep()) as model:
            assert not torch.allclose(token_losses(model, ids), expected, atol=1e-3)
    built = whole.build()
    torch.testing.assert_close(token_losses(built, ids), expected, rtol=1e-4, atol=1e-4)
    assert whole.parameters == built.num_parameters()
    assert dict(whole.state_dict()).keys() == dict(built.named_parameters()).keys()
    for exporter in (HuggingFace(), Masks()):
        out = tmp_path / type(exporter).__name__
        out.mkdir()
        exporter.export(whole, out)
        torch.testing.assert_close(
            token_losses(exporter.load(out, dtype="float32").model, ids), expected, rtol=1e-4, atol=1e-4
        )


def test_masks_selected_anew_carry_no_repair_of_the_old_selection(pruned, tmp_path) -> None:
    Masks().export(repaired(pruned), tmp_path)
    masks = MaskFile.read(tmp_path)
    assert masks.apply(pruned.base).updates.keys() == repaired(pruned).updates.keys()
    other = masks.apply(pruned.base, 0.3)
    assert (dict(other.updates), other.recipe["repair"]) == ({}, "none")


@dataclass(frozen=True)
class Broken:
    name: str
    value: torch.Tensor | float

    def repair(self, pruned, calibration):
        return {self.name: self.value}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("model.layers.0.mlp.down_proj.bias", torch.zeros(36, dtype=torch.long), r"int64 \(36,\)"),
        ("model.layers.0.mlp.down_proj.bias", torch.zeros(35), r"\(36,\) is needed"),
        ("model.layers.0.mlp.down_proj.bias", torch.full((36,), torch.nan), "not finite"),
        ("model.layers.0.mlp.down_proj.bias", 1.0, "float for"),
        ("model.layers.1.mlp.down_proj.bias", torch.zeros(36), "neither a parameter that is left"),
        ("model.layers.0.mlp.gate_proj.bias2", torch.zeros(36), "neither a parameter that is left"),
        ("model.norm.weight", torch.zeros(1), r"\(36,\) is needed"),
    ],
)
def test_what_does_not_fit_the_model_that_is_left_is_the_repairs_fault(tmp_path, name, value, reason) -> None:
    base = tiny_base(tmp_path)
    space = tiny_space(base.model)
    keep = torch.ones(len(space), dtype=torch.bool)
    keep[space.slices()[4]] = False
    guarded = Guarded(Broken(name, value), "repair", "repair 'broken' of test 1")
    assert space.groups[4].spans[0][0] == EMPTIED
    with pytest.raises(PluginError, match=f"repair 'broken' of test 1 returned .*{reason}"):
        guarded.repair(tiny_pruned(base, space, keep), tiny_calibration(base.model))


def test_values_that_the_models_number_format_cannot_hold_are_the_repairs_fault(tmp_path) -> None:
    base = tiny_base(tmp_path)
    base.model.half()
    space = tiny_space(base.model)
    pruned = tiny_pruned(base, space, torch.ones(len(space), dtype=torch.bool))
    guarded = Guarded(Broken("model.norm.weight", torch.full((36,), 1e5)), "repair", "repair 'broken' of test 1")
    with pytest.raises(PluginError, match="returned as float16, in which they are used, 36 values"):
        guarded.repair(pruned, tiny_calibration(base.model))


def test_no_repair_changes_nothing(tmp_path) -> None:
    base = tiny_base(tmp_path)
    space = tiny_space(base.model)
    pruned = tiny_pruned(base, space, torch.ones(len(space), dtype=torch.bool))
    calibration = tiny_calibration(base.model)
    assert load_registry().build("repair", "none").repair(pruned, calibration) == {}
    assert calibration.forward_passes == 0
