"""The work of one cell: scored, learned where there is a search, selected, repaired, at a cost that is counted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from polyprune_core.config.cell import NO_REPAIR, Metric, Pruned, Search
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.losses import Objective, counts
from polyprune_core.evaluation.moments import Reading
from polyprune_core.evaluation.windows import search_batches
from polyprune_core.plugins.contracts import BoundPolicy, extra_passes
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pricing import PricedBudget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.scaling import scale
from polyprune_core.pruning.shapes import ANY_SHAPE
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.starting import PolicyStart
from polyprune_core.pruning.types import LegalShapes, Scores, Selection
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.plausible import check_decision
from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.search.trace import Trace
from polyprune_core.utils.rng import generator

STEPPING = {"masks_per_step", "learning_rate", "precondition", "optimizer", "warmup", "averaging"}


@dataclass(frozen=True)
class Cost:
    """What a decision cost: passes through the model, tokens in them, time, memory.

    `readings` are those of the passes that a repair of the same row need not pay for again.
    """

    forward_passes: int = 0
    forward_tokens: int = 0
    backward_passes: int = 0
    seconds: float = 0.0
    peak_memory_mb: float | None = None
    readings: frozenset[Reading] = frozenset()

    def plus(self, other: Cost) -> Cost:
        """Returns the two one after the other; peak memory is that of the latter, where it has one."""
        return Cost(
            self.forward_passes + other.forward_passes,
            self.forward_tokens + other.forward_tokens,
            self.backward_passes + other.backward_passes,
            self.seconds + other.seconds,
            self.peak_memory_mb if other.peak_memory_mb is None else other.peak_memory_mb,
            self.readings | other.readings,
        )


@dataclass(frozen=True)
class Decision:
    """What a cell decided, under which budget, at what cost."""

    pruned: PrunedModel
    terms: PricedBudget
    trace: Trace | None
    cost: Cost

    @property
    def selection(self) -> Selection:
        """What stays."""
        return self.pruned.selection


class Decider:
    """Decides about cells; scores, and decisions that only a repair tells apart, are made once."""

    def __init__(self, harness: Harness, shapes: LegalShapes = ANY_SHAPE) -> None:
        """`shapes`: what the selections have to fit."""
        self.shapes = shapes
        self.harness, self.settings, self.registry = harness, harness.settings, harness.registry
        self._scores: dict[tuple[str, str, int, SelectionRule | None], tuple[Scores, Cost]] = {}
        self._chosen: dict[Pruned, Decision] = {}
        self._warned: set[str] = set()

    def decide(self, cell: Pruned, checkpoint: Checkpoint | None = None) -> Decision:
        """Scores, for a search learns, selects, and repairs.

        A search goes on from what `checkpoint` holds, and is kept there while it runs.

        Raises:
            ResultError: what was decided cannot be.
        """
        plain = cell.model_copy(update={"repair": NO_REPAIR})
        if plain not in self._chosen:
            self._chosen[plain] = self._choose(plain, checkpoint)
        chosen = self._chosen[plain]
        pruned, spent = self.repaired(chosen.pruned, cell.repair, cell.seed, chosen.cost.readings)
        check_decision(cell, pruned, chosen.terms, self._rule(cell, chosen.terms), chosen.trace, self._steps(cell))
        return dataclasses.replace(chosen, pruned=pruned, cost=_peaked(chosen.cost.plus(spent), chosen.cost))

    def _steps(self, cell: Pruned) -> int:
        if not isinstance(cell, Search):
            return 0
        return self.settings.steps_for(extra_passes(self.registry.build("estimator", cell.estimator)))

    def _rule(self, cell: Pruned, terms: PricedBudget) -> SelectionRule:
        return SelectionRule(terms.sparsity, cell.scope, self.settings.min_keep, self.shapes)

    def repaired(
        self, pruned: PrunedModel, spec: str, seed: int, readings: Iterable[Reading] = ()
    ) -> tuple[PrunedModel, Cost]:
        """Returns the model with what a repair changes of it, and what that cost beside `readings`."""
        with self.harness.reporter.task(f"repair {spec}", 1) as task, self.harness.watched(("repair", spec)):
            calibration = self.harness.repair_calibration(seed, f"repair {spec}", task, readings)
            self._warn(pruned, spec, calibration)
            with self._priced(calibration) as cost:
                updates = self.registry.build("repair", spec).repair(pruned, calibration)
        recipe = pruned.recipe | {"repair": spec}
        return dataclasses.replace(pruned, updates=dict(updates), recipe=recipe), cost[0]

    def _warn(self, pruned: PrunedModel, spec: str, calibration: Calibration) -> None:
        """Tells once of a text that weights should not be fitted to."""
        if "mix" not in self.registry.get("repair", spec).provider.needs:
            return
        text, tokens = self.harness.texts["calibration"], calibration.windows.numel()
        widest = max((reader.weight.shape[1] for reader in pruned.cut_readers()), default=0)
        if len(text.parts or (text,)) == 1:
            self._warn_once(
                "one text",
                f"repair {spec} fits weights to {text.name} alone, which can make the model worse on other text than "
                "no repair does; give --calibration A+B.",
            )
        if tokens < widest:
            self._warn_once(
                "few tokens",
                f"repair {spec} looks at {tokens} tokens, fewer than the {widest} inputs of a reader; raise "
                "--repair-samples, or give a longer text.",
            )

    def _warn_once(self, of: str, message: str) -> None:
        if of not in self._warned:
            self._warned.add(of)
            self.harness.reporter.warn(message)

    def _choose(self, cell: Pruned, checkpoint: Checkpoint | None) -> Decision:
        terms = self.harness.terms(cell)
        space, rule = terms.space, self._rule(cell, terms)
        one_budget = self.registry.for_one_budget(cell.initializer)
        scores, cost = self.scores(space, cell.initializer, cell.seed, rule if one_budget else None)
        if isinstance(cell, Metric):
            how = "raw" if scores.comparable else cell.scale
            ranked = Scores(scale(scores.values, space, how), scores.source)
            pruned = PrunedModel(self.harness.loaded, space, rule.select(ranked.values, space), ranked)
            return Decision(pruned, terms, None, cost)
        searching = [("estimator", cell.estimator)] if isinstance(cell, Search) else []
        with self.harness.watched(("policy", self.settings.policy), *searching):
            own = dataclasses.replace(scores, values=scores.values.clone())  # those of the other cells stay as they are
            policy = self.registry.build("policy", self.settings.policy).bind(PolicyStart(space, own, rule))
            parameters, trace, source = policy.start(), None, scores.source
            if isinstance(cell, Search):
                parameters, trace, spent = self._search(cell, terms, policy, parameters, checkpoint)
                cost, source = cost.plus(spent), cell.estimator
            learned, drawn_from = Scores(policy.ranking(parameters), source), policy.policy(parameters, rule.sparsity)
        selection = rule.select(learned.values, space)
        return Decision(PrunedModel(self.harness.loaded, space, selection, learned, drawn_from), terms, trace, cost)

    def scores(self, space: MaskSpace, spec: str, seed: int, rule: SelectionRule | None = None) -> tuple[Scores, Cost]:
        """Returns a metric's scores and what they cost, computed once per space, metric, seed and budget.

        `rule`: the budget, for a metric that needs it.
        """
        key = (space.name, spec, seed, rule)
        if key not in self._scores:
            self._scores[key] = self._score(space, spec, seed, rule)
        return self._scores[key]

    def _score(self, space: MaskSpace, spec: str, seed: int, rule: SelectionRule | None) -> tuple[Scores, Cost]:
        model = self.harness.loaded.model
        with self.harness.reporter.task(f"scores of {spec}", 1) as task:
            calibration = self.harness.calibration(seed, f"initializer {spec}", task, rule)
            with self._priced(calibration) as cost:
                scores = self.harness.measure(spec, model, space, calibration)
        return scores, cost[0]

    @contextmanager
    def _priced(self, spending: Calibration) -> Iterator[list[Cost]]:
        """Yields where the cost of the block stands at its end: passes of `spending`, time and peak memory."""
        self.harness.memory.restart()
        start, cost = time.perf_counter(), list[Cost]()
        yield cost
        cost.append(
            Cost(
                **counts(spending),
                seconds=time.perf_counter() - start + spending.seconds_elsewhere,
                peak_memory_mb=self.harness.memory.megabytes(),
                readings=frozenset(spending.readings),
            )
        )

    def _search(
        self, cell: Search, terms: PricedBudget, policy: BoundPolicy, parameters: Tensor, checkpoint: Checkpoint | None
    ) -> tuple[Tensor, Trace, Cost]:
        estimator = self.registry.build("estimator", cell.estimator)
        harness, settings = self.harness, self.settings
        options = SearchOptions(
            steps=self._steps(cell),
            sparsity=terms.sparsity,
            **settings.model_dump(include=STEPPING),
        )
        harness.memory.restart()
        with harness.reporter.task(cell.label, options.steps, cell) as task:
            learned, trace = search(
                policy,
                parameters,
                Objective(harness.compactor, terms.space),
                estimator,
                search_batches(harness.calibration_windows, settings.batch_size, cell.seed),
                options,
                generator(cell.seed, "masks"),
                lambda r: task.update(
                    r.step, f"loss {r.mean_loss:.3f}, sparsity {r.expected_sparsity:.3f}", r.mean_loss
                ),
                checkpoint,
                lambda records: task.resume([record.mean_loss for record in records]),
            )
        spent = {
            name: getattr(trace, name) for name in ("forward_passes", "forward_tokens", "backward_passes", "seconds")
        }
        return learned, trace, Cost(**spent, peak_memory_mb=harness.memory.megabytes())


def _peaked(cost: Cost, before: Cost) -> Cost:
    """Returns the cost with the larger of two peaks, where both are known."""
    peaks = [each.peak_memory_mb for each in (cost, before) if each.peak_memory_mb is not None]
    return dataclasses.replace(cost, peak_memory_mb=max(peaks, default=None))
