"""How noisy is every estimator's gradient, where does the noise come from, and does it point the right way?

    python benchmarks/estimator_variance.py wiki.valid.raw --output benchmarks/results/estimator_variance.json

Policies stand still: where a metric starts them, and where a short search took them. Losses under masks are measured
once, in steps of 16 masks on one batch as a search draws them, and every estimator is fed with them: those that draw
independent masks share one pool, the others have their own. Its reference is leave-one-out over the whole shared pool,
whose own noise is stated. A smaller problem comes first, ten units of the model `tiny` under all their 1,024 masks,
where the gradient is known. Interrupted, it goes on with what the output holds.

Gradients are with respect to logits: of each unit, and of an offset that the units of a group (a layer's heads, or its
channels) share, which is what a few hundred losses can tell.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from gradient_statistics import Series, compare, components, exactly, inner, inner_error, split_half_cosine, spread
from mask_losses import Problem, Table, all_masks, window_losses
from measured_once import Kept
from torch import Tensor

from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.evaluation.losses import Objective
from polyprune_core.evaluation.text import Text, load_text
from polyprune_core.evaluation.windows import Cutter, evenly_spaced, sample_windows
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.contracts import extra_passes
from polyprune_core.plugins.registry import Registry, load_registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.starting import PolicyStart
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.types import MaskBatch, Policy
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.search.trace import entropy
from polyprune_core.utils.rng import generator

MASKS = 16
POINTS = ("start", "gaussian start", "trained")
# Estimators that draw the same masks share a pool.
POOLS = {
    "independent": ["rloo", "reinforce", "reinforce-released", "residual", "control-variate"],
    "pairs": ["antithetic", "arm"],
    "arms": ["arms"],
    "conditional-bernoulli": ["conditional-bernoulli"],
    "complement": ["complement"],
}
DRAWN_BY = {"independent": "residual", "pairs": "antithetic"}
LEARNING_RATE = 0.1
BACK_PROPAGATION = ["straight-through", "hard-concrete"]
# A backward pass is counted as two forward passes.
PASSES_WITH_BACKWARD = 3


def pool(problem: Problem, policy: Policy, drawn_by: str, purpose: str, steps: int) -> tuple[list[MaskBatch], Any]:
    """Returns the masks of each step, and what measures their losses: per step those of the masks and the reference."""
    estimator = problem.registry.build("estimator", drawn_by)
    rng = generator(0, f"masks {purpose}")
    batches = [estimator.sample(policy, MASKS, rng) for _ in range(steps)]

    def measure() -> list[list[float]]:
        rows = []
        for batch, ids in zip(batches, problem.batches(purpose), strict=False):
            asked = batch.masks if batch.reference is None else torch.cat([batch.masks, batch.reference[None]])
            rows.append(problem.objective.losses(asked, ids).tolist())
        return rows

    return batches, measure


def series(
    problem: Problem,
    policy: Policy,
    name: str,
    batches: list[MaskBatch],
    losses: Tensor,
    masks: int = MASKS,
    first_step: int = 0,
    warm_up: float = 0.25,
) -> Series:
    """Returns the gradients by logits of an estimator that is fed with a pool, `masks` of a step's at a time.

    Consecutive steps of fewer masks are of different batches of text, as in a search. The first `warm_up`
    of them only feed what the estimator remembers.
    """
    estimator, state = problem.registry.build("estimator", name), None
    found, steps = [], []
    for start in range(0, MASKS, masks):
        for step, (batch, row) in enumerate(zip(batches, losses, strict=True)):
            part = slice(start, start + masks)
            noise = None if batch.noise is None else batch.noise[part]
            reference = float(row[MASKS]) if len(row) > MASKS else None
            given = MaskBatch(batch.masks[part], noise, reference_loss=reference)
            gradient, state = estimator.gradient(policy, given, row[part], state)
            found.append(by_logit(name, gradient, policy, masks))
            steps.append(first_step + step)
    warm = round(len(found) * warm_up)
    return Series(torch.stack(found[warm:]), torch.tensor(steps[warm:]), masks + extra_passes(estimator))


def by_logit(name: str, gradient: Tensor, policy: Policy, masks: int) -> Tensor:
    """Returns an estimate (U,) as one of the gradient by logits; that of the released code without its factors."""
    v = policy.keep_prob * (1 - policy.keep_prob)
    if name == "reinforce-released":
        return gradient * v.sqrt() / (masks / (masks - 1) * (1 - 1 / (5 * masks)))
    return gradient * v


def back_propagated(problem: Problem, policy: Policy, name: str, steps: int) -> Series:
    """Returns the gradients by logits of an estimator that back-propagates, from two masks a step."""
    estimator, rng = problem.registry.build("estimator", name), generator(0, f"masks {name}")
    found = []
    for ids in islice(problem.batches(name), steps):
        batch = estimator.sample(policy, 2, rng)
        losses, slopes = problem.objective.gradients(batch.gates, ids)
        gradient, _ = estimator.gradient(policy, replace(batch, gate_gradients=slopes), losses, None)
        found.append(by_logit(name, gradient, policy, 2))
    return Series(torch.stack(found), 10**6 + torch.arange(steps), 2 * PASSES_WITH_BACKWARD)


def levels(problem: Problem, estimates: Series, reference: Series, passes: int) -> dict[str, Any]:
    """Returns the comparison with a reference for units, groups, kinds, and the groups of each layer."""
    space = problem.space
    ours, theirs = (one.summed(space.group, len(space.groups)) for one in (estimates, reference))
    record = {"unit": compare(estimates, reference, passes), "group": compare(ours, theirs, passes)}
    for label, kind in enumerate(space.kinds):
        units = (space.kind == label).nonzero().flatten()
        groups = torch.tensor([i for i, group in enumerate(space.groups) if group.kind == kind])
        record[f"unit, {kind}"] = compare(estimates.at(units), reference.at(units), passes)
        record[f"group, {kind}"] = compare(ours.at(groups), theirs.at(groups), passes)
        layers = [ours.at(groups[i : i + 1]).variance()[0] * ours.passes for i in range(len(groups))]
        record[f"variance_per_pass by layer, {kind}"] = layers
    return record


def reference_record(problem: Problem, reference: Series) -> dict[str, Any]:
    """Returns how well the reference is known: squared length, its error, and the cosine between its halves."""
    space = problem.space
    groups = reference.summed(space.group, len(space.groups))
    record = {}
    of_kind = {kind: [i for i, group in enumerate(space.groups) if group.kind == kind] for kind in space.kinds}
    parts = {"unit": reference, "group": groups}
    parts |= {f"group, {kind}": groups.at(torch.tensor(where)) for kind, where in of_kind.items()}
    for label, (kind, _) in enumerate(of_kind.items()):
        parts[f"unit, {kind}"] = reference.at((space.kind == label).nonzero().flatten())
    for name, part in parts.items():
        record[name] = {
            "squared_length": inner(part, part),
            "error": inner_error(part, part),
            "split_half_cosine": split_half_cosine(part),
        }
    return record


def examine(problem: Problem, kept: Kept, policy: Policy, point: str, sizes: dict[str, int]) -> None:
    """Finds what all estimators do at one policy."""
    v = policy.keep_prob * (1 - policy.keep_prob)
    known = isinstance(problem.objective, Table)
    results: dict[str, Any] = {}
    record: dict[str, Any] = {"entropy": entropy(policy), "estimators": results}
    for number, (drawn, names) in enumerate(POOLS.items()):
        count = sizes["independent" if drawn == "independent" else "own"]
        batches, measure = pool(problem, policy, DRAWN_BY.get(drawn, drawn), f"{point} {drawn}", count)
        losses = torch.tensor(measure() if known else kept.part(f"{problem.name}, {point}, {drawn} losses", measure))
        if drawn == "independent":
            record["loss"] = {"mean": float(losses[:, :MASKS].mean()), "mode": float(losses[:, MASKS].mean())}
            whole = series(problem, policy, "rloo", batches, losses, warm_up=0)
            record["leave-one-out over the pool"] = reference_record(problem, whole)
            reference = exactly(problem.objective.gradient(policy) * v.double()) if known else whole
        for name in names:
            for masks in (MASKS,) if name == "arms" else (2, MASKS):
                found = series(problem, policy, name, batches, losses, masks, number * 10**5)
                results[f"{name}, {masks} masks"] = levels(problem, found, reference, sizes["passes"])
        kept.result(problem.name, point, record)
    for name in BACK_PROPAGATION:
        found = kept.part(
            f"{problem.name}, {point}, {name}",
            lambda name=name: levels(
                problem, back_propagated(problem, policy, name, sizes["backward"]), reference, sizes["passes"]
            ),
        )
        results[f"{name}, 2 masks"] = found
    kept.result(problem.name, point, record)


def wanda_start(
    loaded: LoadedModel, space: MaskSpace, windows: Tensor, sparsity: float, registry: Registry
) -> PolicyStart:
    """Returns what Wanda's scores on 32 windows start."""
    calibration = Calibration(loaded.model, space.layout, sample_windows(windows, 32, 0), generator(0, "wanda"))
    return PolicyStart(space, registry.measure("wanda", loaded.model, space, calibration), SelectionRule(sparsity))


def trained(problem: Problem, start: PolicyStart, steps: int, kept: Kept) -> Tensor:
    """Returns the keep probabilities after a short search by leave-one-out, 4 masks a step."""
    family = load_registry().build("policy", "probabilities").bind(start)
    options = SearchOptions(steps, masks_per_step=4, learning_rate=LEARNING_RATE, sparsity=start.rule.sparsity)
    rloo = problem.registry.build("estimator", "rloo")
    rng = generator(0, "masks of the search")
    batches, checkpoint = problem.batches("search"), kept.checkpoint(problem.name)
    return search(family, family.start(), problem.objective, rloo, batches, options, rng, checkpoint=checkpoint)[0]


def examined(problem: Problem, start: PolicyStart, kept: Kept, sizes: dict[str, int]) -> None:
    """Finds what is asked of a problem: at each policy, the spread of its losses and what its estimators do."""
    kept.result(problem.name, "units", {"units": len(problem.space), "groups": len(problem.space.groups)})
    for point in POINTS:
        family = (
            load_registry().build("policy", "gaussian" if point == "gaussian start" else "probabilities").bind(start)
        )
        parameters = trained(problem, start, sizes["search_steps"], kept) if point == "trained" else family.start()
        policy = family.policy(parameters, start.rule.sparsity)
        masks = policy.sample(sizes["spread_masks"], generator(0, "masks of the spread")).masks
        windows = evenly_spaced(problem.windows, sizes["spread_windows"])
        losses = kept.part(
            f"{problem.name}, {point}, spread", lambda m=masks, w=windows: problem.window_losses(m, w).tolist()
        )
        parts = components(torch.tensor(losses))
        spreads = {"variances": parts} | {f"{b} windows": spread(parts, b) for b in (2, 8)}
        kept.result(problem.name, f"spread, {point}", spreads)
        if point != "gaussian start":
            examine(problem, kept, policy, point, sizes)
    kept.result(problem.name, "complete", True)


def examine_table(kept: Kept, registry: Registry, sparsity: float, sizes: dict[str, int]) -> None:
    """Examines the heads and MLPs of two layers of `tiny` under all their masks, on the built-in text."""
    loaded = load_model("tiny")
    layout = describe(loaded.model)
    groups = [g for part in ("head", "mlp") for g in registry.build("granularity", part).groups(layout)]
    space = MaskSpace(layout, [group for group in groups if group.layer % 3 == 0], "head+mlp of every third layer")
    windows = Cutter.of(loaded.tokenizer, loaded.model).windows(load_text("builtin:pydocs", "calibration"), 64)
    start = wanda_start(loaded, space, windows, sparsity, registry)
    few = evenly_spaced(windows, 12)
    with Compactor(loaded.model, layout) as compactor:
        losses = window_losses(compactor, space, all_masks(len(space)), few)
        table = Table(losses, Objective(compactor, space), few)
        numbers = torch.arange(len(few))[:, None]
        examined(Problem("table", space, table, numbers, registry), start, kept, sizes)


def examine_model(
    loaded: LoadedModel, text: Text, kept: Kept, registry: Registry, sparsity: float, sizes: dict[str, int]
) -> None:
    """Examines the heads and channels of a model on windows of 128 tokens."""
    layout = describe(loaded.model)
    groups = [g for part in ("head", "channel") for g in registry.build("granularity", part).groups(layout)]
    space = MaskSpace(layout, groups, "head+channel")
    windows = Cutter.of(loaded.tokenizer, loaded.model).windows(text, 128)
    start = wanda_start(loaded, space, windows, sparsity, registry)
    with Compactor(loaded.model, layout) as compactor:
        problem = Problem(loaded.name, space, Objective(compactor, space), windows, registry)
        examined(problem, start, kept, sizes)


TABLE = {"independent": 80, "own": 80, "backward": 40, "search_steps": 200, "spread_masks": 200}


@click.command()
@click.argument("text")
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--sparsity", default=0.3, show_default=True)
@click.option("--steps", default=12, show_default=True, help="Steps of 16 independent masks; other draws get half.")
@click.option("--search-steps", default=60, show_default=True, help="Of the search that trains the second policy.")
@click.option("--passes", default=64, show_default=True, help="Forward passes behind the mean whose cosine is given.")
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write, and to go on from.")
def main(
    text: str, model: str, sparsity: float, steps: int, search_steps: int, passes: int, output: Path | None
) -> None:
    """Measure the noise of losses and of gradient estimators on TEXT."""
    sizes = {"independent": steps, "own": steps // 2, "backward": steps // 2, "search_steps": search_steps}
    sizes |= {"spread_masks": 12, "spread_windows": 16, "passes": passes}
    loaded, source, registry = load_model(model), load_text(text, "calibration"), load_registry()
    of_model = {"model": model, "sha256": loaded.sha256, "text": source.name, "text_sha256": source.sha256}
    kept = Kept(output, of_model | {"sparsity": sparsity, "sizes": sizes, "masks_per_step": [2, MASKS], "batch": 2})
    if not kept.complete("table"):
        examine_table(kept, registry, sparsity, sizes | TABLE)
    if not kept.complete(model):
        examine_model(loaded, source, kept, registry, sparsity, sizes)
    for name in kept.results:
        if checkpoint := kept.checkpoint(name):
            checkpoint.remove()


if __name__ == "__main__":
    main()
