"""One model on one text: everything that cells share, computed once, and the work of a single cell."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from polyprune_core import budget
from polyprune_core.config import Cell, Comparison, Settings
from polyprune_core.data import Text, evenly_spaced, sample_windows, search_batches, token_windows
from polyprune_core.evaluate import Evaluation, Evaluator
from polyprune_core.memory import PeakMemory
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.objective import Objective
from polyprune_core.plugins.registry import Registry
from polyprune_core.plugins.watch import WeightsChanged
from polyprune_core.policy import from_scores, scale
from polyprune_core.progress import Reporter
from polyprune_core.scoring import Calibration
from polyprune_core.search import SearchOptions, check_estimator, search
from polyprune_core.seeds import generator
from polyprune_core.space import MaskSpace
from polyprune_core.surgery import Compactor
from polyprune_core.types import Policy, Scores, Selection, Trace


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


class Harness:
    """The model under `compactor`, its texts and its plugins; use inside `with harness.compactor`."""

    def __init__(
        self, loaded: LoadedModel, texts: dict[str, Text], settings: Settings, registry: Registry, reporter: Reporter
    ) -> None:
        self.loaded, self.settings, self.registry = loaded, settings, registry
        self.reporter = reporter
        self.layout = describe(loaded.model)
        self.compactor = Compactor(loaded.model, self.layout)
        self.texts = texts
        self.calibration_windows = self._windows("calibration", settings.seq_len)
        self.evaluation_windows = evenly_spaced(self._windows("evaluation", settings.eval_seq_len), settings.limit)
        self.evaluator = Evaluator(self.evaluation_windows)
        self.memory = PeakMemory(loaded.model.device, self.weights_bytes)
        self.dense_peak_mb: float | None = None
        self.spaces: dict[str, MaskSpace] = {}
        self._scores: dict[tuple[str, str, int], tuple[Scores, Cost]] = {}

    @property
    def weights_bytes(self) -> int:
        """Size of the dense model's weights in memory."""
        return sum(p.numel() * p.element_size() for p in self.loaded.model.parameters())

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

    def space(self, granularity: str) -> MaskSpace:
        """Returns the units of "head+channel" and the like: the units of all its parts."""
        if granularity not in self.spaces:
            parts = [self.registry.build("granularity", part).groups(self.layout) for part in granularity.split("+")]
            self.spaces[granularity] = MaskSpace(self.layout, [g for groups in parts for g in groups], granularity)
        return self.spaces[granularity]

    def decide(self, cell: Cell) -> Decision:
        """Scores, and for a search learns, then selects; `cell` is not the dense one."""
        space = self.space(cell.granularity or "")
        sparsity, scope = cell.sparsity or 0.0, cell.scope or "kind"
        scores, cost = self.scores(space, cell.initializer or "", cell.seed or 0)
        if cell.kind == "baseline":
            ranked = Scores(scale(scores.values, space, cell.scale or "raw"), scores.source)
            selection = budget.select(ranked.values, space, sparsity, scope, self.settings.min_keep)
            return Decision(selection, ranked, None, None, cost)
        policy = from_scores(scores.values, space, sparsity, scope, self.settings.probabilities)
        trace = None
        if cell.estimator:
            policy, trace, spent = self._search(cell, space, policy)
            cost = cost.plus(spent)
        learned = Scores(policy.keep_prob, cell.estimator or scores.source)
        selection = budget.select(learned.values, space, sparsity, scope, self.settings.min_keep)
        return Decision(selection, learned, policy, trace, cost)

    def scores(self, space: MaskSpace, spec: str, seed: int) -> tuple[Scores, Cost]:
        """Returns a metric's scores and what they cost, computed once per space, metric and seed."""
        key = (space.name, spec, seed)
        if key not in self._scores:
            self._scores[key] = self._score(space, spec, seed)
        return self._scores[key]

    def _score(self, space: MaskSpace, spec: str, seed: int) -> tuple[Scores, Cost]:
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
            )
            self.memory.restart()
            start = time.perf_counter()
            metric = self.registry.build("initializer", spec)
            try:
                values = metric.score(self.loaded.model, space, calibration)
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
        return Scores(values.detach().cpu().float(), spec), cost

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

    def _search(self, cell: Cell, space: MaskSpace, policy: Policy) -> tuple[Policy, Trace, Cost]:
        estimator = self.registry.build("estimator", cell.estimator or "")
        settings, seed = self.settings, cell.seed or 0
        options = SearchOptions(
            steps=settings.search_steps,
            masks_per_step=settings.masks_per_step,
            learning_rate=settings.learning_rate,
            sparsity=cell.sparsity or 0.0,
            scope=cell.scope or "kind",
            precondition=settings.precondition,
        )
        self.memory.restart()
        with self.reporter.task(
            f"{cell.initializer} → {cell.estimator}, sparsity {cell.sparsity}, seed {seed}", options.steps
        ) as task:
            learned, trace = search(
                policy,
                Objective(self.compactor, space),
                estimator,
                search_batches(self.calibration_windows, settings.batch_size, seed),
                options,
                generator(seed, "masks"),
                lambda r: task.update(
                    r.step, f"loss {sum(r.losses) / len(r.losses):.3f}, sparsity {r.expected_sparsity:.3f}"
                ),
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


def check_plugins(config: Comparison, registry: Registry) -> dict[str, dict[str, str]]:
    """Builds every plugin that a comparison names, before anything heavy; returns {role: {spec: distribution}}.

    Raises:
        PluginError, ConfigError: a name, an option or a number of masks cannot be used.
    """
    parts: Sequence[str] = [part for name in config.granularity for part in name.split("+")]
    wanted = {
        "granularity": dict.fromkeys(parts),
        "initializer": dict.fromkeys([*config.baselines, *(config.initializers if config.estimators else ())]),
        "estimator": dict.fromkeys(config.estimators),
    }
    for sparsity in config.sparsity:
        budget.check_sparsity(sparsity)
    if config.estimators:
        _ = config.search_steps
    for kind, specs in wanted.items():
        for spec in specs:
            built = registry.build(kind, spec)
            if kind == "estimator":
                check_estimator(spec, built, config.masks_per_step)
    return {kind: {spec: str(registry.get(kind, spec).source) for spec in specs} for kind, specs in wanted.items()}
