"""A decision that was made before, written out: masks or a finished cell, in any exporter's format."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from polyprune_core.config.requests import Export
from polyprune_core.errors import ConfigError, ModelError
from polyprune_core.evaluation.perplexity import not_finite
from polyprune_core.evaluation.text import load_text
from polyprune_core.evaluation.windows import Cutter
from polyprune_core.models.sources import LoadedModel, load_unread
from polyprune_core.plugins.contracts import Exporter, check_exportable
from polyprune_core.plugins.registry import Registry
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.types import ExportReport
from polyprune_core.runs.added_biases import check_added
from polyprune_core.runs.decisions import Decided
from polyprune_core.runs.model_sources import load_asked
from polyprune_core.runs.verification import RuntimeCheck, check_in_runtime, require_runtime, runtime_of
from polyprune_core.utils.environment import environment
from polyprune_core.utils.files import size_told
from polyprune_core.utils.outputs import NewFolder, new_folder, write_record
from polyprune_core.utils.progress import Reporter
from polyprune_core.version import __version__

WINDOWS, WINDOW = 4, 64
# Kept slices may be laid out in memory otherwise than they were, so that sums are rounded in another order.
ROUNDINGS = 16
SAMPLE = "def add(first, second):\n    # 3.14 is no sum, and 1024 neither.\n    return first + second\n"


@dataclass(frozen=True)
class Verification:
    """The logits of the model read back beside those of the model in memory, over `tokens` positions."""

    tokens: int
    largest_difference: float
    largest_logit: float
    top1_agreement: float


@dataclass(frozen=True)
class Exported:
    """What was written; how it reads back, and what it computes in its runtime, where that was asked for."""

    report: ExportReport
    verification: Verification | None
    in_runtime: RuntimeCheck | None = None

    def lines(self) -> list[str]:
        """Returns it for people."""
        report, seen = self.report, self.verification
        lines = [f"{report.path} ({report.format})", f"  parameters  {report.parameters:,}"]
        lines.append(f"  on disk     {size_told(report.bytes)}")
        if seen:
            lines.append(
                f"  read back   largest difference of a logit {seen.largest_difference:.3g} (largest logit "
                f"{seen.largest_logit:.3g}), same top-1 {seen.top1_agreement:.1%} of {seen.tokens} positions"
            )
        lines += [f"  {name:<11} {value}" for name, value in report.details.items() if isinstance(value, str)]
        lines += self.in_runtime.lines() if self.in_runtime else []
        return [*lines, "", *report.reload_at(report.path).strip().splitlines()]

    def to_json(self) -> dict[str, Any]:
        """Returns it for scripts; no path of this machine."""
        record = dataclasses.asdict(self)
        record["report"]["path"] = self.report.path.name
        return {"polyprune": __version__, "environment": environment(), **record}


def export(request: Export, registry: Registry, output: Path, overwrite: bool, reporter: Reporter) -> Exported:
    """Writes what `request.source` decided to `output`, which appears whole or not at all.

    Raises:
        PolypruneError: there is no such decision or model, the folder cannot be written, or what is read back from it
            is not the model that was written.
    """
    source = Decided.at(request.source, request.cell, request.model)
    exporter = registry.build("exporter", request.exporter)
    if request.by_shard and not exporter.by_shard:
        raise ConfigError(f"--exporter {request.exporter} needs all weights in memory; leave --by-shard out.")
    with new_folder(output, overwrite, source.read) as place:
        base = _base(source.name, request, reporter, source.revision)
        check_exportable(exporter, base)
        if request.verify:
            require_runtime(exporter)
        pruned = source.apply(base, registry)
        check_added(request.exporter, pruned, registry)
        return write_out(pruned, exporter, place, request.verify, request.trust_remote_code)


def _base(name: str, request: Export, reporter: Reporter, revision: str | None) -> LoadedModel:
    if not request.by_shard:
        return load_asked(name, request, reporter, revision)
    return load_unread(name, revision=revision, trust_remote_code=request.trust_remote_code, status=reporter.status)


def write_out(
    pruned: PrunedModel,
    exporter: Exporter,
    place: NewFolder,
    verified: bool,
    trust_remote_code: bool = False,
    record: Mapping[str, Any] = MappingProxyType({}),
) -> Exported:
    """Writes a pruned model to a place that is held; with `verified` it is read back and compared.

    `record` is what the folder's record says besides.

    Raises:
        PolypruneError: the folder cannot be written, or what is read back from it is not the model that was written.
    """
    with place.filled() as folder:
        report = exporter.export(pruned, folder)
        exported = Exported(dataclasses.replace(report, path=place.path), None)
        if verified:
            exported = dataclasses.replace(exported, **_verified(pruned, exporter, folder, trust_remote_code))
        write_record(folder, dict(record) | exported.to_json())
    return exported


def _verified(pruned: PrunedModel, exporter: Exporter, folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    dense, text = pruned.base, load_text("builtin:pydocs", "evaluation")
    windows = Cutter.of(dense.tokenizer, dense.model).windows(text, WINDOW)[:WINDOWS]
    device, computed = str(dense.model.device), str(dense.model.dtype).removeprefix("torch.")
    again = exporter.load(folder, dtype=computed, device=device, trust_remote_code=trust_remote_code)
    found = verify(pruned, again, windows, getattr(exporter, "rounding", 0.0))
    if runtime_of(exporter) is None:
        return {"verification": found}
    if computed != "float32":
        again = exporter.load(folder, dtype="float32", device=device, trust_remote_code=trust_remote_code)
    return {"verification": found, "in_runtime": check_in_runtime(pruned, exporter, folder, again, windows, SAMPLE)}


@torch.inference_mode()
def verify(pruned: PrunedModel, again: LoadedModel, windows: Tensor, rounding: float = 0.0) -> Verification:
    """Compares the logits of the model in memory and of the one read back on token windows (N, T).

    `rounding` is what the format loses of a weight, relative to it, beside its number format.

    Raises:
        ModelError: they differ by more than rounding in their dtype explains.
    """
    base = pruned.base
    ids = windows.to(base.model.device)
    ours, theirs = (model(input_ids=ids, use_cache=False).logits.float() for model in (pruned.build(), again.model))
    if not bool(ours.isfinite().all()):
        raise not_finite("the pruned model", base.model)
    if ours.shape != theirs.shape:
        raise ModelError(f"the model read back gives logits of shape {tuple(theirs.shape)}, not {tuple(ours.shape)}.")
    found = Verification(
        tokens=ids.numel(),
        largest_difference=float((ours - theirs).abs().max()),
        largest_logit=float(ours.abs().max()),
        top1_agreement=float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
    )
    coarsest = max(rounding, *(torch.finfo(dtype).eps for dtype in (base.model.dtype, again.stored_dtype)))
    allowed = ROUNDINGS * coarsest * found.largest_logit
    if not found.largest_difference <= allowed:
        raise ModelError(
            f"the model read back is another one: a logit differs by {found.largest_difference:.3g}, where rounding "
            f"explains {allowed:.3g} (same top-1 at {found.top1_agreement:.1%}). Nothing was written; report this to "
            "the exporter's author."
        )
    return found
