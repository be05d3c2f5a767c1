"""Moments of all readers of a model in one pass over a text, however many there are: one layer at a time.

The whole text goes through a layer before the next one is looked at. What is held is its hidden states, which the next
layer starts from, and the products of one layer's readers. Of a model whose weights stay in their files, one layer is
read at a time.

B windows of T tokens a batch, H hidden features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.evaluation.moments import Moments, input_sums, mean_of
from polyprune_core.models.layout import ModelLayout, split_expert


class NotCarried(Exception):
    """The layers of this model take in more than the hidden states of the one before and what all texts share."""


class _Enough(Exception):
    """Ends a forward pass at the first layer."""


Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Carrier:
    """The hidden states (B, T, H) of batches of a text before a layer, and what that layer is called with beside them.

    The first batch of each size passes through the whole model once more, which tells what every layer is given; that
    layers called one by one do the same is checked on it.
    """

    def __init__(self, model: Any, layout: ModelLayout, batches: Sequence[Tensor]) -> None:
        """Raises NotCarried, where what a layer is given beside its hidden states depends on the text."""
        self.model, self.layers = model, list(model.get_submodule(layout.layers).children())
        self.states: list[Tensor] = []
        self.given: dict[int, list[Arguments]] = {}
        self.expected: dict[int, list[Tensor]] = {}
        self.first: dict[int, int] = {}
        for place, ids in enumerate(batches):
            size = len(ids)
            hidden, given = self._calls(ids, whole=size not in self.given)
            if size not in self.given:
                self.given[size], self.expected[size], self.first[size] = given, hidden, place
            elif not _same(given[0], self.given[size][0]):
                raise NotCarried
            self.states.append(hidden[0])

    @torch.inference_mode()
    def run(self, index: int, batch: Tensor) -> None:
        """Carries a batch, which is one of `states`, through a layer."""
        place = next(place for place, state in enumerate(self.states) if state is batch)
        args, kwargs = self.given[len(batch)][index]
        output = self.layers[index](batch, *args, **kwargs)
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        wanted = self.expected[len(batch)][index + 1 : index + 2]
        if place == self.first[len(batch)] and wanted and not torch.equal(hidden, wanted[0]):
            raise NotCarried
        self.states[place] = hidden

    @torch.inference_mode()
    def _calls(self, ids: Tensor, whole: bool) -> tuple[list[Tensor], list[Arguments]]:
        """Returns what layers are given: hidden states, and the rest; of the first layer alone unless `whole`."""
        hidden: list[Tensor] = []
        given: list[Arguments] = []

        def hook(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden.append(args[0] if args else kwargs["hidden_states"])
            given.append((args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}))
            if not whole:
                raise _Enough

        with ExitStack() as undo:
            for layer in self.layers:
                undo.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            with suppress(_Enough):
                self.model.base_model(input_ids=ids, use_cache=False)
        if whole and len(hidden) != len(self.layers):
            raise NotCarried
        return hidden, given


def moments_by_layer(
    model: Any,
    layout: ModelLayout,
    wanted: Sequence[str],
    batches: Sequence[Tensor],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[tuple[str, Moments]]:
    """Yields each of the `wanted` readers with its moments, on the CPU, over the tokens of `batches` of windows (B, T).

    Raises:
        NotCarried: hidden states alone do not lead from one layer to the next, or a reader is in none of them.
    """
    carrier = Carrier(model, layout, batches)
    for index in range(len(carrier.layers)):
        modules = {axis.reader_module for axis in layout.axes if axis.layer == index and axis.is_read}
        readers = [name for name in wanted if split_expert(name)[0] in modules]
        if not all(reader.startswith(f"{layout.layers}.{index}.") for reader in readers):
            raise NotCarried
        run = partial(carrier.run, index)
        sums = input_sums(model, readers, lambda x: [x.sum(dim=0), x.T @ x], list(carrier.states), run)
        for name in list(sums):
            yield name, mean_of(*sums.pop(name))
        progress(index + 1, len(carrier.layers))


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor):
        return isinstance(theirs, Tensor) and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(_same(value, theirs[key]) for key, value in ours.items())
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return ours is theirs or bool(ours == theirs)
