"""One model on one text: everything that cells share, computed once, and the work of a single cell."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import Metric, Pruned, Search
from polyprune_core.config.settings import Settings
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.latency import Load, Seconds, ratios, take_turns
from polyprune_core.evaluation.losses import Objective
from polyprune_core.evaluation.perplexity import Evaluation, Evaluator
from polyprune_core.evaluation.tasks import Tasks, TaskScores
from polyprune_core.evaluation.text import Text, evenly_spaced, sample_windows, search_batches, token_windows
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.contracts import extra_passes
from polyprune_core.plugins.registry import Registry
from polyprune_core.plugins.side_effects import WeightsChanged
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.build import build_compact
from polyprune_core.pruning.pricing import PricedBudget, price_budget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.scaling import scale
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import Policy, Scores, Selection
from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.search.policies import FAMILIES, Family, Start
from polyprune_core.search.trace import Trace
from polyprune_core.utils.memory import PeakMemory
from polyprune_core.utils.progress import Reporter
from polyprune_core.utils.rng import generator

STARTING = {"probabilities", "start_scale", "sigma"}
STEPPING = {"masks_per_step", "learning_rate", "precondition", "optimizer", "warmup", "averaging"}


@dataclass(frozen=True)
class Cost:
    """What a decision cost: passes through the model, tokens in them, time, memory."""

    forward_passes: int = 0
    forward_tokens: int = 0
    backward_passes: int = 0
    seconds: float = 0.0
    peak_memory_mb: float | None = None

    def plus(self, other: Cost) -> Cost:
        """Returns the two one after the other; peak memory is that of the latter."""
        return Cost(
            self.forward_passes + other.forward_passes,
            self.forward_tokens + other.forward_tokens,
            self.backward_passes + other.backward_passes,
            self.seconds + other.seconds,
            other.peak_memory_mb,
        )


@dataclass(frozen=True)
class Decision:
    """What a cell decided, from what, at what cost."""

    selection: Selection
    scores: Scores
    policy: Policy | None
    trace: Trace | None
    cost: Cost
    terms: PricedBudget


class Harness:
    """The model under `compactor`, its texts and its plugins; use inside `with harness.compactor`."""

    def __init__(
        self,
        loaded: LoadedModel,
        texts: dict[str, Text],
        settings: Settings,
        registry: Registry,
        reporter: Reporter,
        tasks: Tasks | None = None,
    ) -> None:
        self.tasks = tasks
        self.loaded, self.settings, self.registry = loaded, settings, registry
        self.reporter = reporter
        self.layout = describe(loaded.model)
        self.compactor = Compactor(loaded.model, self.layout)
        self.texts = texts
        self.calibration_windows = self._windows("calibration", settings.seq_len)
        self.evaluation_windows = evenly_spaced(self._windows("evaluation", settings.eval_seq_len), settings.limit)
        self.evaluator = Evaluator(self.evaluation_windows)
        self.memory = self._peak_memory()
        self.dense_peak_mb: float | None = None
        self.spaces: dict[str, MaskSpace] = {}
        self._scores: dict[tuple[str, str, int, SelectionRule | None], tuple[Scores, Cost]] = {}
        self._terms: dict[tuple[str, str, BudgetSpec], PricedBudget] = {}

    @property
    def weights_bytes(self) -> int:
        """Size of the dense model's weights in memory."""
        return sum(p.numel() * p.element_size() for p in self.loaded.model.parameters())

    @property
    def itemsize(self) -> int:
        """Bytes of one number in the model's dtype."""
        return self.loaded.model.dtype.itemsize

    def latency(self, space: MaskSpace, selection: Selection) -> float:
        """Returns the smaller model's time for one request as a fraction of the dense model's, measured in turns.

        A request is one prompt of `seq_len` tokens read and some tokens written; the ratio is a median.
        """
        load = Load(prompt_tokens=self.settings.seq_len)

        def total(seconds: Seconds) -> float:
            return seconds.prefill + load.new_tokens * seconds.decode

        with self.compactor.paused() as dense:
            ours, theirs = take_turns([self._built(space, selection), dense], load)
        return ratios(ours, theirs, total).median

    def terms(self, cell: Pruned) -> PricedBudget:
        """Returns what the cell's budget means for its units and scope, found once.

        Raises:
            BudgetError: it cannot be met.
        """
        key = (cell.granularity, cell.scope, cell.target)
        if key not in self._terms:
            space = self.space(cell.granularity)
            with self.reporter.task(f"what {cell.asked} means for {space.name}", 1):
                self._terms[key] = price_budget(cell.target, space, cell.scope, self.settings.min_keep, self)
        return self._terms[key]

    @cached_property
    def dense(self) -> Evaluation:
        """The dense model on the evaluation windows."""
        self.memory.restart()
        evaluation = self._evaluate("dense model", None)
        self.dense_peak_mb = self.memory.megabytes()
        return evaluation

    def evaluate(self, label: str, space: MaskSpace, selection: Selection) -> Evaluation:
        """Returns the evaluation of the smaller model, run without its removed units."""
        _ = self.dense
        with self.compactor.applied(space.axis_keep(selection.keep)):
            return self._evaluate(label, selection)

    def task_scores(self, label: str, space: MaskSpace | None = None, selection: Selection | None = None) -> TaskScores:
        """Returns the scores of the model that a selection leaves, built as an exporter would, or of the dense one."""
        if self.tasks is None:
            return {}
        with self.reporter.task(f"tasks of {label}", 1), self.compactor.paused() as dense:
            model = self._built(space, selection) if space and selection else dense
            scores = self.tasks.run(model, self.loaded.tokenizer, self.settings.batch_size)
            del model
            # What the libraries of the tasks keep is no memory of the cells to come.
            self.memory = self._peak_memory()
        return scores

    def _peak_memory(self) -> PeakMemory:
        return PeakMemory(self.loaded.model.device, self.weights_bytes)

    def _built(self, space: MaskSpace, selection: Selection) -> Any:
        return build_compact(PrunedModel(self.loaded, space, selection, Scores(selection.keep.float(), "selection")))

    def space(self, granularity: str) -> MaskSpace:
        """Returns the units of "head+channel" and the like: the units of all its parts."""
        if granularity not in self.spaces:
            parts = [self.registry.build("granularity", part).groups(self.layout) for part in granularity.split("+")]
            self.spaces[granularity] = MaskSpace(self.layout, [g for groups in parts for g in groups], granularity)
        return self.spaces[granularity]

    def decide(self, cell: Pruned, checkpoint: Checkpoint | None = None) -> Decision:
        """Scores, and for a search learns, then selects.

        A search goes on from what `checkpoint` holds, and is kept there while it runs.
        """
        terms = self.terms(cell)
        space, asked = terms.space, SelectionRule(terms.sparsity, cell.scope, self.settings.min_keep)
        asked_of = asked if self.registry.for_one_budget(cell.initializer) else None
        scores, cost = self.scores(space, cell.initializer, cell.seed, asked_of)
        if isinstance(cell, Metric):
            how = "raw" if scores.comparable else cell.scale
            ranked = Scores(scale(scores.values, space, how), scores.source)
            return Decision(asked.select(ranked.values, space), ranked, None, None, cost, terms)
        start = Start(space, scores, asked, **self.settings.model_dump(include=STARTING))
        family = FAMILIES[self.settings.policy](start)
        parameters, trace = family.start(), None
        if isinstance(cell, Search):
            parameters, trace, spent = self._search(cell, terms, family, parameters, checkpoint)
            cost = cost.plus(spent)
        learned = Scores(family.ranking(parameters), cell.estimator or scores.source)
        policy = family.policy(parameters, asked.sparsity)
        return Decision(asked.select(learned.values, space), learned, policy, trace, cost, terms)

    def scores(self, space: MaskSpace, spec: str, seed: int, asked: SelectionRule | None = None) -> tuple[Scores, Cost]:
        """Returns a metric's scores and what they cost, computed once per space, metric, seed and budget.

        `asked`: the budget, for a metric that needs it.
        """
        key = (space.name, spec, seed, asked)
        if key not in self._scores:
            self._scores[key] = self._score(space, spec, seed, asked)
        return self._scores[key]

    def _score(self, space: MaskSpace, spec: str, seed: int, asked: SelectionRule | None) -> tuple[Scores, Cost]:
        sample = sample_windows(self.calibration_windows, self.settings.calibration_samples, seed)
        rng = generator(seed, f"initializer {spec}")
        with self.reporter.task(f"scores of {spec}", 1) as task:
            calibration = Calibration(
                self.loaded.model,
                self.layout,
                sample,
                rng,
                self.settings.batch_size,
                progress=lambda done, total: task.update(done / total),
                compactor=self.compactor,
                budget=asked,
                measure=self.registry.measure,
            )
            self.memory.restart()
            start = time.perf_counter()
            try:
                scores = self.registry.measure(spec, self.loaded.model, space, calibration)
            except WeightsChanged:
                self._read_weights_again()
                raise
        cost = Cost(
            calibration.forward_passes,
            calibration.forward_tokens,
            calibration.backward_passes,
            time.perf_counter() - start,
            self.memory.megabytes(),
        )
        return scores, cost

    def _read_weights_again(self) -> None:
        asked = self.settings
        self.reporter.status(f"{asked.model}: its weights were changed by a plugin and are read again")
        fresh = load_model(
            asked.model,
            dtype=asked.dtype,
            device=asked.device,
            revision=asked.revision,
            trust_remote_code=asked.trust_remote_code,
        )
        weights = self.loaded.model.state_dict()
        for name, tensor in fresh.model.state_dict().items():
            weights[name].copy_(tensor)

    def _search(
        self, cell: Search, terms: PricedBudget, family: Family, parameters: Tensor, checkpoint: Checkpoint | None
    ) -> tuple[Tensor, Trace, Cost]:
        estimator = self.registry.build("estimator", cell.estimator)
        settings, seed = self.settings, cell.seed
        options = SearchOptions(
            steps=settings.steps_for(extra_passes(estimator)),
            sparsity=terms.sparsity,
            **settings.model_dump(include=STEPPING),
        )
        self.memory.restart()
        with self.reporter.task(cell.label, options.steps) as task:
            learned, trace = search(
                family,
                parameters,
                Objective(self.compactor, terms.space),
                estimator,
                search_batches(self.calibration_windows, settings.batch_size, seed),
                options,
                generator(seed, "masks"),
                lambda r: task.update(
                    r.step, f"loss {r.mean_loss:.3f}, sparsity {r.expected_sparsity:.3f}", r.mean_loss
                ),
                checkpoint,
                lambda records: task.resume([record.mean_loss for record in records]),
            )
        cost = Cost(
            trace.forward_passes, trace.forward_tokens, trace.backward_passes, trace.seconds, self.memory.megabytes()
        )
        return learned, trace, cost

    def _windows(self, role: str, seq_len: int) -> Tensor:
        windows = token_windows(self.texts[role], self.loaded.tokenizer, seq_len)
        longest = getattr(self.loaded.model.config, "max_position_embeddings", None)
        if longest and seq_len > longest:
            self.reporter.status(
                f"{role} windows of {seq_len} tokens are longer than the {longest} the model was made for"
            )
        return windows

    def _evaluate(self, label: str, selection: Selection | None) -> Evaluation:
        run = self.evaluator.dense if selection is None else self.evaluator.compare
        with self.reporter.task(f"perplexity of {label}", len(self.evaluator.batches)) as task:
            return run(self.loaded.model, lambda done, total: task.update(done))
