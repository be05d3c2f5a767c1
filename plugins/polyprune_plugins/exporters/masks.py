"""Masks: a few kilobytes that say which units of a named model stay, with the scores to select at another sparsity."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from polyprune_core import Exporter, ExportReport, Provider, hookimpl

if TYPE_CHECKING:
    from polyprune_core import LoadedModel, PrunedModel

RELOAD = """\
from pathlib import Path
from polyprune_core import MaskFile, load_model

masks = MaskFile.read(Path(DIR))
pruned = masks.apply(load_model(masks.base_name))  # or .apply(…, sparsity=0.3)
model = pruned.build()
"""


@dataclass(frozen=True)
class Masks:
    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        from polyprune_core import export_report, write_masks

        write_masks(pruned, out_dir)
        return export_report(out_dir, "masks", RELOAD, pruned.parameters, units=len(pruned.space))

    def load(
        self, path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> LoadedModel:
        """Loads the dense model that the masks name, checks that it is the one, and returns the smaller model."""
        from polyprune_core import LoadedModel, MaskFile, load_model

        masks = MaskFile.read(path)
        revision = masks.recipe.get("revision")
        base = load_model(
            masks.base_name, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
        )
        pruned = masks.apply(base)
        model = pruned.build()
        model.config.use_cache = False
        identity = hashlib.sha256(base.sha256.encode() + bytes(pruned.selection.keep.tolist())).hexdigest()
        return LoadedModel(str(path), model, base.tokenizer, identity, base.path)


@hookimpl
def polyprune_exporters() -> Iterator[Provider[Exporter]]:
    yield Provider("masks", "what stays, by index, and the scores; applies to the dense model", Masks)
