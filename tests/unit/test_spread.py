"""Masks on copies of the model in workers: the losses that one process gives, however many there are and die."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.losses import Objective, counts
from polyprune_core.evaluation.spread import Copy, MaskWorkers
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.utils.crew import Engine
from polyprune_core.utils.processes import Processes

NAMES = {"processes": "polyprune_core.utils.worker", "ray": "ray::Member"}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model("tiny", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def space(loaded: LoadedModel) -> MaskSpace:
    layout = describe(loaded.model)
    registry = load_registry()
    groups = [group for name in ("head", "channel") for group in registry.build("granularity", name).groups(layout)]
    return MaskSpace(layout, groups, "head+channel")


@pytest.fixture(scope="module")
def masks(space: MaskSpace) -> Tensor:
    return torch.rand(8, len(space), generator=torch.Generator().manual_seed(0)) > 0.3


@pytest.fixture(scope="module")
def text() -> Tensor:
    return torch.randint(0, 500, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["processes", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> tuple[str, Callable[[], Engine]]:
    if request.param == "processes":
        return request.param, Processes
    pytest.importorskip("ray")
    from polyprune_core.utils.ray_workers import RayWorkers, Share

    return request.param, lambda: RayWorkers(share=Share(cpus=0.5))


def copies(loaded: LoadedModel, engine: Callable[[], Engine], size: int = 2) -> MaskWorkers:
    return MaskWorkers(engine, Copy.of(loaded, None, False, "cpu", 1), size)


def kill_one(name: str) -> None:
    found = [child for child in psutil.Process().children(recursive=True) if name in " ".join(child.cmdline())]
    found[0].kill()


@pytest.mark.parametrize("of", ["cross-entropy", "kl"])
def test_losses_and_gradients_are_those_of_one_process_and_cost_the_same(
    loaded, space, masks, text, engine, of
) -> None:
    gates = masks[:2].float() * 0.5 + 0.25
    with Compactor(loaded.model, space.layout) as compactor, copies(loaded, engine[1]) as workers:
        here, there = Objective(compactor, space, of), Objective(compactor, space, of, workers)
        assert torch.equal(there.losses(masks, text), here.losses(masks, text))
        for ours, theirs in zip(there.gradients(gates, text), here.gradients(gates, text), strict=True):
            assert torch.equal(ours, theirs)
        costs = [counts(each) for each in (here, there)]
    passes = 10 + 2 * (of == "kl")
    assert costs == [{"forward_passes": passes, "forward_tokens": 48 * passes, "backward_passes": 2}] * 2


def test_a_search_is_the_same_on_one_and_on_two_workers_of_which_one_is_killed(
    loaded, space, text, engine, make_start
) -> None:
    learned: list[Any] = []
    name, engine_of = engine
    for size, killing in ((0, False), (1, False), (2, True)):
        with Compactor(loaded.model, space.layout) as compactor, copies(loaded, engine_of, size) as workers:
            objective = Objective(compactor, space, "cross-entropy", workers if size else None)
            timer = threading.Timer(0.02, kill_one, (NAMES[name],))

            def on_step(record: Any, timer: threading.Timer = timer, killing: bool = killing) -> None:
                if killing and record.step == 3:
                    timer.start()  # in the middle of the next step

            policy, estimator = make_start(space)
            options = SearchOptions(steps=12, masks_per_step=8, learning_rate=0.1, sparsity=0.3)
            batches = iter([text] * 12)
            rng = torch.Generator().manual_seed(3)
            found = search(policy, policy.start(), objective, estimator, batches, options, rng, on_step)
            timer.join() if killing else None
            learned.append((found[0], [record.losses for record in found[1].steps], list(workers.lost)))
    assert all(torch.equal(each[0], learned[0][0]) for each in learned)
    assert all(each[1] == learned[0][1] for each in learned)
    assert [len(each[2]) for each in learned] == [0, 0, 1]


@pytest.fixture
def make_start() -> Callable[[MaskSpace], tuple[Any, Any]]:
    """Makes a policy and an estimator."""
    from polyprune_core.pruning.budget import SelectionRule
    from polyprune_core.pruning.starting import PolicyStart
    from polyprune_core.pruning.types import Scores

    def make(space: MaskSpace) -> tuple[Any, Any]:
        scores = Scores(torch.rand(len(space), generator=torch.Generator().manual_seed(2)), "made up")
        registry = load_registry()
        start = PolicyStart(space, scores, SelectionRule(0.3, "kind"))
        return registry.build("policy", "probabilities").bind(start), registry.build("estimator", "rloo")

    return make


def test_other_weights_where_a_worker_reads_them_are_refused(loaded, space, masks, text) -> None:
    copy = Copy("tiny", "0" * 64, "float32", "cpu", None, False, 1)
    with (
        Compactor(loaded.model, space.layout) as compactor,
        MaskWorkers(Processes, copy, 1) as workers,
        pytest.raises(ModelError, match="tiny has other weights where a worker reads it"),
    ):
        Objective(compactor, space, "cross-entropy", workers).losses(masks, text)
