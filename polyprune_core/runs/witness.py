"""Whether the dense model still is what it was when the run began.

A plugin is given the model, or can find it. What it leaves changed would falsify every row to come, so it is put back,
and the plugin is told of by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from polyprune_core.errors import ModelError, PluginError, PolypruneError
from polyprune_core.evaluation.losses import last_hidden, losses_from_hidden
from polyprune_core.evaluation.perplexity import not_finite
from polyprune_core.plugins.anatomy import Anatomy
from polyprune_core.plugins.side_effects import WeightsChanged, bit_sums, same_sums

PROBE_TOKENS = 32
# What a model raises that no longer fits together.
TAKEN_APART = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Witness:
    """Holds what the model says of one short text, and sums of the bits of all its tensors.

    `ids` (N, T) is the text, of which the first tokens are used. `whole` is entered to run the model without masks,
    `read_again` gives it the numbers of its files.
    """

    def __init__(
        self,
        model: Any,
        ids: Tensor,
        whole: Callable[[], AbstractContextManager[Any]],
        read_again: Callable[[], None],
    ) -> None:
        """Raises ModelError where what the model says is not finite."""
        self.model, self.ids = model, ids[:1, :PROBE_TOKENS].to(model.device)
        self._whole, self._read_again = whole, read_again
        self._sums: dict[tuple[str, tuple[int, ...]], tuple[Tensor, Tensor]] = {}
        self._lost: PluginError | None = None
        self._said = self._says()
        if not all(bool(said.isfinite().all()) for said in self._said):
            raise not_finite("the dense model", model)

    @contextmanager
    def over(self, outside: str, shared: Mapping[str, Tensor] = MappingProxyType({})) -> Iterator[None]:
        """Raises PluginError where the block leaves the model or its code changed, after putting it back.

        `outside` names the plugins of others that the block calls. Where there is none, only weights that our own have
        changed are read again. `shared` are other tensors that the block must leave alone, by what they are.
        """
        self.require()
        before = Anatomy(self.model) if outside else None
        copies = {name: tensor.clone() for name, tensor in shared.items()} if outside else {}
        if before:
            self._take_sums()
        failed: Exception | None = None
        try:
            yield
        except (PolypruneError, *TAKEN_APART) as error:  # what our own code raises where a plugin took it apart
            failed = error
        changed = before.restore() if before else []
        for name, copied in copies.items():
            if not torch.equal(shared[name], copied):
                shared[name].copy_(copied)
                changed.append(name)
        if before:
            changed += self._put_right(isinstance(failed, WeightsChanged), outside, changed)
        elif isinstance(failed, WeightsChanged):
            self._read_again()
        if changed and not isinstance(failed, WeightsChanged):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise PluginError(
                f"{outside} changed {changed[0]}{more}, with which every other row is measured; it was put back."
            ) from failed
        if failed:
            raise failed

    def require(self) -> None:
        """Raises PluginError where a plugin has changed what could not be put back."""
        if self._lost:
            raise PluginError(str(self._lost))

    def _put_right(self, weights: bool, outside: str, changed: list[str]) -> list[str]:
        """Reads numbers again that are others than before, and returns what was wrong besides `changed`."""
        same = self._says_the_same()  # rotary embeddings that follow the text have now seen that of the probe
        numbers = not weights and self._has_its_numbers()
        if not numbers:
            self._read_again()
        if not (numbers and same) and not (self._says_the_same() and self._has_its_numbers()):
            what = (*changed, "what the model says")[0]
            self._lost = PluginError(
                f"{outside} changed {what}, and that cannot be put back: nothing can be measured after it. Run again "
                "without it."
            )
            raise self._lost
        return [] if numbers else ["weights or buffers of the model"]

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def _take_sums(self) -> None:
        # A weight that lies in memory otherwise, as readers do under masks, has other sums.
        for name, tensor in self._tensors().items():
            if (name, tensor.stride()) not in self._sums:
                self._sums[name, tensor.stride()] = bit_sums(tensor)

    def _has_its_numbers(self) -> bool:
        tensors = self._tensors()
        known = {name: self._sums.get((name, tensor.stride())) for name, tensor in tensors.items()}
        return all(sums and same_sums(bit_sums(tensors[name]), sums) for name, sums in known.items())

    def _says_the_same(self) -> bool:
        try:
            return all(map(torch.equal, self._says(), self._said))
        except TAKEN_APART:
            return False

    @torch.inference_mode()
    def _says(self) -> tuple[Tensor, Tensor]:
        with self._whole():
            hidden = last_hidden(self.model, self.ids)
            return hidden.clone(), losses_from_hidden(self.model, hidden, self.ids)


def take_numbers(model: Any, fresh: Any) -> None:
    """Gives a model the parameters and buffers of another of its kind, in memory of its own."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}.items():
        if name not in own:
            raise ModelError(f"{name} is no longer in the model.")
        own[name].data = tensor.data
