"""Tiny random models of every anatomy, and mask spaces without a model."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from polyprune_core.pruning.space import MaskSpace

gc.disable()  # until everything is collected: of what that imports nothing is garbage
os.environ.setdefault("OMP_NUM_THREADS", "1")  # here and in every process that a test starts: several run side by side
CONFIGURATIONS = ("llama", "mistral", "qwen2", "qwen3")  # those of `polyprune_core.testing.tiny`, read without torch
hypothesis.settings.register_profile("polyprune", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis.settings.load_profile("polyprune")


def pytest_collection_finish() -> None:
    """What collecting has imported is no garbage: the collector need not look at it again, and seldom at what comes."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _signals_as_usual() -> Iterator[None]:
    """Signals do what they do at a terminal: one who runs the tests in the background ignores them."""
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if os.name != "nt":
        usual[signal.SIGHUP] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    """Builds a fresh model: tiny(family, seed=0, **config changes)."""
    from polyprune_core.testing.tiny import tiny_model

    return tiny_model


@pytest.fixture(scope="session")
def _models() -> dict[str, nn.Module]:
    from polyprune_core.testing import tiny

    assert set(CONFIGURATIONS) == set(tiny.CONFIGURATIONS)
    return {family: tiny.tiny_model(family) for family in CONFIGURATIONS}


@pytest.fixture(params=CONFIGURATIONS)
def model(request: pytest.FixtureRequest, _models: dict[str, nn.Module]) -> nn.Module:
    """One model a family, shared by all tests: a test must leave it as it was."""
    return _models[request.param]


@pytest.fixture
def llama(_models: dict[str, nn.Module]) -> nn.Module:
    """The shared Llama, for laws that have nothing to do with the family."""
    return _models["llama"]


@pytest.fixture(scope="session")
def ids() -> torch.Tensor:
    """Token windows, (5, 12)."""
    from polyprune_core.testing.tiny import tiny_windows

    return tiny_windows()


@pytest.fixture
def space_of() -> Callable[..., MaskSpace]:
    """Builds the mask space of a model: space_of(model, granularity, ...)."""
    from polyprune_core.models.describe import describe
    from polyprune_core.pruning.space import MaskSpace

    def build(model: nn.Module, *granularities: Any) -> MaskSpace:
        layout = describe(model)
        return MaskSpace(layout, [group for granularity in granularities for group in granularity.groups(layout)])

    return build


@pytest.fixture(scope="session")
def make_space() -> Callable[..., MaskSpace]:
    """Builds a mask space without a model.

    Each argument is (kind, layer, entries, entry cost[, entries per unit[, cost of the rest of the sublayer]]).
    """
    from polyprune_core.models.layout import Axis, Cut, ModelLayout
    from polyprune_core.pruning.space import MaskSpace
    from polyprune_core.pruning.types import UnitGroup

    def build(*rows: tuple[Any, ...]) -> MaskSpace:
        axes, groups = [], []
        for kind, layer, size, entry_cost, *rest in rows:
            per_unit, module_cost = (*rest, *(1, 0)[len(rest) :])
            name = f"layers.{layer}.{kind}"
            axes.append(
                Axis(
                    name=name,
                    kind=kind,
                    layer=layer,
                    size=size,
                    module=name,
                    reader=f"{name}.reader",
                    cuts=(Cut(f"{name}.reader.weight", 1, 0, 1),),
                    module_only=(),
                    entry_parameters=entry_cost,
                    module_parameters=module_cost,
                    outputs=1,
                    config_counts=(),
                )
            )
            groups.append(UnitGroup(kind, layer, -(-size // per_unit), ((name, per_unit),)))
        layout = ModelLayout("fake", "layers", 1 + max(row[1] for row in rows), tuple(axes), 10**9)
        return MaskSpace(layout, groups, "a made-up space")

    return build
