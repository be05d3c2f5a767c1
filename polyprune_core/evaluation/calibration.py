"""What a metric may look at: calibration text, input statistics, gradients, and randomness of its own."""

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
    """Moments over calibration tokens of one reader's input features: `mean` and `mean_square` are (F,) float32."""

    mean: Tensor
    mean_square: Tensor


class Calibration(Metered):
    """Calibration for one model; every statistic is computed once and its cost counted.

    Attributes:
        windows: (N, T) int64 token windows.
        rng: the metric's own generator.
        readings: the passes for moments that are counted here, or were before in the same row.
        seconds_elsewhere: what counted passes took that another row has made.
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
        """Takes what it holds and what it draws on.

        `compactor`: the one in use around this, where there is one; `losses` otherwise starts its own each time.
        `budget`: for a metric that needs it. `measure`: makes the scores of another metric, for `score`. `store`:
        where moments are kept, for others too. `readings`: passes whose cost the row bears already.
        `mend`: makes the updates of another repair, for `repair`. `keeper`: for `save`. `held_back`: other windows, for
        a metric that needs them.
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
        """What the scores are selected under.

        Raises:
            PluginError: the metric does not say that it needs "budget", so its scores serve every sparsity.
        """
        if self._budget is None:
            raise PluginError('scores made for one budget have to say so: put "budget" into the needs of the Provider.')
        return self._budget

    @property
    def held_back(self) -> Tensor:
        """Windows (M, T) of the calibration text that are not among `windows`.

        Raises:
            PluginError: the metric does not say that it needs "held-back", so none are kept for it.
        """
        if self._held_back is None:
            raise PluginError('text is held back for who says so: put "held-back" into the needs of the Provider.')
        return self._held_back

    def score(self, spec: str, space: MaskSpace, how: str = "raw") -> Tensor:
        """Returns (U,) scores of another metric on this calibration, which bears their cost.

        `spec` is NAME or NAME:option=value…; `how` they are made comparable across layers: `raw`, `zscore` or
        `per-parameter`.

        Raises:
            PluginError: there is no such metric or option, or this calibration was made without other metrics.
        """
        if self._measure is None:
            raise PluginError(f"this calibration was made without other metrics, so {spec!r} cannot be measured.")
        if (spec, space) not in self._others:
            self._others[spec, space] = self._measure(spec, self.model, space, self)
        scores = self._others[spec, space]
        return scale(scores.values, space, "raw" if scores.comparable else how)

    def score_others(self, values: Mapping[str, Tensor], spec: str, space: MaskSpace) -> Tensor:
        """Returns (U,) scores: of units that have `values` the sums of these, of the rest another metric's scores.

        `values` maps the names of axes, such as those of experts, to (size,); `spec` is as in `score`.

        Raises:
            PluginError: as `score`, where there is a rest.
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
        """Returns what another repair changes on this calibration, which bears its cost.

        Raises:
            PluginError: there is no such repair or option, or this calibration was made without other repairs.
        """
        if self._mend is None:
            raise PluginError(f"this calibration was made without other repairs, so {spec!r} cannot be asked.")
        return self._mend(spec, pruned, self)

    def save(self, state: Mapping[str, Any]) -> None:
        """Keeps the state of long work beside the cell, at most every few seconds, with what it has cost so far.

        `state` is a tree of numbers and tensors: mappings with text as keys, lists, tuples, None. Where nothing is
        kept, as in `polyprune prune`, this does nothing.
        """
        if self._keeper is not None:
            seconds = time.perf_counter() - self._start + self.seconds_elsewhere
            self._keeper.keep(lambda: {"state": state, "spent": counts(self), "seconds": seconds})

    def saved(self) -> Mapping[str, Any] | None:
        """Returns the state that was saved last before an interruption, its tensors on the CPU; None where none was.

        What it had cost until then is counted here in place of what has been.
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
        """Returns uniform draws in [0, 1) from `rng`."""
        return torch.rand(size, generator=self.rng)

    def batches(self, batch_size: int | None = None) -> Iterator[Tensor]:
        """Yields (B, T) batches of `windows` on the model's device, and reports progress."""
        chunks = self.windows.split(batch_size or self.batch_size)
        for done, ids in enumerate(chunks, 1):
            yield ids.to(self.model.device)
            self.count(ids.numel())
            self.progress(done, len(chunks))

    def observe(self, watched: Mapping[str, Watch]) -> None:
        """Passes the text once through the model as it now is, without gradients.

        `watched` maps names of modules to what is told their positional arguments and what they return, at every call.
        """
        observe(self.model, watched.items(), self.batches())

    def observe_readers(self, axes: Iterable[str], tell: Callable[[str, Tensor], None]) -> None:
        """As `observe`; tells the name of each axis, and what reads it takes in: (tokens, F) float32.

        Of a mixture that are the inner features of all its experts, one beside the other, times the router's weight,
        and zero where an expert is not chosen.

        Raises:
            ModelError: nothing reads an axis.
        """

        def watch(axis: str) -> tuple[str, Watch]:
            name = self.layout.axis[axis].reader_module
            module = self.model.get_submodule(name)
            return name, lambda inputs, _output: tell(axis, features_of(module, inputs))

        observe(self.model, [watch(axis) for axis in axes], self.batches())

    def losses(self, space: MaskSpace, masks: Tensor, ids: Tensor) -> Tensor:
        """Returns (K,) float32 mean next-token loss in nats of the model without the units that `masks` removes.

        `masks` is (K, U) bool over the units of `space`, True where a unit stays; `ids` (B, T) tokens, for instance
        some of `windows`. Every mask counts as one forward pass.
        """
        with ExitStack() as stack:
            compactor = self._compactor or stack.enter_context(Compactor(self.model, self.layout))
            values = Objective(compactor, space).losses(masks, ids).clone()  # no inference tensor: it can be written
        self.count(ids.numel(), passes=len(masks))
        return values

    def refitted(self, pruned: PrunedModel, refit: Refit) -> dict[str, Tensor]:
        """Returns the parameters by name that `refit` makes of the readers that are left, layer after layer.

        `refit(reader, seen)` is given what the reader takes in where the model is pruned, and earlier readers are as
        `refit` has made them, beside what it should give. The text passes once through the dense model, and through
        the pruned one once for each reader of a layer and once more. Experts that are too large together for this are
        left out where nothing of theirs is removed.

        Raises:
            ModelError: a layer of the model does more than add what its readers give to its hidden states, or the
                products of what all experts of a layer take in would take more than `AT_MOST`.
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
        """Returns, by axis name, the moments of what the axis' reader takes in, in the unpruned model; of views too."""
        readers = {axis.name: axis.reader_module for axis in self.layout.axis.values() if axis.is_read}
        moments = self._moments(list(readers.values()))
        return {name: moments[reader] for name, reader in readers.items()}

    def input_norms(self, modules: Iterable[str]) -> dict[str, Tensor]:
        """Returns, by module name, (F,) float32 root mean squares over tokens of each linear module's input features.

        Wanda's norm of an input feature, divided by the square root of the number of tokens.
        """
        names = list(dict.fromkeys(modules))
        moments = self._moments(names)
        return {name: moments[name].mean_square.sqrt() for name in names}

    def moments(self, axis: str) -> Moments:
        """Returns mean (F,) and second moments (F, F) of what the axis' reader takes in, in the unpruned model.

        `axis` is the name of one, or NAME[i] for the expert i of a mixture alone, as `Reader.axis` is. The first call
        collects them for all readers of the model, in one pass, or where neither memory holds them all nor layers can
        be run one by one, in as few as memory allows. Whoever asks for them on the same windows gets the same ones, and
        bears their cost as if they had been collected for it alone.

        Raises:
            ModelError: nothing reads the axis, or its second moments would take more than `AT_MOST`.
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
        """Returns gradients of the mean loss by parameter name, for every parameter that an axis cuts, in float32.

        The second dictionary is empty, or with `squares` holds the mean over windows of the squared gradient of each
        window's own mean loss (one backward pass a window instead of one a batch).
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
