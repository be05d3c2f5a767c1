"""What metrics and repairs may look at: calibration text, statistics of inputs, gradients, and a random generator.

Symbols in shapes: N windows of T tokens, B windows a batch, F input features of a reader, U units, K masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from polyprune_core.errors import ModelError, PluginError
from polyprune_core.evaluation.carried import NotCarried, moments_by_layer
from polyprune_core.evaluation.gradients import collect_gradients
from polyprune_core.evaluation.keeping import Keeper, Kept, kept
from polyprune_core.evaluation.layerwise import Refit, SideBySide
from polyprune_core.evaluation.losses import Metered, Objective, counts
from polyprune_core.evaluation.moments import (
    AT_MOST,
    Moments,
    MomentStore,
    Reading,
    collect_moments,
    input_sums,
    passes_over,
    size_of_moments,
    text_hash,
)
from polyprune_core.evaluation.observing import Watch, features_of, observe
from polyprune_core.models.layout import ModelLayout, expert_of, split_expert
from polyprune_core.models.remote_code import is_stock
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.readers import Reader
from polyprune_core.pruning.scaling import scale
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import Scores

Measure = Callable[[str, nn.Module, MaskSpace, "Calibration"], Scores]
Mend = Callable[[str, PrunedModel, "Calibration"], Mapping[str, Tensor]]


@dataclass
class InputStatistics:
    """Means over calibration tokens of the input features of one reader.

    Attributes:
        mean: (F,) float32, the mean of each input feature.
        mean_square: (F,) float32, the mean of the square of each input feature.
    """

    mean: Tensor
    mean_square: Tensor


class Calibration(Metered):
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
        super().__init__()
        self.model, self.layout, self.windows, self.rng = model, layout, windows, rng
        self.batch_size, self.progress = batch_size, progress
        self._compactor, self._budget, self._measure = compactor, budget, measure
        self._held_back = held_back
        self._mend, self._keeper, self._start = mend, keeper, time.perf_counter()
        self._store = store or MomentStore()
        self.readings: set[Reading] = set(readings)
        self.seconds_elsewhere = 0.0
        self._inputs: dict[str, InputStatistics] = {}
        self._others: dict[tuple[str, MaskSpace], Scores] = {}
        self._gradients: dict[bool, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

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

    def batches(self, batch_size: int | None = None) -> Iterator[Tensor]:
        """Yields `windows` in batches (B, T) on the model's device, and counts a forward pass for each batch."""
        chunks = self.windows.split(batch_size or self.batch_size)
        for done, ids in enumerate(chunks, 1):
            yield ids.to(self.model.device)
            self.count(ids.numel())
            self.progress(done, len(chunks))

    def observe(self, watched: Mapping[str, Watch]) -> None:
        """Runs the text once through the model as it is now, without gradients.

        Args:
            watched: maps the name of a module to a function. The function is called each time the module has run, with
                the module's positional arguments and its output.
        """
        observe(self.model, watched.items(), self.batches())

    def observe_readers(self, axes: Iterable[str], tell: Callable[[str, Tensor], None]) -> None:
        """Runs the text once through the model, and calls `tell` with the inputs of the readers of these axes.

        For an axis of experts, the input features are the inner features of all experts side by side. Each is
        multiplied by the router's weight for its expert, which is 0 if the expert is not chosen.

        Args:
            axes: names of axes.
            tell: is called for each axis and batch with the name of the axis, and with the inputs (tokens, F) float32
                of its reader.

        Raises:
            ModelError: an axis has no reader.
        """

        def watch(axis: str) -> tuple[str, Watch]:
            name = self.layout.axis[axis].reader_module
            module = self.model.get_submodule(name)
            return name, lambda inputs, _output: tell(axis, features_of(module, inputs))

        observe(self.model, [watch(axis) for axis in axes], self.batches())

    def losses(self, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        """Returns the mean next-token loss (K,) float32, in nats, of the model under each of K masks.

        Every mask counts as one forward pass.

        Args:
            space: the units.
            masks: (K, U) bool, True for a unit that stays.
            ids: (B, T) int64 tokens, for instance some of `windows`.
        """
        with ExitStack() as stack:
            compactor = self._compactor or stack.enter_context(Compactor(self.model, self.layout))
            values = Objective(compactor, space).losses(masks, ids).clone()  # no inference tensor: it can be written
        self.count(ids.numel(), passes=len(masks))
        return values

    def refitted(self, pruned: PrunedModel, refit: Refit) -> dict[str, Tensor]:
        """Refits the readers of the pruned model one after another, and returns the new parameters by name.

        The text passes through the dense model and the pruned model side by side, layer by layer. `refit(reader, seen)`
        is called for every reader that is left. At that time, all earlier readers have the values that `refit` returned
        for them. `seen` (`Seen`) holds the reader's inputs in the pruned model, and the outputs that it should have. A
        layer with R readers takes one pass through the dense model and R + 1 through the pruned one.

        The experts of a layer are one reader here. If its products would need more than 16 GB and nothing of it is
        removed, it is left as it is.

        Raises:
            ModelError: a layer of the model does more than add the outputs of its readers to its hidden states, or the
                experts of a layer are cut and their products would need more than 16 GB.
        """
        readers = [reader for reader in pruned.left_readers(routed=True) if _fits(reader)]
        batches = [ids.to(self.model.device) for ids in self.windows.split(self.batch_size)]
        with ExitStack() as stack:
            compactor = self._compactor or stack.enter_context(Compactor(self.model, self.layout))
            models = SideBySide(compactor, self.layout, pruned.axis_keep())
            updates = models.refitted(batches, readers, refit, self.progress)
        self.count(self.windows.numel(), passes=models.passes)
        return updates

    def input_statistics(self) -> dict[str, InputStatistics]:
        """Returns for the name of every axis and view with a reader the statistics of the reader's inputs.

        They are those of the dense model.
        """
        readers = {axis.name: axis.reader_module for axis in self.layout.axis.values() if axis.is_read}
        moments = self._moments(list(readers.values()))
        return {name: moments[reader] for name, reader in readers.items()}

    def input_norms(self, modules: Iterable[str]) -> dict[str, Tensor]:
        """Returns for each named linear module the root mean square (F,) float32 over tokens of its input features.

        It is the norm of Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1), divided by the square root of the number of
        tokens.
        """
        names = list(dict.fromkeys(modules))
        moments = self._moments(names)
        return {name: moments[name].mean_square.sqrt() for name in names}

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

    def gradients(self, *, squares: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns two dictionaries from the name of every parameter that an axis cuts to a float32 tensor of its shape.

        The first has the gradient of the mean loss in nats per token. The second is empty, or with `squares` it has the
        mean over windows of the squared gradient of the window's mean loss. `squares` takes one backward pass a window
        instead of one a batch.
        """
        if squares not in self._gradients:
            names = dict.fromkeys(cut.parameter for axis in self.layout.axes for cut in axis.cuts)
            batches = self.batches(1 if squares else None)
            mean, square, passes = collect_gradients(self.model, list(names), batches, len(self.windows), squares)
            self.backward_passes += passes
            self._gradients[squares] = mean, square
        return self._gradients[squares]

    def _moments(self, modules: list[str]) -> dict[str, InputStatistics]:
        missing = [name for name in modules if name not in self._inputs]
        if missing:
            self._inputs |= self._collect_inputs(missing)
        return self._inputs

    def _collect_inputs(self, modules: list[str]) -> dict[str, InputStatistics]:
        sums = input_sums(self.model, modules, lambda x: [x.sum(dim=0), x.square().sum(dim=0)], self.batches())
        return {name: InputStatistics(*(total / tokens for total in totals)) for name, (tokens, totals) in sums.items()}


def _fits(reader: Reader) -> bool:
    """Whether the products of what a reader takes in can be held; raises ModelError if not and it lost some of it."""
    size = 4.0 * int(reader.keep.sum()) ** 2
    if not reader.routed or size <= AT_MOST:
        return True
    if reader.whole:
        return False
    raise ModelError(
        f"the experts of {reader.module} are refitted together, and the products of what they take in would need "
        f"{size / 1e9:,.0f} GB, more than {AT_MOST / 1e9:.0f}; use least-squares, which refits each by itself where "
        "channels of experts are removed, or none."
    )
