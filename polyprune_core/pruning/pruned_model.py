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
    """A dense model together with the decision which units stay, and the weights that a repair changed.

    Attributes:
        base: the unchanged dense model, with its tokenizer, its name and the hash of its weights.
        space: the units.
        selection: which units stay.
        scores: what `selection` ranked: the scores of a metric, or the keep probabilities that a search learned.
        policy: the policy that a search learned; None for a metric alone.
        recipe: how the decision was made, as JSON values: granularity, initializer, estimator, sparsity, scope, seed
            and so on.
        updates: the parameters that a repair changed or added, by name in the dense model, in their smaller shape.
        measured: one record of JSON values for each text and length that was measured: `perplexity`, the perplexity of
            the `dense` model, the name of the `text`, the length of a `window` in tokens, and the number of predicted
            `tokens`. Empty if nothing was measured.
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
        """The axes of the dense model."""
        return self.space.layout

    @property
    def parameters(self) -> int:
        """The number of parameters of the smaller model; tied ones are counted once."""
        return sum(math.prod(shape) for shape in self.shapes().values()) + self.added_parameters

    @property
    def added_parameters(self) -> int:
        """The number of parameters that a repair added."""
        return sum(self.updates[name].numel() for name in self.added())

    @property
    def active_parameters(self) -> int | None:
        """The number of parameters that are used for one token, which leaves out experts that are not chosen for it.

        None if the model has no experts, so that all parameters are used.
        """
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
        """The numbers of the dense model's layers of which something is left, in the order of the smaller model."""
        from polyprune_core.pruning.build import kept_layers

        return kept_layers(self.layout, self.axis_keep())

    @property
    def needs_code(self) -> bool:
        """Whether the smaller model needs code of its own, because its layers differ in width.

        transformers' class of the family then has only one number for a width of all layers. The answer holds for
        models of transformers' own classes.
        """
        from polyprune_core.pruning.build import compact_config

        return hasattr(compact_config(self), "auto_map")

    def axis_keep(self) -> dict[str, Tensor]:
        """For every axis that the units own, which entries stay: (size,) bool by the name of the axis."""
        return self.space.axis_keep(self.selection.keep)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape in the smaller model of every parameter that is left, by its name in the dense model."""
        from polyprune_core.pruning.surgery import Remains

        remains = Remains.of(self.base.model, self.layout, self.axis_keep())
        found = {name: remains.shape(name, value) for name, value in self.base.model.named_parameters()}
        return {name: shape for name, shape in found.items() if shape is not None}

    def possible_biases(self) -> dict[str, tuple[int, ...]]:
        """Returns name and shape of each bias that a repair may add: one for every reader left that has no bias."""
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
        """Returns the readers that keep at least one input feature, in the order of the layout.

        Args:
            routed: False makes each expert a reader of its own, whose inputs are those of the tokens that it is chosen
                for in the dense model. True makes all experts of a layer one reader, whose inputs depend on the router,
                which chooses among the experts that are left.
        """
        from polyprune_core.pruning.readers import left_readers

        return left_readers(self.base.model, self.space, self.axis_keep(), apart=not routed)

    def cut_readers(self, *, routed: bool = False) -> list[Reader]:
        """Returns the readers in `left_readers` that lost some of their input features."""
        return [reader for reader in self.left_readers(routed=routed) if not reader.whole]

    def added(self) -> list[str]:
        """Returns the names of the parameters in `updates` that the dense model does not have."""
        known = dict(self.base.model.named_parameters())
        return [name for name in self.updates if name not in known]

    def names(self) -> dict[str, str]:
        """Returns a mapping from parameter names of the smaller model to those of the dense model."""
        from polyprune_core.pruning.build import renaming

        renamed = renaming(self)
        return {renamed(name): name for name in [*self.shapes(), *self.added()]}

    def state_dict(self) -> Iterator[tuple[str, Tensor]]:
        """Yields names and parameters of the smaller model one at a time, so that few have to be in memory at once."""
        from polyprune_core.pruning.build import state_items

        return state_items(self)

    def stored_as(self, dtype: torch.dtype) -> PrunedModel:
        """Returns the pruned model with dense weights in the number format of their files, to be written in `dtype`.

        If the model computes in `dtype` already, its weights are used as they are. The weights that a repair changed
        stay as they are in any case.

        Raises:
            ModelError: the dense model's files have changed since they were read.
        """
        same = self.base.model.dtype == dtype
        return self if same else dataclasses.replace(self, base=self.base.as_stored())

    def build(self) -> PreTrainedModel:
        """Returns the smaller model, on the device and in the dtype of the dense one.

        It is in eval mode, no parameter requires a gradient, and `config.use_cache` is on.

        Raises:
            ModelError: the class of the dense model is not transformers' own class for its family.
        """
        from polyprune_core.pruning.build import build_compact

        return build_compact(self)

    def provenance(self) -> dict[str, Any]:
        """Returns a record of how the model was pruned, as JSON values.

        Only the last name is left of absolute paths. Sparsities are fractions of the prunable parameters; `asked` is
        None if the recipe does not have it. The record has two number formats: that of the dense model's files, and
        the one that was computed in.
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
