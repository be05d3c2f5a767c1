"""What an exporter owes: files that are read back as the smaller model, and nothing written anywhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel
from polyprune_core.plugins.registry import Registered
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import ExportReport
from polyprune_core.testing.checking import check, require, require_close
from polyprune_core.testing.exported import (
    SECRET,
    Sandbox,
    compact_logits,
    export,
    exported_by,
    load,
    sandbox_for,
    shapes_of,
)
from polyprune_core.testing.tiny import logits_of, tiny_model

SHAPES, READS_BACK, SAME = (
    "legal_shapes_are_told",
    "what_is_written_can_be_read_back",
    "reloaded_model_equals_the_compact_one",
)
ROUNDING = 1e-5  # float32 sums in another order


@contextmanager
def modules_of_models_in(folder: Path) -> Iterator[None]:
    """Has transformers keep the code that models bring along in `folder`, and forget it after the block."""
    from transformers import dynamic_module_utils

    known = set(sys.modules)
    try:
        with patch.object(dynamic_module_utils, "HF_MODULES_CACHE", str(folder)):
            yield
    finally:
        for name in set(sys.modules) - known:
            if name.startswith("transformers_modules"):
                del sys.modules[name]
        sys.path[:] = [entry for entry in sys.path if entry != str(folder)]


def _require_same_logits(plugin: Registered, sandbox: Sandbox, pruned: PrunedModel) -> None:
    expected = compact_logits(pruned)
    export(plugin, sandbox, pruned)
    _require_close_to_memory(load(plugin, sandbox), expected)


def _require_close_to_memory(loaded: LoadedModel, expected: Tensor) -> None:
    found = logits_of(loaded.model)
    require_close(found, expected, ROUNDING, "logits of the model read back and of the smaller model in memory")


@check("exporter", "builds_with_its_defaults")
def legal_shapes_are_told(plugin: Registered) -> None:
    """`legal_shapes`, where it is declared, returns a LegalShapes with multiples above 0."""
    shapes = shapes_of(plugin, describe(tiny_model()))
    for kind, number in shapes.multiple_of.items():
        require(
            type(number) is int and number > 0, f"multiple_of gives {number!r} for {kind}; a whole number is needed"
        )


@check("exporter", SHAPES)
def what_is_written_can_be_read_back(plugin: Registered) -> None:
    """`export` reports what it wrote, and `load` makes of it a model that runs."""
    exported = exported_by(plugin)
    report, loaded = exported.report, exported.loaded
    require(isinstance(report, ExportReport), f"export returns a {type(report).__name__}, not an ExportReport")
    require(isinstance(loaded, LoadedModel), f"load returns a {type(loaded).__name__}, not a LoadedModel")
    require(logits_of(loaded.model).isfinite().all(), "the model read back gives logits that are not finite")


@check("exporter", READS_BACK, excusable=True)
def reloaded_model_equals_the_compact_one(plugin: Registered) -> None:
    """What is read back from disk gives the logits of the smaller model in memory."""
    exported = exported_by(plugin)
    _require_close_to_memory(exported.loaded, exported.expected)


@check("exporter", SAME, excusable=True)
def emptied_sublayers_survive(plugin: Registered) -> None:
    """So does a model that has lost the attention of one layer and the MLP of another whole."""
    sandbox = sandbox_for(plugin, "layers.0.attention", "layers.2.mlp")
    _require_same_logits(plugin, sandbox, sandbox.pruned)


@check("exporter", SAME, excusable=True)
def emptied_layer_survives(plugin: Registered) -> None:
    """So does a model that has lost a whole layer."""
    sandbox = sandbox_for(plugin, "layers.1.attention", "layers.1.mlp")
    _require_same_logits(plugin, sandbox, sandbox.pruned)


@check("exporter", SAME, excusable=True)
def repaired_weights_survive(plugin: Registered) -> None:
    """So does a model of which a repair has changed a weight, and added a bias where `legal_shapes` let it."""
    sandbox = sandbox_for(plugin)
    whole = dict(sandbox.pruned.state_dict())
    reader = sandbox.pruned.layout.axis["layers.1.mlp"].reader_cut.parameter
    updates = {reader: 1.5 * whole[reader]}
    if shapes_of(plugin, sandbox.pruned.layout).added_biases:
        bias, shape = next(iter(sandbox.pruned.possible_biases().items()))
        updates[bias] = torch.linspace(-1, 1, shape[0])
    _require_same_logits(plugin, sandbox, dataclasses.replace(sandbox.pruned, updates=updates))


@check("exporter", READS_BACK, excusable=True)
def parameters_are_those_that_are_left(plugin: Registered) -> None:
    """The report, and the model read back, have the dense model's parameters less the removed ones."""
    exported = exported_by(plugin)
    reported, loaded = exported.report.parameters, exported.loaded.model
    expected = exported.sandbox.pruned.parameters
    require(reported == expected, f"the report says {reported:,} parameters; {expected:,} are left")
    found = sum(parameter.numel() for parameter in loaded.parameters())
    require(found == expected, f"the model read back has {found:,} parameters; {expected:,} are left")


@check("exporter", SAME, excusable=True)
def reload_code_loads_the_model(plugin: Registered) -> None:
    """`reload` is Python that, with DIR as the folder, leaves in `model` what `load` reads back."""
    exported = exported_by(plugin)
    root, report = exported.sandbox.root, exported.report
    require("DIR" in report.reload, "its reload does not name DIR, which stands for the folder")
    names: dict[str, Any] = {"__name__": "reload"}
    with contextlib.chdir(root / "elsewhere"), modules_of_models_in(root / "modules"):
        exec(compile(report.reload_at(exported.sandbox.out), "reload", "exec"), names)
        require("model" in names, "its reload leaves nothing called `model`")
        found = logits_of(names["model"].to("cpu", torch.float32))
    expected = logits_of(exported.loaded.model)
    require_close(found, expected, ROUNDING, "logits of the model that `reload` makes and of the one from `load`")


@check("exporter", READS_BACK)
def reloaded_model_is_ready_to_run(plugin: Registered) -> None:
    """The model read back is in eval mode, needs no gradient, caches nothing, and has the number format asked for."""
    exported = exported_by(plugin)
    loaded, half = exported.loaded, load(plugin, exported.sandbox, "bfloat16")
    model: Any = loaded.model
    require(not any(module.training for module in model.modules()), "it is in training mode")
    require(not any(parameter.requires_grad for parameter in model.parameters()), "its parameters require gradients")
    require(model.config.use_cache is False, "its config.use_cache is not False")
    require(loaded.tokenizer("w5 w6")["input_ids"][-2:] == [5, 6], "its tokenizer is another than the dense model's")
    for asked, found in (("float32", model.dtype), ("bfloat16", half.model.dtype)):
        require(str(found) == f"torch.{asked}", f"asked for {asked} it is {found}")


@check("exporter", READS_BACK)
def only_its_folder_is_written(plugin: Registered) -> None:
    """Exporting writes nothing beside its folder, in the current directory, or over the dense model's files."""
    before, after = exported_by(plugin).before, exported_by(plugin).after
    written = sorted(name for name in before | after if before.get(name) != after.get(name))
    require(not written, f"written or removed outside of its folder: {', '.join(written)}")


@check("exporter", READS_BACK)
def report_lists_every_file_with_its_hash(plugin: Registered) -> None:
    """The report names the folder, each file in it with its SHA-256, and their size."""
    exported = exported_by(plugin)
    report, out = exported.report, exported.sandbox.out
    require(Path(report.path) == out, "the report's path is not the folder that was given")
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in exported.files.items()}
    wrong = sorted(name for name in hashes | report.files if hashes.get(name) != report.files.get(name))
    require(not wrong, f"missing, or not what was written: {', '.join(wrong)}")
    size = sum(map(len, exported.files.values()))
    require(report.bytes == size, f"the report says {report.bytes} bytes; the files have {size}")


@check("exporter", READS_BACK)
def no_file_holds_a_path_of_this_machine(plugin: Registered) -> None:
    """No file names a folder of this machine: of the model, of the output, out of the recipe, or of installed code."""
    exported = exported_by(plugin)
    code = [Path(file).parents[1] for file in (torch.__file__, Path(__file__).parent)]
    foreign = [str(path).encode() for path in (exported.sandbox.root, Path.home(), Path(SECRET).parent, *code)]
    holding = sorted(name for name, content in exported.files.items() if any(text in content for text in foreign))
    require(not holding, f"an absolute path stands in {', '.join(holding)}")


@check("exporter", READS_BACK)
def dense_model_is_left_alone(plugin: Registered) -> None:
    """Exporting changes no weight, hook, flag or logit of the dense model."""
    harm = exported_by(plugin).harm
    require(not harm, harm)


@check("exporter", READS_BACK, "building_uses_no_global_randomness")
def exporting_uses_no_global_randomness(plugin: Registered) -> None:
    """Exporting neither draws from nor seeds a generator that others share."""
    draws = exported_by(plugin).draws
    require(not draws, draws)
