"""A text carried through the dense and the pruned model side by side, one layer at a time.

What a reader of the pruned model takes in depends on all that was done to earlier layers. A repair that heeds this
changes one reader, and goes on with what the pruned model now makes of the text. Hidden states go from one layer to the
next, so no layer runs more often than it is looked at.

B windows of T tokens a batch, H hidden features, k kept input features of a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.observing import features_of
from polyprune_core.models.layout import ModelLayout
from polyprune_core.pruning.readers import Reader
from polyprune_core.pruning.surgery import Compactor

# How far what readers add may be from what their layer adds, as a share of the latter: bfloat16 rounds.
ROUNDING = 0.05


@dataclass(frozen=True)
class Seen:
    """Means over tokens of a reader's inputs z (k,) in the pruned model, and of the outputs t (out,) it should have.

    t is the reader's output in the dense model, plus the difference between the residual streams of the dense and the
    pruned model before the reader's output is added.

    Attributes:
        mean: (k,) float32, E[z].
        products: (k, k) float32, E[z zᵀ].
        target: (out,) float32, E[t].
        cross: (out, k) float32, E[t zᵀ].
    """

    mean: Tensor
    products: Tensor
    target: Tensor
    cross: Tensor

    def cloned(self) -> Seen:
        """Returns a copy in tensors that may be changed, unless torch's inference mode is on."""
        return Seen(*(getattr(self, each.name).clone() for each in fields(self)))


Refit = Callable[[Reader, Seen], Mapping[str, Tensor]]


class _Enough(Exception):
    """Ends a forward pass at the module that was waited for."""


@dataclass(frozen=True)
class _Batch:
    """Hidden states (B, T, H) before a layer in the two models."""

    dense: Tensor
    pruned: Tensor


class SideBySide:
    """The two models on the same windows; `compactor` is active."""

    def __init__(self, compactor: Compactor, layout: ModelLayout, axis_keep: Mapping[str, Tensor]) -> None:
        self.compactor, self.layout, self.axis_keep = compactor, layout, axis_keep
        self.model: Any = compactor.model
        self.layers: list[nn.Module] = list(self.model.get_submodule(layout.layers).children())
        self.passes = 0
        self._given: dict[int, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {}

    @torch.inference_mode()
    def refitted(
        self,
        batches: Sequence[Tensor],
        readers: Sequence[Reader],
        refit: Refit,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> dict[str, Tensor]:
        """Returns what `refit` makes of each reader, in the order in which they run; `passes` then says at what cost.

        Raises:
            ModelError: a layer does more than add what its readers give to its hidden states.
        """
        updates: dict[str, Tensor] = {}
        states = [_Batch(hidden, hidden) for hidden in map(self._embedded, batches)]
        for index, layer in enumerate(self.layers):
            with self.compactor.applied({}):
                dense = [self._watched(index, state.dense) for state in states]
            modules = list(dense[0][1])
            for state, (hidden, added) in zip(states, dense, strict=True):
                _require_sum(state.dense, hidden, added.values(), layer)
            for place, module in enumerate(modules):
                reader = next((each for each in readers if each.module == module), None)
                if reader is None:
                    continue
                with self.compactor.applied(self.axis_keep, updates):
                    seen = self._seen(index, reader, modules[:place], states, [added for _, added in dense])
                with torch.inference_mode(False):
                    updates |= refit(reader, seen.cloned())
            with self.compactor.applied(self.axis_keep, updates):
                after = [_hidden(self._run(index, state.pruned)) for state in states]
            states = [_Batch(hidden, pruned) for (hidden, _), pruned in zip(dense, after, strict=True)]
            self.passes = max(self.passes, 2 + len(modules))
            progress(index + 1, len(self.layers))
        return updates

    def _seen(
        self,
        index: int,
        reader: Reader,
        before: Sequence[str],
        states: Sequence[_Batch],
        dense: Sequence[Mapping[str, Tensor]],
    ) -> Seen:
        kept, tokens = int(reader.keep.sum()), 0
        sums: list[Tensor] = []
        for state, added in zip(states, dense, strict=True):
            taken, given = self._until(index, state.pruned, reader.module, before)
            lacking = state.dense.float() - state.pruned.float()
            lacking = lacking + sum(added[name].float() - given[name].float() for name in before)
            inputs = taken[:, :kept]
            wanted = (added[reader.module].float() + lacking).flatten(0, -2)
            new = [inputs.sum(dim=0), inputs.T @ inputs, wanted.sum(dim=0), wanted.T @ inputs]
            sums = [total + each for total, each in zip(sums, new, strict=True)] if sums else new
            tokens += len(inputs)
        return Seen(*(total / tokens for total in sums))

    def _embedded(self, ids: Tensor) -> Tensor:
        """Returns the hidden states before the first layer, and keeps what every layer is called with beside them."""
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        first: list[Tensor] = []

        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            first.append(hidden)
            calls.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))
            if len(ids) in self._given:
                raise _Enough

        with ExitStack() as undo, self.compactor.applied({}):
            for layer in self.layers:
                undo.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            with suppress(_Enough):
                self.model.base_model(input_ids=ids, use_cache=False)
        if len(ids) not in self._given:
            self._given[len(ids)] = calls
        return first[0]

    def _run(self, index: int, hidden: Tensor) -> Any:
        args, kwargs = self._given[len(hidden)][index]
        return self.layers[index](hidden, *args, **kwargs)

    def _watched(self, index: int, hidden: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the hidden states after a layer, and what its readers gave, in the order in which they ran."""
        given: dict[str, Tensor] = {}
        axes = [axis for axis in self.layout.axes if axis.layer == index and axis.is_read]
        with ExitStack() as undo:
            for name in {axis.reader_module for axis in axes}:
                undo.enter_context(self._heard(name, given.__setitem__, hidden))
            return _hidden(self._run(index, hidden)), given

    def _until(
        self, index: int, hidden: Tensor, module: str, before: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what a reader takes in (tokens, k), and what readers before it gave; a removed one gives nothing."""
        given = {name: torch.zeros_like(hidden) for name in before}
        taken: list[Tensor] = []

        def stop(inputs: tuple[Tensor, ...]) -> None:
            taken.append(features_of(self.model.get_submodule(module), inputs))
            raise _Enough

        with ExitStack() as undo:
            for name in before:
                undo.enter_context(self._heard(name, given.__setitem__, hidden))
            hook = self.model.get_submodule(module).register_forward_pre_hook(lambda _module, inputs: stop(inputs))
            undo.callback(hook.remove)
            with suppress(_Enough):
                self._run(index, hidden)
        return taken[0], given

    @contextmanager
    def _heard(self, module: str, tell: Callable[[str, Tensor], None], like: Tensor) -> Iterator[None]:
        """Tells the name and the output of a module, shaped `like` hidden states, whenever it runs in the block."""

        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            tell(module, output.view(like.shape))

        handle = self.model.get_submodule(module).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _require_sum(before: Tensor, after: Tensor, parts: Any, layer: nn.Module) -> None:
    """Raises ModelError unless a layer adds to its hidden states what its readers give, and nothing else."""
    added = after.float() - before.float()
    rest = added - sum(part.float() for part in parts)
    rounding = torch.finfo(after.dtype).eps * float(after.float().norm())
    if float(rest.norm()) > ROUNDING * float(added.norm()) + rounding:
        raise ModelError(
            f"{type(layer).__name__} does not add what its readers give to the residual stream as it is, so what the "
            "stream lacks cannot be made up for; use the repair least-squares."
        )
