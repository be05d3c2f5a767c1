"""A search that is interrupted goes on to the same result, bit for bit, and no file on disk can break one."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from polyprune_core.errors import PluginError
from polyprune_core.evaluation.losses import Metered
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.starting import PolicyStart
from polyprune_core.pruning.types import Policy, Scores
from polyprune_core.search import checkpoint as resume
from polyprune_core.search.checkpoint import Checkpoint, pack, unpack, unsupported_type
from polyprune_core.search.early_stopping import EarlyStopping
from polyprune_core.search.loop import SearchOptions, search
from polyprune_core.search.trace import Trace
from polyprune_core.utils.progress import Reporter
from polyprune_plugins.estimators.antithetic import Antithetic
from polyprune_plugins.estimators.conditional_bernoulli import ConditionalBernoulli
from polyprune_plugins.estimators.control_variate import ControlVariate
from polyprune_plugins.estimators.reinforce import Reinforce
from polyprune_plugins.estimators.reinforce_released import ReinforceReleased
from polyprune_plugins.estimators.rloo import RLOO

CELL = "0123456789abcdef"
STEPS = 7
OPTIONS = SearchOptions(steps=STEPS, masks_per_step=4, learning_rate=0.1, sparsity=0.5)


class Told(Reporter):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.statuses: list[str] = []
        self.warnings: list[str] = []

    def status(self, text: str) -> None:
        self.statuses.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class Killed(BaseException):
    """What ends a search from outside."""


class FakeObjective(Metered):
    """Losses that depend on masks and text, some of them not finite; ends the search at its step `dies`."""

    vocabulary = 97

    def __init__(self, space: Any, dies: int | None = None) -> None:
        super().__init__()
        self.space, self.dies, self.steps = space, dies, 0

    def losses(self, masks: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        if self.steps == self.dies:
            raise Killed
        self.steps += 1
        self.count(ids.numel(), passes=len(masks))
        loss = ids.float().mean() / 10 - masks.float() @ torch.linspace(-1, 1, masks.shape[1])
        return torch.where(loss > loss.median(), loss, torch.tensor(math.inf)) if ids[0, 0] % 3 == 1 else loss


@dataclasses.dataclass(frozen=True)
class Nested:
    """Momentum in a nested state, beside every other thing that a state may hold."""

    min_masks = 1
    mask_multiple = 1
    unbiased = False
    precondition = None

    def sample(self, policy: Policy, num_masks: int, rng: torch.Generator) -> Any:
        return policy.sample(num_masks, rng)

    def gradient(self, policy: Policy, batch: Any, losses: torch.Tensor, state: Any) -> Any:
        new = losses @ policy.score_function(batch)
        past = state["deep"]["moments"][0] if state else torch.zeros_like(new, dtype=torch.float64)
        moment = 0.9 * past + new
        deep = {"moments": [moment, moment[::2]], "seen": (1, 2.5), "first": state is None, "none": None}
        return moment.float(), {"deep": deep, "count": (state["count"] if state else 0) + 1}


ESTIMATORS = [
    RLOO(),
    Antithetic(),
    Reinforce(),
    ReinforceReleased(),
    ControlVariate(),
    ConditionalBernoulli(),
    Nested(),
]
by_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda e: type(e).__name__)


@pytest.fixture(scope="module")
def space(make_space):
    return make_space(("channel", 0, 6, 12), ("channel", 1, 5, 12), ("head", 0, 4, 40))


@pytest.fixture
def at_every_step(monkeypatch) -> None:
    """No time has to pass between two writes."""
    monkeypatch.setattr(resume, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(resume, "SHARE_OF_TIME", math.inf)


def batches() -> Iterator[torch.Tensor]:
    rng = torch.Generator().manual_seed(5)
    while True:
        yield torch.randint(100, (2, 8), generator=rng)


def nothing(given: Any) -> None:
    """What sees a step and does nothing."""


registry = functools.cache(load_registry)


def run(space, estimator=None, checkpoint=None, dies=None, on_step=nothing, on_resume=nothing, policy=None, **changes):
    stopping = changes.pop("stopping", None)
    start = PolicyStart(space, Scores(torch.linspace(0, 1, len(space)), "rising"), SelectionRule(0.5))
    family = registry().build("policy", policy or "probabilities").bind(start)
    return search(
        family,
        family.start() if policy else torch.full((len(space),), 0.5),
        FakeObjective(space, dies),
        estimator or Nested(),
        batches(),
        dataclasses.replace(OPTIONS, **changes),
        torch.Generator().manual_seed(3),
        on_step,
        checkpoint,
        on_resume,
        stopping,
    )


@functools.cache
def unbroken(space, estimator=None):
    """What a search that nothing ends gives."""
    return run(space, estimator)


def same(one: tuple[torch.Tensor, Trace], other: tuple[torch.Tensor, Trace]) -> bool:
    """Whether two searches agree in everything but their times."""

    def timeless(trace: Trace) -> Trace:
        return dataclasses.replace(trace, steps=[dataclasses.replace(r, seconds=0) for r in trace.steps], seconds=0)

    return torch.equal(one[0], other[0]) and timeless(one[1]) == timeless(other[1])


# Going on


@by_estimator
@pytest.mark.parametrize("done", range(STEPS + 1))
@pytest.mark.usefixtures("at_every_step")
def test_a_search_ended_after_any_step_goes_on_to_the_same_result_bit_for_bit(space, tmp_path, estimator, done) -> None:
    path, told = tmp_path / "search", Told()
    if done < STEPS:
        with pytest.raises(Killed):
            run(space, estimator, Checkpoint(path, CELL, Told()), dies=done)
    else:
        run(space, estimator, Checkpoint(path, CELL, Told()))
    assert path.exists() == (done > 0)
    before: list[int] = []
    after: list[int] = []
    resumed = run(
        space,
        estimator,
        Checkpoint(path, CELL, told),
        on_step=lambda record: after.append(record.step),
        on_resume=lambda records: before.extend(record.step for record in records),
    )
    assert same(resumed, unbroken(space, estimator))
    assert told.warnings == []
    assert told.statuses == ([f"the search goes on from {path}"] if done else [])
    assert (before, after) == (list(range(1, done + 1)), list(range(done + 1, STEPS + 1)))


@pytest.mark.usefixtures("at_every_step")
def test_a_search_ended_again_and_again_goes_on_to_the_same_result(space, tmp_path) -> None:
    for _ in range(STEPS - 1):
        with pytest.raises(Killed):
            run(space, checkpoint=Checkpoint(tmp_path / "search", CELL, Told()), dies=1)
    assert same(run(space, checkpoint=Checkpoint(tmp_path / "search", CELL, Told())), unbroken(space))


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("policy", ["gaussian", "hierarchical", "logits", "probabilities"])
def test_every_policy_goes_on_with_what_its_optimizer_and_its_average_remember(space, tmp_path, policy) -> None:
    how: dict[str, Any] = {"policy": policy, "optimizer": "adam", "averaging": 0.5, "warmup": 0.3}
    whole = run(space, RLOO(), **how)
    for done in range(1, STEPS):
        with pytest.raises(Killed):
            run(space, RLOO(), Checkpoint(tmp_path / "search", CELL, Told()), dies=done, **how)
        assert same(run(space, RLOO(), Checkpoint(tmp_path / "search", CELL, Told()), **how), whole)
        (tmp_path / "search").unlink()


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("done", range(1, STEPS))
def test_a_search_that_looks_at_text_held_back_goes_on_with_what_it_saw(space, tmp_path, done) -> None:
    stopping = EarlyStopping(lambda parameters: float(parameters[0]), patience=1)
    with pytest.raises(Killed):
        run(space, RLOO(), Checkpoint(tmp_path / "search", CELL, Told()), dies=done, stopping=stopping)
    resumed = run(space, RLOO(), Checkpoint(tmp_path / "search", CELL, Told()), stopping=stopping)
    assert same(resumed, run(space, RLOO(), stopping=stopping))
    assert sum(record.held_back is not None for record in resumed[1].steps) == 2


@by_estimator
def test_steps_after_the_last_checkpoint_are_done_again_and_counted_once(space, tmp_path, estimator) -> None:
    class EveryThird(Checkpoint):
        def keep(self, state: Any) -> None:
            self._next = -math.inf if state()["step"] % 3 == 0 else math.inf
            super().keep(state)

    with pytest.raises(Killed):
        run(space, estimator, EveryThird(tmp_path / "search", CELL, Told()), dies=5)
    policy, trace = run(space, estimator, Checkpoint(tmp_path / "search", CELL, Told()))
    assert same((policy, trace), unbroken(space, estimator))
    assert trace.forward_tokens == STEPS * 4 * 16


@pytest.mark.usefixtures("at_every_step")
def test_an_interruption_between_a_step_and_its_checkpoint_costs_that_step_only(space, tmp_path) -> None:
    def end(record: Any) -> None:
        if record.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(space, checkpoint=Checkpoint(tmp_path / "search", CELL, Told()), on_step=end)
    assert unpack(tmp_path / "search", CELL)["step"] == 3
    assert same(run(space, checkpoint=Checkpoint(tmp_path / "search", CELL, Told())), unbroken(space))


@pytest.mark.usefixtures("at_every_step")
def test_time_adds_up_over_the_parts(space, tmp_path) -> None:
    with pytest.raises(Killed):
        run(space, checkpoint=Checkpoint(tmp_path / "search", CELL, Told()), dies=4)
    tree = unpack(tmp_path / "search", CELL)
    tree["trace"]["seconds"] = 1000.0
    (tmp_path / "search").write_bytes(pack(tree, CELL))
    _, trace = run(space, checkpoint=Checkpoint(tmp_path / "search", CELL, Told()))
    assert trace.seconds == trace.steps[-1].seconds > 1000
    assert [record.seconds > 1000 for record in trace.steps] == [False] * 4 + [True] * 3


# When it is written


def test_a_checkpoint_waits_between_two_writes_the_longer_the_more_a_write_costs(tmp_path, monkeypatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(resume.time, "monotonic", lambda: clock[0])
    written = []

    def write(path: Path, content: bytes) -> None:
        written.append(clock[0])
        clock[0] += 0.5

    monkeypatch.setattr(resume, "write_atomically", write)
    checkpoint = Checkpoint(tmp_path / "search", CELL, Told())
    for _ in range(200):
        checkpoint.keep(dict)
        clock[0] += 1
    assert written == [102.0, 152.5, 203.0, 253.5]


@pytest.mark.usefixtures("at_every_step")
def test_a_checkpoint_that_cannot_be_written_is_told_once_and_the_search_goes_on(space, tmp_path, monkeypatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    told = Told()
    assert same(run(space, checkpoint=Checkpoint(tmp_path / "search", CELL, told)), unbroken(space))
    assert len(told.warnings) == 1
    assert str(tmp_path / "search") in told.warnings[0]
    assert "No space left" in told.warnings[0]
    assert list(tmp_path.iterdir()) == []


# What cannot be used


def kept(space, path: Path, **changes: Any) -> bytes:
    """Writes the checkpoint of a search of four steps."""
    with pytest.raises(Killed):
        run(space, checkpoint=Checkpoint(path, CELL, Told()), dies=4, **changes)
    return path.read_bytes()


def starts_over(space, path: Path, *parts: str) -> None:
    told = Told()
    assert same(run(space, checkpoint=Checkpoint(path, CELL, told)), unbroken(space))
    assert len(told.warnings) == 1
    for part in (str(path), "starts over", *parts):
        assert part in told.warnings[0]
    assert len(told.warnings[0].splitlines()) == 1


@pytest.mark.usefixtures("at_every_step")
def test_a_checkpoint_cut_short_anywhere_is_named_and_its_cell_starts_over(space, tmp_path) -> None:
    whole = kept(space, tmp_path / "search")
    for length in {0, 1, 7, 8, 9, *range(0, len(whole), len(whole) // 9), len(whole) - 1}:
        (tmp_path / "search").write_bytes(whole[:length])
        starts_over(space, tmp_path / "search")


class Trap:
    """Unpickling it leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("how", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_in_its_place_is_not_run(space, tmp_path, how) -> None:
    with (tmp_path / "search").open("wb") as file:
        how(Trap(tmp_path / "mark"), file)
    starts_over(space, tmp_path / "search")
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("at_every_step")
def test_a_model_in_its_place_is_refused(space, tmp_path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "search")
    starts_over(space, tmp_path / "search")


@pytest.mark.usefixtures("at_every_step")
def test_another_cells_checkpoint_under_this_name_is_refused(space, tmp_path) -> None:
    kept(space, tmp_path / "search")
    (tmp_path / "search").write_bytes(pack(unpack(tmp_path / "search", CELL), "another"))
    starts_over(space, tmp_path / "search", "another")


@pytest.mark.usefixtures("at_every_step")
def test_a_checkpoint_of_another_format_is_refused(space, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(resume, "FORMAT", "polyprune-search 99")
        kept(space, tmp_path / "search")
    starts_over(space, tmp_path / "search", "polyprune-search 99")


WRONG = {
    "fewer units": lambda tree: tree | {"parameters": torch.full((3,), 0.5)},
    "another number format": lambda tree: tree | {"parameters": tree["parameters"].double()},
    "no policy": lambda tree: {name: value for name, value in tree.items() if name != "parameters"},
    "a policy that is a number": lambda tree: tree | {"parameters": 0.5},
    "a generator cut short": lambda tree: tree | {"rng": tree["rng"][:100]},
    "no generator": lambda tree: {name: value for name, value in tree.items() if name != "rng"},
    "steps without a record": lambda tree: tree | {"step": 5},
    "a record of something else": lambda tree: tree | {"trace": {"steps": [{"a": 1}] * 4}},
    "a list": lambda tree: [tree],
    "nothing": lambda tree: None,
}


@pytest.mark.usefixtures("at_every_step")
@pytest.mark.parametrize("fault", WRONG)
def test_a_checkpoint_that_holds_something_else_is_refused(space, tmp_path, fault) -> None:
    kept(space, tmp_path / "search")
    (tmp_path / "search").write_bytes(pack(WRONG[fault](unpack(tmp_path / "search", CELL)), CELL))
    starts_over(space, tmp_path / "search")


# What a state may hold


class Strange:
    """Not a number, not a tensor."""


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ({"a": Strange()}, "a Strange"),
        ({"a": {"b": [1, Strange()]}}, "a Strange"),
        ({"a": "text"}, "a str"),
        ({"a": {1, 2}}, "a set"),
        ({1: 2.0}, "a key that is a int"),
        ({"a": torch.eye(2).to_sparse()}, "a Tensor"),
        ({"a": lambda: 1}, "a function"),
    ],
)
def test_a_plugin_that_keeps_something_else_in_its_state_is_named_with_or_without_a_checkpoint(
    space, tmp_path, state, kind
) -> None:
    class Keeps(Nested):
        def gradient(self, policy: Policy, batch: Any, losses: torch.Tensor, _: Any) -> Any:
            return torch.zeros_like(policy.keep_prob), state

    for checkpoint in (None, Checkpoint(tmp_path / "search", CELL, Told())):
        with pytest.raises(PluginError, match=f"Keeps.* keeps {kind} in its state"):
            run(space, Keeps(), checkpoint)
    assert unsupported_type(state) == kind


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREES)
def test_what_is_packed_is_unpacked_as_it_was(tmp_path_factory, tree) -> None:
    path = tmp_path_factory.mktemp("packed") / "file"
    path.write_bytes(pack(tree, CELL))
    assert repr(unpack(path, CELL)) == repr(tree)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([0.1, math.nan, math.inf, -0.0], dtype=dtype)
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    ]
    + [torch.tensor(3), torch.ones(2, 0), torch.arange(6).view(2, 3).t(), torch.tensor([True, False])],
    ids=lambda t: f"{t.dtype} {tuple(t.shape)}",
)
def test_tensors_are_unpacked_bit_for_bit(tmp_path, tensor) -> None:
    (tmp_path / "file").write_bytes(pack({"one": tensor, "again": [tensor]}, CELL))
    tree = unpack(tmp_path / "file", CELL)
    for found in (tree["one"], tree["again"][0]):
        assert found.dtype == tensor.dtype
        assert torch.equal(torch.nan_to_num(found), torch.nan_to_num(tensor))
        if tensor.dtype.is_floating_point:
            assert torch.equal(torch.signbit(found), torch.signbit(tensor))
