"""Tiny random models in which every sublayer matters, with units, text and a tokenizer for them. No network is needed.

Each model has fewer than 50,000 parameters. Every call returns a new object, which a test may change.
Symbols in shapes: U units, N windows, T tokens.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.calibration import Calibration
from polyprune_core.models.describe import describe
from polyprune_core.models.families import family_of
from polyprune_core.models.layout import Axis, ModelLayout
from polyprune_core.models.quiet import quiet
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.plugins.registry import Registry, load_registry
from polyprune_core.pruning.budget import SelectionRule
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Scores, Selection, UnitGroup
from polyprune_core.utils.rng import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

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
    "use_cache": False,
}
# What each family adds: heads narrower or wider than hidden / heads, biases, norms on heads, a window.
CONFIGURATIONS = ("llama", "qwen2", "mistral", "qwen3")
FAMILIES = ("llama", "qwen2")  # those that the kit examines plugins on: without biases, and with them
UNITS = {"head": "attention", "channel": "mlp", "attention": "attention", "mlp": "mlp"}


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Returns a tiny random model in eval mode, by default a Llama with grouped-query attention.

    The Llama has 3 layers with 70 channels each, and 3 KV heads that 2 query heads each share. "qwen2" also has biases.
    The weights of norms and biases differ from their usual initial values.

    Args:
        family: a model type of transformers that a family describes, such as "llama", "qwen2" or "gpt2".
        seed: the seed of the weights.
        changes: fields of the configuration, with values in place of the usual ones.
    """
    return copy.deepcopy(_model(family)) if seed == 0 and not changes else _build(family, seed, changes)


@cache
def _model(family: str) -> PreTrainedModel:
    return _build(family, 0, {})


def _build(family: str, seed: int, changes: dict[str, Any]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(tiny_config(family, **changes), dtype=torch.float32)
    rng = generator(seed, f"tiny {family}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=rng)
            if name.endswith("bias"):
                parameter.copy_(noise / 2)
            elif parameter.dim() == 1:
                parameter.copy_(1 + noise / 5)
            else:
                parameter.copy_(noise if "embed" in name else noise / parameter.shape[-1] ** 0.5)
    frozen: PreTrainedModel = model.eval().requires_grad_(False)
    return frozen


def tiny_config(family: str = "llama", **changes: Any) -> Any:
    """Returns the configuration of a tiny model of a model type that a family describes, with the fields in `changes`.

    Raises:
        ModelError: no family describes the model type, or the family has no tiny configuration of that type.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    described = family_of(family)
    if family not in described.tiny:
        raise ModelError(f"family {described.name!r} has no tiny.{family}: what a tiny random model of it needs.")
    own = dict(described.tiny[family])
    if described.text:
        own |= {described.text: {**SIZES, **own.get(described.text, {}), **changes}}
        return CONFIG_MAPPING[family](**own)
    return CONFIG_MAPPING[family](**{**SIZES, **own, **changes})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer with the words w0 to w96 as tokens, separated by spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="w1", eos_token="w2", unk_token="w0")


def tiny_windows(seed: int = 0) -> Tensor:
    """Returns random token windows (5, 12) int64."""
    return torch.randint(VOCABULARY, (5, 12), generator=generator(seed, "tiny windows"))


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> Tensor:
    """Returns the logits (5, 12, vocabulary) of a tiny model on `tiny_windows()`."""
    logits: Tensor = model(input_ids=tiny_windows(), use_cache=False).logits
    return logits


def tiny_space(model: torch.nn.Module, units: str = "head+channel") -> MaskSpace:
    """Returns the units of a model. `units` joins head, channel, attention, mlp and layer with +."""
    layout = describe(model)
    groups = [group for part in units.split("+") for group in _groups(layout, part)]
    return MaskSpace(layout, groups, units)


def _groups(layout: ModelLayout, part: str) -> list[UnitGroup]:
    def whole(axes: list[Axis]) -> UnitGroup:
        return UnitGroup(part, axes[0].layer, 1, tuple((axis.name, axis.size) for axis in axes))

    if part == "layer":
        return [whole([axis for axis in layout.axes if axis.layer == i]) for i in range(layout.num_layers)]
    axes = layout.of_kind(UNITS[part])
    if part in ("head", "channel"):
        return [UnitGroup(part, axis.layer, axis.size, ((axis.name, 1),)) for axis in axes]
    return [whole([axis]) for axis in axes]


def tiny_calibration(
    model: torch.nn.Module,
    *,
    windows: Tensor | None = None,
    seed: int = 0,
    batch_size: int = 8,
    budget: SelectionRule | None = None,
    held_back: bool = False,
) -> Calibration:
    """Returns a calibration for a model.

    Args:
        model: a tiny model.
        windows: (N, T) int64 tokens; by default `tiny_windows()`.
        seed: the seed of the calibration's generator.
        batch_size: windows in one forward pass.
        budget: the budget, for a metric that needs "budget".
        held_back: whether there are further windows, for a metric that needs "held-back".
    """
    text = tiny_windows() if windows is None else windows
    rng = generator(seed, "tiny calibration")

    def measure(spec: str, model: torch.nn.Module, space: MaskSpace, calibration: Calibration) -> Scores:
        return _installed().measure(spec, model, space, calibration)

    def mend(spec: str, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        updates: Mapping[str, Tensor] = _installed().build("repair", spec).repair(pruned, calibration)
        return updates

    return Calibration(
        model,
        describe(model),
        text,
        rng,
        batch_size,
        budget=budget,
        measure=measure,
        mend=mend,
        held_back=tiny_windows(seed=1) if held_back else None,
    )


@cache
def _installed() -> Registry:
    """The plugins of this environment, loaded for the first one that asks for another."""
    return load_registry()


def tiny_base(folder: Path, family: str = "llama") -> LoadedModel:
    """Writes a tiny model and its tokenizer to `folder`, and returns the model as polyprune reads it from there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in _files(family).items():
        (folder / name).write_bytes(content)
    return load_model(str(folder), dtype="float32", device="cpu")


@cache
def _files(family: str) -> dict[str, bytes]:
    with quiet(), tempfile.TemporaryDirectory() as folder:
        _model(family).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def tiny_pruned(base: LoadedModel, space: MaskSpace, keep: Tensor, **recipe: Any) -> PrunedModel:
    """Returns the model `base` without the units for which `keep` (U,) bool is False; `recipe` is stored with it."""
    selection = Selection(keep, int(space.cost[keep].sum()), space.total_cost)
    scores = Scores(keep.float(), "tiny")
    return PrunedModel(base, space, selection, scores, None, {"granularity": space.name, **recipe})
