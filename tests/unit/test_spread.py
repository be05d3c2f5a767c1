"""Masks on copies of the model in workers: the losses that one process gives, however many there are and die."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import torch
from forks import forked_workers
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

NAMES = {"processes": "", "ray": "ray::Member"}  # of workers; a fork has the name of this process


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


@pytest.fixture(scope="module", params=["processes", pytest.param("ray", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> Iterator[tuple[str, Callable[[], Engine]]]:
    if request.param == "processes":
        with forked_workers():
            yield request.param, Processes
        return
    pytest.importorskip("ray")
    from polyprune_core.utils.ray_workers import RayWorkers, Share

    yield request.param, lambda: RayWorkers(share=Share(cpus=0.5))


@pytest.fixture(scope="module")
def lost() -> list[int]:
    return []


@pytest.fixture(scope="module")
def workers(loaded: LoadedModel, engine: tuple[str, Callable[[], Engine]], lost: list[int]) -> Iterator[MaskWorkers]:
    """Two workers for all tests: to start one takes longer than all that is asked of it here."""
    copy = Copy.of(loaded, None, False, "cpu", 1)
    with MaskWorkers(engine[1], copy, 2, lambda worker, _: lost.append(worker)) as workers:
        yield workers


def kill_one(name: str) -> None:
    found = [child for child in psutil.Process().children(recursive=True) if name in " ".join(child.cmdline())]
    found[0].kill()


@pytest.mark.parametrize("of", ["cross-entropy", "kl"])
def test_losses_and_gradients_are_those_of_one_process_and_cost_the_same(
    loaded, space, masks, text, workers, of
) -> None:
    gates = masks[:2].float() * 0.5 + 0.25
    with Compactor(loaded.model, space.layout) as compactor:
        here, there = Objective(compactor, space, of), Objective(compactor, space, of, workers)
        assert torch.equal(there.losses(masks, text), here.losses(masks, text))
        for ours, theirs in zip(there.gradients(gates, text), here.gradients(gates, text), strict=True):
            assert torch.equal(ours, theirs)
        costs = [counts(each) for each in (here, there)]
    passes = 10 + 2 * (of == "kl")
    assert costs == [{"forward_passes": passes, "forward_tokens": 48 * passes, "backward_passes": 2}] * 2


def test_a_search_is_the_same_here_and_on_two_workers_of_which_one_is_killed(
    loaded, space, text, engine, workers, lost, make_start
) -> None:
    learned: list[Any] = []
    timer = threading.Timer(0.02, kill_one, (NAMES[engine[0]],))
    before = len(lost)
    for spread in (None, workers):
        with Compactor(loaded.model, space.layout) as compactor:
            objective = Objective(compactor, space, "cross-entropy", spread)

            def on_step(record: Any, killing: bool = spread is not None) -> None:
                if killing and record.step == 3:
                    timer.start()  # in the middle of the next step

            policy, estimator = make_start(space)
            options = SearchOptions(steps=12, masks_per_step=8, learning_rate=0.1, sparsity=0.3)
            batches = iter([text] * 12)
            rng = torch.Generator().manual_seed(3)
            found = search(policy, policy.start(), objective, estimator, batches, options, rng, on_step)
            learned.append((found[0], [record.losses for record in found[1].steps]))
    timer.join()
    assert torch.equal(learned[0][0], learned[1][0])
    assert learned[0][1] == learned[1][1]
    assert len(lost) == before + 1


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


def test_other_weights_where_a_worker_reads_them_are_refused() -> None:
    with pytest.raises(ModelError, match="tiny has other weights where a worker reads it"):
        Copy("tiny", "0" * 64, "float32", "cpu", None, False, torch.get_num_threads())(print)
