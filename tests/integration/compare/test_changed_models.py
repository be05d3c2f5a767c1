"""A plugin of others that changes what every row is measured with fails alone, and the rows after it are right."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from commandline import Run, refused
from grids import FEWER, grid, results_of
from test_failing_cells import BROKEN, Estimator, Initializer, failed_alone, grid_with, installed
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaMLP

from polyprune_core.runs import opening

pytestmark = pytest.mark.usefixtures("two_short_texts")
__all__ = ["installed"]

LAYER = "model.layers.1"


LOADED: list[Any] = []


def the_model() -> Any:
    """The model of the run; a plugin that is not given it can find it among all objects."""
    return LOADED[-1]


@contextmanager
def watched(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has `the_model` find what commands load."""
    load = opening.load_model

    def loading(*names: Any, **options: Any) -> Any:
        loaded = load(*names, **options)
        LOADED.append(loaded.model)
        return loaded

    patch.setattr(opening, "load_model", loading)
    yield
    LOADED.clear()


@pytest.fixture(autouse=True)
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with watched(monkeypatch):
        yield


@torch.no_grad()
def scale_embedding(model: Any) -> None:
    model.get_input_embeddings().weight.mul_(1.5)


@torch.no_grad()
def turn_norm(model: Any) -> None:
    model.model.norm.weight[3] *= -1


def move_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2)


def exchange_buffer(model: Any) -> None:
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq[:1].clone()


def replace_forward(model: Any) -> None:
    norm = model.get_submodule(LAYER).input_layernorm
    norm.forward = lambda hidden: 2 * hidden


def exchange_activation(model: Any) -> None:
    model.get_submodule(f"{LAYER}.mlp").act_fn = torch.nn.ReLU()


def exchange_parameter(model: Any) -> None:
    mlp = model.get_submodule(f"{LAYER}.mlp")
    mlp.up_proj.weight = torch.nn.Parameter(torch.zeros_like(mlp.up_proj.weight), requires_grad=False)


def cut_parameter(model: Any) -> None:
    model.model.norm.weight.data = model.model.norm.weight.data[:3].clone()


def change_class(model: Any) -> None:
    norm = model.model.norm
    norm.__class__ = type("Norm", (type(norm),), {"forward": lambda self, hidden: hidden})


def change_epsilon(model: Any) -> None:
    model.model.norm.variance_epsilon = 1.0


def change_configuration(model: Any) -> None:
    model.config._attn_implementation = "eager"


def patch_function(model: Any) -> None:
    torch.nn.functional.silu = functools.partial(torch.nn.functional.relu)


def patch_method(model: Any) -> None:
    LlamaMLP.forward = lambda self, hidden: 0 * hidden


def shadow_method(model: Any) -> None:
    LlamaMLP.__call__ = lambda self, hidden: 0 * hidden


def patch_our_own(model: Any) -> None:
    from polyprune_core.evaluation import perplexity

    perplexity.cross_entropy = lambda logits, target: torch.zeros(len(logits))


def leave_hook(model: Any) -> None:
    model.model.norm.register_forward_hook(lambda module, inputs, output: 2 * output)


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "the embedding": (scale_embedding, "weight"),
    "a norm": (turn_norm, "weight"),
    "a buffer": (move_buffer, "buffers"),
    "another buffer": (exchange_buffer, "buffers"),
    "a forward": (replace_forward, f"forward of {LAYER}.input_layernorm"),
    "an activation": (exchange_activation, f"act_fn of {LAYER}.mlp"),
    "a parameter": (exchange_parameter, f"{LAYER}.mlp.up_proj"),
    "a shape": (cut_parameter, "weight"),
    "a class": (change_class, "the class of model.norm"),
    "a number of a module": (change_epsilon, "variance_epsilon of model.norm"),
    "the configuration": (change_configuration, "configuration"),
    "a function of torch": (patch_function, "torch.nn.functional.silu"),
    "a method of transformers": (patch_method, "LlamaMLP.forward"),
    "an inherited method": (shadow_method, "LlamaMLP.__call__"),
    "a function of polyprune": (patch_our_own, "polyprune_core.evaluation.perplexity.cross_entropy"),
    "a hook": (leave_hook, "hooks"),
}


@contextmanager
def put_back() -> Iterator[None]:
    """Leaves nothing of a change behind for other tests, whatever the command did about it."""
    places = (torch.nn.functional, LlamaMLP)
    before = [dict(vars(place)) for place in places]
    yield
    for place, known in zip(places, before, strict=True):
        for name in [*vars(place)]:
            if name not in known:
                delattr(place, name)
            elif vars(place)[name] is not known[name]:
                setattr(place, name, known[name])


@pytest.fixture
def as_before() -> Iterator[None]:
    with put_back():
        yield


@pytest.fixture(scope="module")
def alone(short_texts: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows where nobody changes anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(short_texts)
        return results_of(grid(tmp_path_factory.mktemp("alone"), base=FEWER).rows)


def scored(space: Any, change: Callable[[Any], None]) -> torch.Tensor:
    change(the_model())
    return torch.arange(len(space)).float()


def faulty(what: str, kind: str) -> Any:
    """Returns a plugin that changes what rows are measured with, behind its back."""
    change = CHANGES[what][0]

    def gradient(policy: Any, losses: Any) -> Any:
        change(the_model())
        return torch.zeros_like(policy.keep_prob), None

    return Estimator(gradient) if kind == "estimator" else Initializer(lambda space: scored(space, change))


NAMES = {what: what.replace(" ", "-") for what in CHANGES}
OF_SEARCHES = {f"{NAMES[what]}-in-a-search": what for what in ("a buffer", "a shape", "a function of torch")}


@pytest.fixture(scope="module")
def mixed(two_short_texts: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, str]]:
    """A grid with every change in a cell of its own, before the others, and the reasons by their plugins."""
    store = tmp_path_factory.mktemp("mixed")
    plugins = {name: ("initializer", faulty(what, "initializer")) for what, name in NAMES.items()}
    plugins |= {name: ("estimator", faulty(what, "estimator")) for name, what in OF_SEARCHES.items()}
    with pytest.MonkeyPatch.context() as patch, put_back(), watched(patch):
        return grid_with(patch, plugins, store)


@pytest.mark.parametrize("what", CHANGES)
def test_an_initializer_that_changes_what_rows_are_measured_with_fails(mixed, what) -> None:
    for part in (f"initializer '{NAMES[what]}'", str(BROKEN), CHANGES[what][1]):
        assert part in mixed[1][NAMES[what]]


@pytest.mark.parametrize("name", OF_SEARCHES)
def test_an_estimator_that_changes_the_model_behind_its_back_fails(mixed, name) -> None:
    assert f"estimator '{name}'" in mixed[1][name]


def test_the_rows_after_all_changes_are_right(mixed, alone) -> None:
    assert results_of([row for row in mixed[0].rows if row["status"] == "ok"]) == alone


def test_what_units_cost_is_not_a_plugins_to_change(installed, tmp_path, alone) -> None:
    def score(space: Any) -> torch.Tensor:
        space.cost[::2] *= 2
        return torch.arange(len(space)).float()

    installed("initializer", "faulty", Initializer(score))
    mixed = grid(tmp_path, "--baselines", "faulty,random", base=FEWER)
    assert "the cost of units of head+channel" in failed_alone(mixed, tmp_path, "faulty")["faulty"]
    assert results_of([row for row in mixed.rows if row["initializer"] != "faulty"]) == alone


def test_the_scores_of_other_cells_are_not_a_policys_to_change(installed, tmp_path) -> None:
    from polyprune_core.plugins.registry import load_registry

    plain = load_registry().build("policy", "probabilities")

    class Faulty:
        independent_units, optimizer, learning_rate, scope = True, "sgd", 0.02, "kind"

        def bind(self, given: Any) -> Any:
            bound = plain.bind(given)
            given.scores.values.copy_(torch.arange(len(given.scores.values)))
            return bound

    installed("policy", "faulty", Faulty())
    both = ("--baselines", "magnitude", "--initializers", "magnitude", "--sparsity", "0.2,0.3")
    seen = [grid(tmp_path / policy, *both, "--policy", policy, base=FEWER) for policy in ("probabilities", "faulty")]
    plain_rows, rows = ([row["perplexity"] for row in run.rows if row["kind"] == "baseline"] for run in seen)
    assert len(rows) == 2
    assert rows == plain_rows


@pytest.mark.usefixtures("as_before")
def test_a_granularity_that_changes_the_model_is_refused_before_anything_is_measured(installed, tmp_path) -> None:
    from polyprune_core.plugins.registry import load_registry

    channel = load_registry().build("granularity", "channel")

    class Faulty:
        def groups(self, layout: Any) -> Any:
            turn_norm(the_model())
            return channel.groups(layout)

    installed("granularity", "faulty", Faulty())
    refused(grid(tmp_path, "--granularity", "faulty", base=FEWER), "granularity 'faulty'", "weights or buffers")


def test_where_a_change_cannot_be_put_back_nothing_is_measured_any_more(installed, tmp_path) -> None:
    table = ALL_ATTENTION_FUNCTIONS._global_mapping
    before, sdpa = copy.copy(table), table["sdpa"]

    def change(model: Any) -> None:
        table["sdpa"] = lambda *inputs, **more: (2 * sdpa(*inputs, **more)[0], None)

    installed("initializer", "faulty", Initializer(lambda space: scored(space, change)))
    try:
        run = grid(tmp_path, "--baselines", "faulty,random", base=FEWER)
    finally:
        table.clear()
        table.update(before)
    assert run.status == 1
    assert [row["status"] for row in run.rows] == ["ok", *["failed"] * 4]
    for row in run.rows[1:]:
        assert "initializer 'faulty'" in row["error"]
        assert "cannot be put back" in row["error"]
