"""What metrics and repairs may look at: calibration text, statistics of inputs, gradients, and a random generator.

Symbols in shapes: N windows of T tokens, B windows a batch, F input features of a reader, U units, K masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import ModelError, PluginError
from polyprune_core.evaluation.carried import NotCarried, moments_by_layer
from polyprune_core.evaluation.keeping import Keeper, Kept, kept
from polyprune_core.evaluation.losses import counts
from polyprune_core.evaluation.moments import (
    AT_MOST,
    Moments,
    MomentStore,
    Reading,
    collect_moments,
    passes_over,
    size_of_moments,
    text_hash,
)
from polyprune_core.evaluation.text_passes import TextPasses
from polyprune_core.models.layout import ModelLayout, expert_of, split_expert
from polyprune_core.models.remote_code import is_stock
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.scaling import scale
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import Scores

Measure = Callable[[str, nn.Module, MaskSpace, "Calibration"], Scores]
Mend = Callable[[str, PrunedModel, "Calibration"], Mapping[str, Tensor]]


class Calibration(TextPasses):
    """The calibration text for one model, with statistics of the model on it. Each is computed once, when asked for.

    Attributes:
        windows: (N, T) int64, windows of tokens of the calibration text.
        rng: the random generator of this metric or repair alone.
        forward_passes: forward passes over windows so far.
        forward_tokens: tokens in these passes.
        backward_passes: backward passes so far.
        readings: the passes for moments whose cost this row bears already.
        seconds_elsewhere: the time of passes that are counted here but were made for another row, in seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        layout: ModelLayout,
        windows: Tensor,
        rng: torch.Generator,
        batch_size: int = 8,
        progress: Callable[[int, int], None] = lambda done, total: None,
        compactor: Compactor | None = None,
        budget: SelectionRule | None = None,
        measure: Measure | None = None,
        store: MomentStore | None = None,
        readings: Iterable[Reading] = (),
        mend: Mend | None = None,
        keeper: Keeper | None = None,
        held_back: Tensor | None = None,
    ) -> None:
        """Keeps its arguments; nothing is computed yet.

        Args:
            model: the dense model.
            layout: the axes of the model.
            windows: (N, T) int64 token windows.
            rng: the generator that random draws come from.
            batch_size: windows in one forward pass.
            progress: is called after each batch with the number of batches done, and the number of all.
            compactor: the compactor that is active already, if there is one. Otherwise `losses` makes its own.
            budget: the budget, for a metric that needs "budget".
            measure: computes the scores of another metric, for `score`.
            store: where moments are kept, which other rows may share.
            readings: the passes whose cost this row bears already.
            mend: computes the updates of another repair, for `repair`.
            keeper: where `save` keeps states.
            held_back: (M, T) int64, further windows, for a metric that needs "held-back".
        """
        super().__init__(model, layout, windows, batch_size, progress, compactor)
        self.rng, self._budget, self._measure, self._held_back = rng, budget, measure, held_back
        self._mend, self._keeper, self._start = mend, keeper, time.perf_counter()
        self._store = store or MomentStore()
        self.readings: set[Reading] = set(readings)
        self.seconds_elsewhere = 0.0
        self._others: dict[tuple[str, MaskSpace], Scores] = {}

    @property
    def budget(self) -> SelectionRule:
        """The sparsity, the scope and the other rules that units will be selected under.

        Raises:
            PluginError: the provider of the metric does not list "budget" in its needs.
        """
        if self._budget is None:
            raise PluginError(
                'a metric read `calibration.budget` without asking for it: put "budget" into the needs of its Provider.'
            )
        return self._budget

    @property
    def held_back(self) -> Tensor:
        """Windows (M, T) int64 of the calibration text that are not among `windows`.

        Raises:
            PluginError: the provider of the metric does not list "held-back" in its needs.
        """
        if self._held_back is None:
            raise PluginError(
                "a metric read `calibration.held_back` without asking for it: "
                'put "held-back" into the needs of its Provider.'
            )
        return self._held_back

    def score(self, spec: str, space: MaskSpace, how: str = "raw") -> Tensor:
        """Returns the scores (U,) of another metric on this text. The cost of that metric is counted here.

        Args:
            spec: the other metric as users type it: NAME or NAME:option=value,option=value.
            space: the units to score.
            how: how the scores are made comparable across layers: `raw`, `zscore` or `per-parameter`.

        Raises:
            PluginError: there is no such metric or option, or no other metrics were given to this calibration.
        """
        if self._measure is None:
            raise PluginError(
                f"the metric {spec!r} cannot be computed: this Calibration was made without `measure`. "
                "Run the plugin through polyprune, or give `measure`."
            )
        if (spec, space) not in self._others:
            self._others[spec, space] = self._measure(spec, self.model, space, self)
        scores = self._others[spec, space]
        return scale(scores.values, space, "raw" if scores.comparable else how)

    def score_others(self, values: Mapping[str, Tensor], spec: str, space: MaskSpace) -> Tensor:
        """Returns scores (U,): sums of `values` for the units that have them, another metric's scores for the others.

        Args:
            values: (size,) for each axis that it names, a value for every entry of that axis.
            spec: the metric for the other units, as for `score`.
            space: the units to score.

        Raises:
            PluginError: as `score`, if there are other units.
        """
        scores = torch.zeros(len(space))
        for own in (True, False):
            groups = [group for group in space.groups if all((name in values) is own for name, _ in group.spans)]
            if not groups:
                continue
            part = MaskSpace(space.layout, groups, space.name)
            found = part.sum_entries(dict(values)) if own else self.score(spec, part)
            places = [place for place, group in zip(space.slices(), space.groups, strict=True) if group in groups]
            scores[torch.cat([torch.arange(place.start, place.stop) for place in places])] = found.cpu().float()
        return scores

    def repair(self, spec: str, pruned: PrunedModel) -> Mapping[str, Tensor]:
        """Returns the new values that another repair computes on this text. The cost of that repair is counted here.

        Args:
            spec: the other repair as users type it: NAME or NAME:option=value,option=value.
            pruned: the pruned model to repair.

        Raises:
            PluginError: there is no such repair or option, or no other repairs were given to this calibration.
        """
        if self._mend is None:
            raise PluginError(
                f"the repair {spec!r} cannot be computed: this Calibration was made without `mend`. "
                "Run the plugin through polyprune, or give `mend`."
            )
        return self._mend(spec, pruned, self)

    def save(self, state: Mapping[str, Any]) -> None:
        """Keeps the state of long work on disk, with the cost so far, so that an interrupted run can continue.

        A call within a few seconds of the last state that was kept does nothing. So does every call in a command that
        keeps no states, such as `polyprune prune`.

        Args:
            state: numbers, tensors and None, in mappings with text as keys, lists and tuples.
        """
        if self._keeper is not None:
            seconds = time.perf_counter() - self._start + self.seconds_elsewhere
            self._keeper.keep(lambda: {"state": state, "spent": counts(self), "seconds": seconds})

    def saved(self) -> Mapping[str, Any] | None:
        """Returns the state that was kept last before an interruption, with its tensors on the CPU, or None.

        The cost that was kept with the state replaces the cost that is counted here.
        """
        found = None if self._keeper is None else self._keeper.read(kept)
        if found is None:
            return None
        before: Kept = found
        for name, value in before.spent.items():
            setattr(self, name, value)
        self.seconds_elsewhere += before.seconds
        return before.state

    def rand(self, *size: int) -> Tensor:
        """Returns a tensor of this shape with uniform draws in [0, 1) from `rng`."""
        return torch.rand(size, generator=self.rng)

    def moments(self, axis: str) -> Moments:
        """Returns the mean (F,) and the second moments (F, F) of the inputs of an axis' reader in the dense model.

        The first call collects the moments of all readers in one pass over the text. If they do not fit into memory and
        the layers cannot be run one by one, it takes several passes. Another row with the same windows reuses the
        moments. Its cost is counted as if they had been collected for that row alone.

        Args:
            axis: the name of an axis, or NAME[i] for expert i alone, as in `Reader.axis`.

        Raises:
            ModelError: the axis has no reader, or its second moments would need more than 16 GB.
        """
        name, expert = split_expert(axis)
        module = self.layout.axis[name].reader_module
        reader = module if expert is None else expert_of(module, expert)
        size = size_of_moments(self.model, self.layout.axis[name], expert)
        if size > AT_MOST:
            raise ModelError(
                f"the second moments of what {reader} takes in would need {size / 1e9:,.0f} GB, more than "
                f"{AT_MOST / 1e9:.0f}; use a metric that needs none, such as wanda, flap, frequency or reap, or leave "
                "experts out of the granularity."
            )
        passes = list(passes_over(self.model, self.layout, reader))
        carried = len(passes) > 1 and self._store.carried and is_stock(self.model)
        passes = [tuple(each for readers in passes for each in readers)] if carried else passes
        reading = Reading(self._text, next(readers for readers in passes if reader in readers))
        if reading not in self._store.seconds and carried:
            try:
                self._carry(reading)
            except NotCarried:
                self._store.carried = False
                return self.moments(axis)
        elif reading not in self._store.seconds:
            self._store.collect(reading, collect_moments(self.model, reading.readers, self.batches()))
        elif reading not in self.readings:
            for ids in self.windows.split(self.batch_size):
                self.count(ids.numel())
            self.seconds_elsewhere += self._store.seconds[reading]
        self.readings.add(reading)
        moments = self._store.read(reading.text, reader)
        device = next(self.model.get_submodule(module).parameters()).device
        return Moments(moments.mean.to(device), moments.second.to(device))

    def _carry(self, reading: Reading) -> None:
        """Collects all moments of a large model in one pass, layer by layer."""
        batches = [ids.to(self.model.device) for ids in self.windows.split(self.batch_size)]
        found = moments_by_layer(self.model, self.layout, reading.readers, batches, self.progress)
        self._store.collect(reading, found)
        for ids in batches:
            self.count(ids.numel())

    @cached_property
    def _text(self) -> str:
        return text_hash(self.windows)
