"""The work of one cell: scored, learned where there is a search, selected, repaired, at a cost that is counted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from polyprune_core.config.cell import NO_REPAIR, Cell, Dense, Metric, Pruned, Search
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.losses import Metered, Objective, counts
from polyprune_core.evaluation.moments import Reading
from polyprune_core.evaluation.windows import search_batches
from polyprune_core.plugins.contracts import BoundPolicy, extra_passes
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pricing import PricedBudget
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.scaling import scale
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.starting import PolicyStart
from polyprune_core.pruning.types import Scores, Selection
from polyprune_core.runs.harness import Harness
from polyprune_core.runs.plausible import check_decision
from polyprune_core.runs.pooling import scales, selection_losses
from polyprune_core.runs.repair_notes import of_experts, of_its_text
from polyprune_core.runs.stopping import stopping, told
from polyprune_core.search.checkpoint import Checkpoint
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.search.trace import Trace
from polyprune_core.utils.rng import generator

REPAIRED_FROM = ("repair_samples", "seq_len")
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
        """Returns the two one after the other; peak memory is the higher one."""
        peaks = [peak for peak in (self.peak_memory_mb, other.peak_memory_mb) if peak is not None]
        return Cost(
            self.forward_passes + other.forward_passes,
            self.forward_tokens + other.forward_tokens,
            self.backward_passes + other.backward_passes,
            self.seconds + other.seconds,
            max(peaks, default=None),
            self.readings | other.readings,
        )


@dataclass(frozen=True)
class Decision:
    """What a cell decided, under which budget (the dense model has none), at what cost.

    `cell` has the scope and the scale that were chosen, where the one asked left them open; `losses` are those of the
    poolings that were tried, by "scope, scale", in nats per token.
    """

    cell: Cell
    pruned: PrunedModel
    terms: PricedBudget | None
    trace: Trace | None
    cost: Cost
    losses: dict[str, float] = field(default_factory=dict)

    @property
    def selection(self) -> Selection:
        """What stays."""
        return self.pruned.selection


class Decider:
    """Decides about cells; scores, and decisions that only a repair tells apart, are made once."""

    def __init__(self, harness: Harness, warned: set[str] | None = None) -> None:
        """`warned`: what has been warned of before, so that it is not again."""
        self.harness, self.settings, self.registry = harness, harness.settings, harness.registry
        self._scores: dict[tuple[str, str, int, SelectionRule | None], tuple[Scores, Cost]] = {}
        self._chosen: dict[Pruned, Decision] = {}
        self._warned = set[str]() if warned is None else warned

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
        pruned, spent = self.repaired(chosen.pruned, cell.repair, cell.seed, chosen.cost.readings, checkpoint)
        pooled = cell.model_copy(update={name: getattr(chosen.cell, name) for name in ("scope", "scale")})
        terms = self.harness.terms(pooled)
        check_decision(pooled, pruned, terms, self._rule(pooled, terms), chosen.trace, self._steps(cell))
        return dataclasses.replace(chosen, cell=pooled, pruned=pruned, cost=chosen.cost.plus(spent))

    @property
    def sample(self) -> dict[str, int]:
        """What repairs look at, as a recipe names it."""
        return {name: getattr(self.settings, name) for name in REPAIRED_FROM}

    def trained(self, cell: Dense, checkpoint: Checkpoint | None = None) -> Decision:
        """Returns the dense model after the cell's repair."""
        pruned, cost = self.repaired(self.harness.whole(), cell.repair or NO_REPAIR, cell.seed or 0, (), checkpoint)
        return Decision(cell, pruned, None, None, cost)

    def _steps(self, cell: Pruned) -> int:
        if not isinstance(cell, Search):
            return 0
        return self.settings.steps_for(extra_passes(self.registry.build("estimator", cell.estimator)))

    def _rule(self, cell: Pruned, terms: PricedBudget) -> SelectionRule:
        shapes, asked = self.harness.shapes(cell.shapes), self.settings
        return SelectionRule(terms.sparsity, cell.scope, asked.min_keep, shapes, asked.protected)

    def repaired(
        self,
        pruned: PrunedModel,
        spec: str,
        seed: int,
        readings: Iterable[Reading] = (),
        checkpoint: Checkpoint | None = None,
    ) -> tuple[PrunedModel, Cost]:
        """Returns the model with what a repair changes of it, and what that cost beside `readings`.

        A repair that saves its state goes on from what is beside `checkpoint`.
        """
        harness, keeper = self.harness, checkpoint.of_repair() if checkpoint else None
        with harness.reporter.task(f"repair {spec}", 1) as task, self._left_alone(spec):
            calibration = harness.repair_calibration(seed, spec, task, readings, keeper)
            provider, text = self.registry.get("repair", spec).provider, harness.texts.calibration
            self._warn(of_its_text(pruned, spec, provider, text, calibration.windows.numel()))
            with self._priced(calibration) as cost:
                updates = self.registry.build("repair", spec).repair(pruned, calibration)
        self._warn(of_experts(pruned, spec, updates))
        recipe = pruned.recipe | {"repair": spec} | (self.sample if spec != NO_REPAIR else {})
        return dataclasses.replace(pruned, updates=dict(updates), recipe=recipe, measured=()), cost[0]

    @contextmanager
    def _left_alone(self, spec: str) -> Iterator[None]:
        """Runs a repair, which may build and train models, with the dense one as it was loaded."""
        with ExitStack() as stack:
            if self.registry.get("repair", spec).provider.needs:
                stack.enter_context(self.harness.compactor.paused())
            stack.enter_context(self.harness.watched(("repair", spec)))
            yield

    def _warn(self, warnings: Iterable[tuple[str, str]]) -> None:
        """Tells once of each kind."""
        for of, message in warnings:
            if of not in self._warned:
                self._warned.add(of)
                self.harness.reporter.warn(message)

    def _choose(self, cell: Pruned, checkpoint: Checkpoint | None) -> Decision:
        if isinstance(cell, Metric):
            return self._pooled(cell)
        terms = self.harness.terms(cell)
        space, rule = terms.space, self._rule(cell, terms)
        one_budget = self.registry.for_one_budget(cell.initializer)
        scores, cost = self.scores(space, cell.initializer, cell.seed, rule if one_budget else None)
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
        return Decision(
            cell, PrunedModel(self.harness.loaded, space, selection, learned, drawn_from), terms, trace, cost
        )

    def _pooled(self, cell: Metric) -> Decision:
        """Returns the metric's selection; of the poolings left open, the one that loses least on windows held back."""
        one_budget = self.registry.for_one_budget(cell.initializer)
        tried, refused, cost = list[Decision](), list[ConfigError](), Cost()
        for asked, terms in self.harness.in_scopes(cell):
            rule = self._rule(asked, terms)
            try:
                scores, spent = self.scores(terms.space, cell.initializer, cell.seed, rule if one_budget else None)
            except ConfigError as error:  # a metric made for one budget need not serve every scope
                refused.append(error)
                continue
            cost = cost.plus(spent) if one_budget or not tried else cost
            for how in scales(cell, scores.comparable):
                pooled = asked.model_copy(update={"scale": how})
                values = scale(scores.values, terms.space, "raw" if scores.comparable else how)
                selection, ranked = rule.select(values, terms.space), Scores(values, scores.source)
                pruned = PrunedModel(self.harness.loaded, terms.space, selection, ranked)
                tried.append(Decision(pooled, pruned, terms, None, Cost()))
        if not tried:
            raise refused[0]
        losses, spent = self._held_back(cell, tried) if cell.open else ([0.0], Cost())
        best = tried[losses.index(min(losses))]
        named = {f"{each.cell.scope}, {each.cell.scale}": loss for each, loss in zip(tried, losses, strict=True)}
        return dataclasses.replace(best, cost=cost.plus(spent), losses=named if cell.open else {})

    def _held_back(self, cell: Metric, tried: list[Decision]) -> tuple[list[float], Cost]:
        """Returns the losses of selections on windows that the metric has not seen, and what they cost."""
        objective = Objective(self.harness.compactor, tried[0].pruned.space)
        windows = self.harness.windows.held_back(cell.seed)
        label = f"pooling of {cell.initializer}"
        with self.harness.reporter.task(label, len(tried)) as task, self._priced(objective) as cost:
            losses = selection_losses(objective, [each.selection.keep for each in tried], windows, task.update)
        return losses, cost[0]

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
            held_back = self.registry.holds_text_back(spec)
            calibration = self.harness.calibration(seed, f"initializer {spec}", task, rule, held_back)
            with self._priced(calibration) as cost:
                scores = self.harness.measure(spec, model, space, calibration)
        return scores, cost[0]

    @contextmanager
    def _priced(self, spending: Metered) -> Iterator[list[Cost]]:
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
        rule = self._rule(cell, terms)
        options = SearchOptions(
            steps=self._steps(cell),
            sparsity=terms.sparsity,
            whole=rule.whole(terms.space),
            legal=lambda masks, ranking: rule.legal(masks, ranking, terms.space),
            **settings.model_dump(include=STEPPING),
        )
        harness.memory.restart()
        objective = Objective(harness.compactor, terms.space, settings.objective, harness.spread)
        patience = settings.early_stopping
        with harness.reporter.task(cell.label, options.steps, cell) as task:
            learned, trace = search(
                policy,
                parameters,
                objective,
                estimator,
                search_batches(harness.windows.learned_from(cell.seed), settings.batch_size, cell.seed),
                options,
                generator(cell.seed, "masks"),
                lambda r: task.update(
                    r.step, f"loss {r.mean_loss:.3f}, sparsity {r.expected_sparsity:.3f}", r.mean_loss
                ),
                checkpoint,
                lambda records: task.resume([record.mean_loss for record in records]),
                stopping(patience, policy, rule, objective, harness.windows.held_back(cell.seed)) if patience else None,
            )
        if words := told(trace, options.steps):
            harness.reporter.status(f"{cell.label}: {words}")
        spent = {
            name: getattr(trace, name) for name in ("forward_passes", "forward_tokens", "backward_passes", "seconds")
        }
        return learned, trace, Cost(**spent, peak_memory_mb=harness.memory.megabytes())
