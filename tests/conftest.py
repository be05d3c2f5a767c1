"""Tiny random models of every anatomy, and mask spaces without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
import torch
from torch import nn

from polyprune_core.models.describe import describe
from polyprune_core.models.layout import Axis, Cut, ModelLayout
from polyprune_core.space import MaskSpace
from polyprune_core.types import UnitGroup

torch.set_num_threads(1)
hypothesis.settings.register_profile("polyprune", deadline=None, derandomize=True, database=None, max_examples=60)
hypothesis.settings.load_profile("polyprune")

VOCABULARY = 97
# 70 channels: more than one multiple of the width that kept slices are padded to, and no multiple of a block of 3.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 36,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
# What each family adds: heads narrower or wider than hidden / heads, biases, norms on heads, a window.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "mistral": ("MistralConfig", {"head_dim": 8, "sliding_window": 6}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
}


def build_tiny(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a model whose sublayers all matter: unit-gain weights, biases and norms away from their defaults."""
    import transformers

    name, extra = FAMILIES[family]
    config = getattr(transformers, name)(**{**SIZES, **extra, **changes})
    with torch.random.fork_rng():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            if parameter_name.endswith("bias"):
                parameter.copy_(noise / 2)
            elif parameter.dim() == 1:
                parameter.copy_(1 + noise / 5)
            else:
                parameter.copy_(noise if "embed" in parameter_name else noise / parameter.shape[1] ** 0.5)
    return model.eval().requires_grad_(False)


@pytest.fixture
def tiny() -> Callable[..., nn.Module]:
    """Builds a fresh model: tiny(family, seed=0, **config changes)."""
    return build_tiny


@pytest.fixture(scope="session")
def _models() -> dict[str, nn.Module]:
    return {family: build_tiny(family) for family in FAMILIES}


@pytest.fixture(params=sorted(FAMILIES))
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
    return torch.randint(VOCABULARY, (5, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def space_of() -> Callable[..., MaskSpace]:
    """Builds the mask space of a model: space_of(model, granularity, ...)."""

    def build(model: nn.Module, *granularities: Any) -> MaskSpace:
        layout = describe(model)
        return MaskSpace(layout, [group for granularity in granularities for group in granularity.groups(layout)])

    return build


@pytest.fixture(scope="session")
def make_space() -> Callable[..., MaskSpace]:
    """Builds a mask space without a model.

    Each argument is (kind, layer, entries, entry cost[, entries per unit[, cost of the rest of the sublayer]]).
    """

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
                    cuts=(Cut(f"{name}.reader.weight", 1, 1),),
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
