"""What a check of an exporter looks at: an export of a tiny pruned model, watched, and the folder it was made in."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.models.checkpoint import file_sha256
from polyprune_core.models.layout import ModelLayout
from polyprune_core.models.sources import LoadedModel
from polyprune_core.plugins.contracts import OPTIONAL, check_exportable
from polyprune_core.plugins.registry import Registered
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import ExportReport, LegalShapes
from polyprune_core.testing.checking import Draws, NotRun, for_each_plugin, made, require
from polyprune_core.testing.tiny import logits_of, tiny_base, tiny_pruned, tiny_space
from polyprune_core.testing.untouched import Snapshot
from polyprune_core.utils.rng import generator

SECRET = "/somewhere/of/the/user/text.txt"
LAYERS_ALIKE = "its legal_shapes say that all layers are alike, or that none may be empty"


@dataclass(frozen=True)
class Sandbox:
    """A folder with the dense model in `base`, an empty `out` to export to, and `elsewhere`, the current directory.

    It is removed with the object.
    """

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

    def written(self) -> dict[str, bytes]:
        """Returns every file in `out`."""
        paths = (path for path in self.out.rglob("*") if path.is_file())
        return {path.relative_to(self.out).as_posix(): path.read_bytes() for path in paths}


@dataclass(frozen=True)
class Exported:
    """One export and what was seen of it before any check looked: to export may be dear, so that checks share it.

    Attributes:
        plugin: the exporter.
        sandbox: the pruned model and the folders around the export.
        report: what the exporter returned.
        expected: the logits of the smaller model in memory, (B, T, vocabulary).
        before: the hashes of the files around its folder, by their path, before the export.
        after: the same after it.
        files: what it wrote into its folder, by path.
        harm: how the dense model has changed, or "".
        draws: which generators that others share were used, or "".
    """

    plugin: Registered
    sandbox: Sandbox
    report: ExportReport
    expected: Tensor
    before: dict[str, str]
    after: dict[str, str]
    files: dict[str, bytes]
    harm: str
    draws: str

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model read back in float32."""
        return load(self.plugin, self.sandbox)


def shapes_of(plugin: Registered, layout: ModelLayout) -> LegalShapes:
    """Returns what the exporter says that its format can hold."""
    told = getattr(made(plugin), "legal_shapes", OPTIONAL["exporter"]["legal_shapes"])(layout)
    require(isinstance(told, LegalShapes), f"legal_shapes returns a {type(told).__name__}, not a LegalShapes")
    shapes: LegalShapes = told
    return shapes


def sandbox_for(plugin: Registered, *emptied: str) -> Sandbox:
    """Returns a pruned model of heads and channels that the format can hold; of the axes `emptied` nothing is kept.

    Raises:
        NotRun: the format cannot hold what is emptied, or the exporter's `check` asks for what is not installed.
    """
    root = Path(tempfile.mkdtemp(prefix="polyprune-check-")).resolve()
    try:
        for folder in ("out", "elsewhere"):
            (root / folder).mkdir()
        sandbox = Sandbox(root, _pruned(plugin, root / "base", emptied))
    except BaseException:
        shutil.rmtree(root)
        raise
    weakref.finalize(sandbox, shutil.rmtree, root, ignore_errors=True)
    return sandbox


def _pruned(plugin: Registered, folder: Path, emptied: tuple[str, ...]) -> PrunedModel:
    base = tiny_base(folder)
    _require_packages(plugin, base)
    space = tiny_space(base.model)
    shapes = shapes_of(plugin, space.layout)
    if emptied and (shapes.equal_widths or not shapes.empty_sublayers):
        raise NotRun(LAYERS_ALIKE)
    keep = torch.rand(len(space), generator=generator(0, "exported")) < 0.6
    for where, group in zip(space.slices(), space.groups, strict=True):
        keep[where.start] = True
        if group.spans[0][0] in emptied:
            keep[where] = False
    return tiny_pruned(base, space, _legal(keep, space, shapes), text=SECRET)


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


def export(plugin: Registered, sandbox: Sandbox, pruned: PrunedModel | None = None) -> ExportReport:
    """Exports the sandbox's model, or another `pruned` from the same base."""
    with contextlib.chdir(sandbox.root / "elsewhere"):
        report: ExportReport = made(plugin).export(pruned or sandbox.pruned, sandbox.out)
    return report


def load(plugin: Registered, sandbox: Sandbox, dtype: str = "float32") -> LoadedModel:
    """Reads back what was exported."""
    with contextlib.chdir(sandbox.root / "elsewhere"):
        loaded: LoadedModel = made(plugin).load(sandbox.out, dtype=dtype, device="cpu", trust_remote_code=False)
    return loaded


def compact_logits(pruned: PrunedModel) -> Tensor:
    """Returns the logits of the smaller model in memory."""
    keep = pruned.axis_keep()
    with Compactor(pruned.base.model, pruned.layout) as compactor, compactor.applied(keep, pruned.updates) as model:
        return logits_of(model)


@for_each_plugin
def exported_by(plugin: Registered) -> Exported:
    """Returns the one export that most checks share."""
    sandbox = sandbox_for(plugin)
    model, expected = sandbox.pruned.base.model, compact_logits(sandbox.pruned)
    before, dense, logits = sandbox.around(), Snapshot(model), logits_of(model)
    with Draws() as draws:
        report = export(plugin, sandbox)
    after, files = sandbox.around(), sandbox.written()
    harm = ""
    try:
        dense.require_as_it_was()
        require(torch.equal(logits_of(model), logits), "the dense model's logits were changed")
    except AssertionError as error:
        harm = str(error)
    return Exported(plugin, sandbox, report, expected, before, after, files, harm, draws.used)
