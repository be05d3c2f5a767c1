"""What an exporter owes: files that are read back as the smaller model, and nothing written anywhere else."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.models.checkpoint import file_sha256
from polyprune_core.models.describe import describe
from polyprune_core.models.layout import ModelLayout
from polyprune_core.models.sources import LoadedModel
from polyprune_core.plugins.contracts import OPTIONAL, check_exportable
from polyprune_core.plugins.registry import Registered
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import ExportReport, LegalShapes
from polyprune_core.testing.checking import NotRun, check, global_randomness_unused, made, require, require_close
from polyprune_core.testing.tiny import logits_of, tiny_base, tiny_model, tiny_pruned, tiny_space
from polyprune_core.testing.untouched import Snapshot
from polyprune_core.utils.rng import generator

SHAPES, READS_BACK, SAME = (
    "legal_shapes_are_told",
    "what_is_written_can_be_read_back",
    "reloaded_model_equals_the_compact_one",
)
ROUNDING = 1e-5  # float32 sums in another order
SECRET = "/somewhere/of/the/user/text.txt"
LAYERS_ALIKE = "its legal_shapes say that all layers are alike, or that none may be empty"


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


@dataclass(frozen=True)
class Sandbox:
    """A folder with the dense model in `base`, an empty `out` to export to, and `elsewhere`, the current directory."""

    root: Path
    pruned: PrunedModel

    @property
    def out(self) -> Path:
        """Where to export to."""
        return self.root / "out"

    def around(self) -> dict[str, str]:
        """Returns the hash of every file outside of `out`."""
        files = (path for path in sorted(self.root.rglob("*")) if not path.is_relative_to(self.out))
        return {str(path.relative_to(self.root)): file_sha256(path) if path.is_file() else "" for path in files}


def _shapes(plugin: Registered, layout: ModelLayout) -> LegalShapes:
    told = getattr(made(plugin), "legal_shapes", OPTIONAL["exporter"]["legal_shapes"])(layout)
    require(isinstance(told, LegalShapes), f"legal_shapes returns a {type(told).__name__}, not a LegalShapes")
    shapes: LegalShapes = told
    return shapes


@contextmanager
def _sandbox(plugin: Registered, *emptied: str) -> Iterator[Sandbox]:
    """A pruned model of heads and channels that the format can hold; of the axes `emptied` nothing is kept.

    Raises:
        NotRun: the format cannot hold what is emptied, or the exporter's `check` asks for what is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="polyprune-check-") as name:
        root = Path(name).resolve()
        for folder in ("out", "elsewhere"):
            (root / folder).mkdir()
        base = tiny_base(root / "base")
        _require_packages(plugin, base)
        space = tiny_space(base.model)
        shapes = _shapes(plugin, space.layout)
        if emptied and (shapes.equal_widths or not shapes.empty_sublayers):
            raise NotRun(LAYERS_ALIKE)
        keep = torch.rand(len(space), generator=generator(0, "exported")) < 0.6
        for where, group in zip(space.slices(), space.groups, strict=True):
            keep[where.start] = True
            if group.spans[0][0] in emptied:
                keep[where] = False
        pruned = tiny_pruned(base, space, _legal(keep, space, shapes), text=SECRET)
        with contextlib.chdir(root / "elsewhere"):
            yield Sandbox(root, pruned)


def _require_packages(plugin: Registered, base: LoadedModel) -> None:
    try:
        check_exportable(made(plugin), base)
    except ConfigError as error:
        raise NotRun(str(error)) from error
    except ModelError:
        pass  # what it refuses of the kit's model, such as its tokenizer, may be written all the same


def _legal(keep: Tensor, space: MaskSpace, shapes: LegalShapes) -> Tensor:
    """Returns the units to keep with those changed that make numbers which the format cannot hold."""
    held = torch.bincount(space.group[keep], minlength=len(space.groups)).tolist()
    legal = torch.zeros_like(keep)
    for index, (where, group) in enumerate(zip(space.slices(), space.groups, strict=True)):
        alike = [number for number, other in zip(held, space.groups, strict=True) if other.kind == group.kind]
        number, unit = min(alike) if shapes.equal_widths else held[index], shapes.multiple_of.get(group.kind, 1)
        number = max(number // unit, 1 if number else 0) * unit
        legal[where.start + keep[where].int().argsort(descending=True, stable=True)[:number]] = True
    return legal


def _export(plugin: Registered, sandbox: Sandbox) -> ExportReport:
    report: ExportReport = made(plugin).export(sandbox.pruned, sandbox.out)
    return report


def _load(plugin: Registered, sandbox: Sandbox) -> LoadedModel:
    loaded: LoadedModel = made(plugin).load(sandbox.out, dtype="float32", device="cpu", trust_remote_code=False)
    return loaded


def _require_same_logits(plugin: Registered, sandbox: Sandbox) -> None:
    pruned = sandbox.pruned
    keep = pruned.axis_keep()
    with Compactor(pruned.base.model, pruned.layout) as compactor, compactor.applied(keep, pruned.updates) as model:
        expected = logits_of(model)
    _export(plugin, sandbox)
    found = logits_of(_load(plugin, sandbox).model)
    require_close(found, expected, ROUNDING, "logits of the model read back and of the smaller model in memory")


@check("exporter", "builds_with_its_defaults")
def legal_shapes_are_told(plugin: Registered) -> None:
    """`legal_shapes`, where it is declared, returns a LegalShapes with multiples above 0."""
    shapes = _shapes(plugin, describe(tiny_model()))
    for kind, number in shapes.multiple_of.items():
        require(
            type(number) is int and number > 0, f"multiple_of gives {number!r} for {kind}; a whole number is needed"
        )


@check("exporter", SHAPES)
def what_is_written_can_be_read_back(plugin: Registered) -> None:
    """`export` reports what it wrote, and `load` makes of it a model that runs."""
    with _sandbox(plugin) as sandbox:
        report = _export(plugin, sandbox)
        require(isinstance(report, ExportReport), f"export returns a {type(report).__name__}, not an ExportReport")
        loaded = _load(plugin, sandbox)
        require(isinstance(loaded, LoadedModel), f"load returns a {type(loaded).__name__}, not a LoadedModel")
        require(logits_of(loaded.model).isfinite().all(), "the model read back gives logits that are not finite")


@check("exporter", READS_BACK, excusable=True)
def reloaded_model_equals_the_compact_one(plugin: Registered) -> None:
    """What is read back from disk gives the logits of the smaller model in memory."""
    with _sandbox(plugin) as sandbox:
        _require_same_logits(plugin, sandbox)


@check("exporter", SAME, excusable=True)
def emptied_sublayers_survive(plugin: Registered) -> None:
    """So does a model that has lost the attention of one layer and the MLP of another whole."""
    with _sandbox(plugin, "layers.0.attention", "layers.2.mlp") as sandbox:
        _require_same_logits(plugin, sandbox)


@check("exporter", SAME, excusable=True)
def emptied_layer_survives(plugin: Registered) -> None:
    """So does a model that has lost a whole layer."""
    with _sandbox(plugin, "layers.1.attention", "layers.1.mlp") as sandbox:
        _require_same_logits(plugin, sandbox)


@check("exporter", SAME, excusable=True)
def repaired_weights_survive(plugin: Registered) -> None:
    """So does a model of which a repair has changed a weight, and added a bias where `legal_shapes` let it."""
    with _sandbox(plugin) as sandbox:
        whole = dict(sandbox.pruned.state_dict())
        reader = sandbox.pruned.layout.axis["layers.1.mlp"].reader_cut.parameter
        updates = {reader: 1.5 * whole[reader]}
        if _shapes(plugin, sandbox.pruned.layout).added_biases:
            bias, shape = next(iter(sandbox.pruned.possible_biases().items()))
            updates[bias] = torch.linspace(-1, 1, shape[0])
        pruned = dataclasses.replace(sandbox.pruned, updates=updates)
        _require_same_logits(plugin, dataclasses.replace(sandbox, pruned=pruned))


@check("exporter", READS_BACK, excusable=True)
def parameters_are_those_that_are_left(plugin: Registered) -> None:
    """The report, and the model read back, have the dense model's parameters less the removed ones."""
    with _sandbox(plugin) as sandbox:
        reported = _export(plugin, sandbox).parameters
        loaded: Any = _load(plugin, sandbox).model
        expected = sandbox.pruned.parameters
    require(reported == expected, f"the report says {reported:,} parameters; {expected:,} are left")
    found = sum(parameter.numel() for parameter in loaded.parameters())
    require(found == expected, f"the model read back has {found:,} parameters; {expected:,} are left")


@check("exporter", SAME, excusable=True)
def reload_code_loads_the_model(plugin: Registered) -> None:
    """`reload` is Python that, with DIR as the folder, leaves in `model` what `load` reads back."""
    with _sandbox(plugin) as sandbox, modules_of_models_in(sandbox.root / "modules"):
        report = _export(plugin, sandbox)
        require("DIR" in report.reload, "its reload does not name DIR, which stands for the folder")
        names: dict[str, Any] = {"__name__": "reload"}
        exec(compile(report.reload_at(sandbox.out), "reload", "exec"), names)
        require("model" in names, "its reload leaves nothing called `model`")
        found = logits_of(names["model"].to("cpu", torch.float32))
        expected = logits_of(_load(plugin, sandbox).model)
        require_close(found, expected, ROUNDING, "logits of the model that `reload` makes and of the one from `load`")


@check("exporter", READS_BACK)
def reloaded_model_is_ready_to_run(plugin: Registered) -> None:
    """The model read back is in eval mode, needs no gradient, caches nothing, and has the number format asked for."""
    with _sandbox(plugin) as sandbox:
        _export(plugin, sandbox)
        loaded = _load(plugin, sandbox)
        half = made(plugin).load(sandbox.out, dtype="bfloat16", device="cpu")
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
    with _sandbox(plugin) as sandbox:
        before = sandbox.around()
        _export(plugin, sandbox)
        after = sandbox.around()
    written = sorted(name for name in before | after if before.get(name) != after.get(name))
    require(not written, f"written or removed outside of its folder: {', '.join(written)}")


@check("exporter", READS_BACK)
def report_lists_every_file_with_its_hash(plugin: Registered) -> None:
    """The report names the folder, each file in it with its SHA-256, and their size."""
    with _sandbox(plugin) as sandbox:
        report = _export(plugin, sandbox)
        paths = {path.relative_to(sandbox.out).as_posix(): path for path in sandbox.out.rglob("*") if path.is_file()}
        hashes = {name: file_sha256(path) for name, path in paths.items()}
        size = sum(path.stat().st_size for path in paths.values())
        require(Path(report.path) == sandbox.out, "the report's path is not the folder that was given")
    wrong = sorted(name for name in hashes | report.files if hashes.get(name) != report.files.get(name))
    require(not wrong, f"missing, or not what was written: {', '.join(wrong)}")
    require(report.bytes == size, f"the report says {report.bytes} bytes; the files have {size}")


@check("exporter", READS_BACK)
def no_file_holds_a_path_of_this_machine(plugin: Registered) -> None:
    """No file names a folder of this machine: of the model, of the output, out of the recipe, or of installed code."""
    with _sandbox(plugin) as sandbox:
        _export(plugin, sandbox)
        code = [Path(file).parents[1] for file in (torch.__file__, Path(__file__).parent)]
        foreign = [str(path).encode() for path in (sandbox.root, Path.home(), Path(SECRET).parent, *code)]
        paths = [path for path in sandbox.out.rglob("*") if path.is_file()]
        holding = sorted(path.name for path in paths if any(text in path.read_bytes() for text in foreign))
    require(not holding, f"an absolute path stands in {', '.join(holding)}")


@check("exporter", READS_BACK)
def dense_model_is_left_alone(plugin: Registered) -> None:
    """Exporting changes no weight, hook, flag or logit of the dense model."""
    with _sandbox(plugin) as sandbox:
        model = sandbox.pruned.base.model
        before, logits = Snapshot(model), logits_of(model)
        _export(plugin, sandbox)
        before.require_weights()
        before.require_hooks()
        before.require_flags()
        require(torch.equal(logits_of(model), logits), "the dense model's logits were changed")


@check("exporter", READS_BACK, "building_uses_no_global_randomness")
def exporting_uses_no_global_randomness(plugin: Registered) -> None:
    """Exporting neither draws from nor seeds a generator that others share."""
    with _sandbox(plugin) as sandbox, global_randomness_unused():
        _export(plugin, sandbox)
