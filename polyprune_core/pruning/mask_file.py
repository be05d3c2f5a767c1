"""A pruning as a file of masks: what stays of which model, and the scores to decide it anew at another sparsity.

`masks.json` says it for people; `masks.safetensors` holds `scores` (U,) float32, `keep` (U,) as bits, and of a learned
policy `keep_prob` (U,) float32; after a repair also `update NAME` for every parameter that it changed or added, in the
model's number format. A dense model that was read from a folder is found again relative to the masks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyprune_core.config.budget_spec import check_sparsity
from polyprune_core.config.cell import NO_REPAIR
from polyprune_core.config.protect import Protect
from polyprune_core.errors import ConfigError, ModelError, PluginError
from polyprune_core.models.catalogue import local_path
from polyprune_core.models.checkpoint import file_sha256
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.mask_header import Base, Header, described, read_header
from polyprune_core.pruning.pools import SCOPES
from polyprune_core.pruning.pricing import PricedBudget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.shapes import ANY_SHAPE
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import LegalShapes, Policy, Scores, Selection, UnitGroup

HEADER, TENSORS = "masks.json", "masks.safetensors"
UPDATE = "update "
DTYPES = {"scores": torch.float32, "keep": torch.uint8, "keep_prob": torch.float32}


@dataclass(frozen=True)
class MaskFile:
    """The contents of a folder of masks: which of U units stay in which dense model, and how that was decided.

    Attributes:
        folder: the folder that it was read from.
        base: the name of the dense model, and the hash of its weights.
        granularity: the units as users type them, such as `head+channel`.
        groups: the units; all vectors (U,) are in this order.
        scores: (U,) float32, the scores by which the units were selected.
        keep: (U,) bool, True for a unit that stays.
        policy: the policy that a search learned, or None.
        recipe: how the decision was made. Its `scope`, `min_keep` and `protect` are used again for a selection at
            another sparsity.
        updates: the parameters that a repair changed or added, by name in the dense model.
        measured: the perplexities of the stored selection, as in `PrunedModel.measured`.
    """

    folder: Path
    base: Base
    granularity: str
    groups: tuple[UnitGroup, ...]
    scores: Scores
    keep: Tensor
    policy: Policy | None
    recipe: dict[str, Any]
    updates: dict[str, Tensor]
    measured: tuple[dict[str, Any], ...] = ()

    @classmethod
    def read(cls, folder: Path) -> MaskFile:
        """Returns the contents of a folder that `write_masks` wrote.

        Raises:
            ModelError: a file is missing, damaged or not polyprune's, or the two files do not belong together.
        """
        header = read_header(folder / HEADER)
        tensors = _read_tensors(folder / TENSORS, header.units)
        if header.tensors and header.tensors != file_sha256(folder / TENSORS):
            raise ModelError(
                f"{folder / TENSORS} is not the file that {HEADER} beside it was written with. Export them again."
            )
        keep = torch.from_numpy(np.unpackbits(tensors["keep"].numpy(), count=header.units)).bool()
        if not header.says(keep):
            raise ModelError(f"{HEADER} and {TENSORS} in {folder} differ in what is kept. Export the masks again.")
        return cls(
            folder=folder,
            base=header.base,
            granularity=header.granularity,
            groups=tuple(group.units for group in header.groups),
            scores=Scores(tensors["scores"], header.scores),
            keep=keep,
            policy=Policy(tensors["keep_prob"]) if "keep_prob" in tensors else None,
            recipe=header.recipe,
            updates={name.removeprefix(UPDATE): value for name, value in tensors.items() if name.startswith(UPDATE)},
            measured=tuple(each.model_dump() for each in header.measured),
        )

    @property
    def base_name(self) -> str:
        """The name or folder under which to load the dense model."""
        if self.base.folder and (self.folder / self.base.folder).exists():
            return str((self.folder / self.base.folder).resolve())
        return self.base.name

    def apply(
        self,
        base: LoadedModel,
        sparsity: float | None = None,
        terms: PricedBudget | None = None,
        shapes: LegalShapes = ANY_SHAPE,
        asked_shapes: str | None = None,
    ) -> PrunedModel:
        """Returns the pruned model: as it was stored, or with units selected at another sparsity or budget.

        Another selection uses the stored scores. The weights that a repair made fit the stored selection only, so they
        are left out of any other.

        Args:
            base: the dense model.
            sparsity: the fraction of prunable parameters to remove, or None for the stored selection.
            terms: another budget, in place of `sparsity`.
            shapes: the numbers of units that may stay in another selection.
            asked_shapes: how the user asked for `shapes`, for the record and for error messages.

        Raises:
            ModelError: `base` is not the model that the masks were made for.
            BudgetError: the sparsity or budget cannot be met.
        """
        space = self.space(base)
        if sparsity is None and terms is None:
            selection = Selection(self.keep, int(space.cost[self.keep].sum()), space.total_cost)
            made = self.scores, self.policy, self.recipe, self.updates, self.measured
            return PrunedModel(base, space, selection, *made)
        priced, share = (terms.space, terms.sparsity) if terms else (space, check_sparsity(sparsity or 0.0))
        selection = replace(self.rule(), sparsity=share, shapes=shapes).select(self.scores.values, priced)
        asked = {"sparsity": sparsity, "budget": str(terms.target) if terms else None, "repair": NO_REPAIR}
        asked |= {"shapes": asked_shapes, "command": None}
        return PrunedModel(base, space, selection, self.scores, self.policy, self.recipe | asked)

    def rule(self) -> SelectionRule:
        """The rules for a selection at another sparsity, from the recipe.

        Raises:
            ModelError: the recipe does not have them.
        """
        scope, min_keep = self.recipe.get("scope", "kind"), self.recipe.get("min_keep", 1)
        if scope not in SCOPES or not isinstance(min_keep, int):
            raise ModelError(
                f"the recipe of the masks in {self.folder} has scope {scope!r} and min_keep {min_keep!r}; a scope of "
                f"{', '.join(SCOPES)} and a whole number are needed. Export the masks again."
            )
        return SelectionRule(0.0, scope, min_keep, protect=Protect.parse(self.recipe.get("protect")))

    def space(self, base: LoadedModel) -> MaskSpace:
        """Returns the units of the masks in the dense model `base`.

        Raises:
            ModelError: `base` is not the model that the masks were made for.
        """
        if base.sha256 != self.base.sha256:
            raise ModelError(
                f"the masks in {self.folder} are for {self.base.name} with weights sha256 {self.base.sha256[:12]}…, "
                f"but {base.name} has {base.sha256[:12]}…. Give the model that they were made from as --model."
            )
        try:
            return MaskSpace(describe(base.model), self.groups, self.granularity)
        except (PluginError, ConfigError) as error:
            raise ModelError(f"the units of the masks in {self.folder} do not fit {base.name}: {error}") from error


def write_masks(pruned: PrunedModel, folder: Path) -> None:
    """Writes the decision about a pruned model into an existing folder, as masks.json and masks.safetensors."""
    from safetensors.torch import save_file

    keep = pruned.selection.keep.cpu()
    tensors = {"scores": pruned.scores.values, "keep": torch.from_numpy(np.packbits(keep.numpy()))}
    if pruned.policy is not None:
        tensors["keep_prob"] = pruned.policy.keep_prob
    own = {name: tensor.detach().cpu().to(DTYPES[name]).contiguous().clone() for name, tensor in tensors.items()}
    for name, value in pruned.updates.items():
        own[UPDATE + name] = value.detach().cpu().to(pruned.base.model.dtype).contiguous().clone()
    save_file(own, folder / TENSORS, metadata={"format": "pt"})
    record = pruned.provenance() | {"tensors": file_sha256(folder / TENSORS), "measured": pruned.measured}
    path = local_path(pruned.base.name)
    if path is not None:
        record["base"]["folder"] = os.path.relpath(path.resolve(), folder.resolve())
    groups = described(pruned.space.groups, keep)
    Header(scores=pruned.scores.source, groups=groups, **record).write(folder / HEADER)


def _read_tensors(path: Path, units: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is missing, broken or cut short ({error}). Export the masks again.") from error
    for name in {"scores", "keep", *(name for name in tensors if not name.startswith(UPDATE))}:
        length = -(-units // 8) if name == "keep" else units
        tensor = tensors.get(name)
        usable = tensor is not None and tensor.dtype == DTYPES.get(name) and bool(tensor.isfinite().all())
        if tensor is None or not usable or tensor.shape != (length,):
            found = f"{tuple(tensor.shape)} {tensor.dtype}" if tensor is not None else "nothing"
            raise ModelError(
                f"{path} has {found} as {name!r}; {HEADER} lists {units} units, so ({length},) finite "
                f"{DTYPES.get(name, 'nothing')} are needed. Export the masks again."
            )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{path} has numbers in {name!r} that are not finite. Export the masks again.")
    return tensors
