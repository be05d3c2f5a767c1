"""A pruned model in memory: everything an exporter needs to write it out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from polyprune_core.models.layout import ModelLayout
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Policy, Scores, Selection
from polyprune_core.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from polyprune_core.models.sources import LoadedModel
    from polyprune_core.pruning.readers import Reader


@dataclass(frozen=True)
class PrunedModel:
    """The dense model together with the decision of what stays, and what a repair made of it.

    Attributes:
        base: the untouched model, its tokenizer, name and weights hash.
        scores: what `selection` ranked: the metric's scores, or the learned keep probabilities.
        policy: the learned policy; None for a metric alone.
        recipe: JSON-able record of how it was made (granularity, initializer, estimator, sparsity, scope, seed, …).
        updates: parameters that a repair has changed or added, by name in the dense model, in their kept shape.
        measured: JSON-able, where it was measured, for each text and length: `perplexity`, of the `dense` model too, on
            which `text`, in windows of how many tokens (`window`), over how many predicted `tokens`.
    """

    base: LoadedModel
    space: MaskSpace
    selection: Selection
    scores: Scores
    policy: Policy | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    updates: Mapping[str, Tensor] = field(default_factory=dict)
    measured: Sequence[Mapping[str, Any]] = ()

    @property
    def layout(self) -> ModelLayout:
        """The dense model's layout."""
        return self.space.layout

    @property
    def parameters(self) -> int:
        """The parameters of the smaller model, tied ones counted once."""
        return sum(math.prod(shape) for shape in self.shapes().values()) + self.added_parameters

    @property
    def added_parameters(self) -> int:
        """How many parameters a repair has added."""
        return sum(self.updates[name].numel() for name in self.added())

    @property
    def active_parameters(self) -> int | None:
        """The parameters that run for one token: all but those of experts not chosen for it; None where all run."""
        shapes, keep, idle = self.shapes(), self.axis_keep(), 0
        for axis in self.layout.axes:
            if axis.chosen and axis.stack is not None:
                inside = [
                    math.prod(shape) for name, shape in shapes.items() if name.startswith(f"{axis.stack.module}.")
                ]
                left = int(keep[axis.name].sum()) if axis.name in keep else axis.size
                idle += sum(inside) * max(left - axis.chosen, 0) // max(left, 1)
        return self.parameters - idle if idle else None

    @property
    def kept_layers(self) -> list[int]:
        """The dense model's layers of which anything is left; layer i of the smaller model is the i-th of them."""
        from polyprune_core.pruning.build import kept_layers

        return kept_layers(self.layout, self.axis_keep())

    @property
    def needs_code(self) -> bool:
        """Whether its layers differ in what its family's class has one number for, so that code of its own is needed.

        It is about models of transformers' own classes.
        """
        from polyprune_core.pruning.build import compact_config

        return hasattr(compact_config(self), "auto_map")

    def axis_keep(self) -> dict[str, Tensor]:
        """Kept entries by axis name: (size,) bool."""
        return self.space.axis_keep(self.selection.keep)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that is left of every parameter of the dense model that is not gone as a whole, by its name."""
        from polyprune_core.pruning.surgery import Remains

        remains = Remains.of(self.base.model, self.layout, self.axis_keep())
        found = {name: remains.shape(name, value) for name, value in self.base.model.named_parameters()}
        return {name: shape for name, shape in found.items() if shape is not None}

    def possible_biases(self) -> dict[str, tuple[int, ...]]:
        """The biases that a repair may add: of readers that are left and have none, by name, with their shapes."""
        found: dict[str, tuple[int, ...]] = {}
        keep = self.axis_keep()
        for axis in self.layout.axes:
            if axis.reader is None or (axis.name in keep and not keep[axis.name].any()):
                continue
            cut = axis.reader_cut
            weight = self.base.model.get_parameter(cut.parameter)
            name = f"{axis.reader_module}.bias"
            if getattr(self.base.model.get_submodule(axis.reader_module), "bias", None) is None:
                found[name] = (weight.shape[1 - cut.dim],)
        return found

    def left_readers(self, *, routed: bool = False) -> list[Reader]:
        """The readers that are left some or all of their input features, in the order of the layout.

        Each expert of a mixture is one, of the tokens that it is chosen for in the dense model. With `routed` all
        experts of a layer are one, of what the router sends them, which without some is something else.
        """
        from polyprune_core.pruning.readers import left_readers

        return left_readers(self.base.model, self.space, self.axis_keep(), apart=not routed)

    def cut_readers(self, *, routed: bool = False) -> list[Reader]:
        """Those of `left_readers` that lost some of their input features."""
        return [reader for reader in self.left_readers(routed=routed) if not reader.whole]

    def added(self) -> list[str]:
        """The parameters that `updates` adds to those of the dense model."""
        known = dict(self.base.model.named_parameters())
        return [name for name in self.updates if name not in known]

    def names(self) -> dict[str, str]:
        """Returns the name in the dense model of every parameter of the smaller one, by its own name there."""
        from polyprune_core.pruning.build import renaming

        renamed = renaming(self)
        return {renamed(name): name for name in [*self.shapes(), *self.added()]}

    def state_dict(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the smaller model's parameters under its own names, one after another: a shard at a time is enough."""
        from polyprune_core.pruning.build import state_items

        return state_items(self)

    def stored_as(self, dtype: torch.dtype) -> PrunedModel:
        """Returns the model with the dense weights as their files have them, where it computes in another format.

        What a repair changed stays as it is.

        Raises:
            ModelError: the dense model's files have changed since they were read.
        """
        same = self.base.model.dtype == dtype
        return self if same else dataclasses.replace(self, base=self.base.as_stored())

    def build(self) -> PreTrainedModel:
        """Returns the smaller model: eval mode, no gradients, device and dtype of the dense one, `config.use_cache` on.

        Raises:
            ModelError: the dense model is not of transformers' own class for its family.
        """
        from polyprune_core.pruning.build import build_compact

        return build_compact(self)

    def provenance(self) -> dict[str, Any]:
        """Returns a JSON-able record of how the model was pruned; of absolute paths only the last name is left.

        Sparsities are fractions of the prunable parameters; `asked` is None where the recipe does not say. Of number
        formats, that of the dense model's files and the one it was computed in.
        """
        from polyprune_core.pruning.provenance import last_name, without_paths

        selection = self.selection
        return {
            "version": __version__,
            "base": {"name": last_name(self.base.name), "sha256": self.base.sha256, "source": self.base.source},
            "dtype": {"stored": _name_of(self.base.stored_dtype), "computed": _name_of(self.base.model.dtype)},
            "granularity": self.space.name,
            "sparsity": {"asked": self.recipe.get("sparsity"), "achieved": selection.sparsity},
            "parameters": {
                "dense": self.layout.total_parameters,
                "prunable": selection.total_cost,
                "kept_of_prunable": selection.kept_cost,
            },
            "recipe": without_paths(self.recipe),
        }


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
