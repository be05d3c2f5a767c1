"""Smaller models of every rope type, and of models with code of their own; what cannot be written is told at once."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from polyprune_core.errors import ModelError
from polyprune_core.evaluation.losses import last_hidden, token_losses
from polyprune_core.evaluation.perplexity import Evaluator
from polyprune_core.models.sources import LoadedModel
from polyprune_core.pruning.cut_copy import cut_copy
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.pruning.writable import check_writable
from polyprune_core.testing.tiny import tiny_model, tiny_pruned, tiny_space, tiny_tokenizer, tiny_windows

ROPES = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 8},
    "longrope": {
        "short_factor": [1.0, 1.5, 2.0],
        "long_factor": [2.0, 3.0, 4.0],
        "factor": 2.0,
        "original_max_position_embeddings": 8,
    },
    "llama3": {
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "proportional": {"factor": 2.0},
}
FAMILIES = ("llama", "qwen2", "mistral", "qwen3")


class HalvedLlama(LlamaForCausalLM):
    """Halves its logits, as a model with code of its own may."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output


def base(model) -> LoadedModel:
    return LoadedModel("tiny", model, tiny_tokenizer(), "", None)


def halved() -> HalvedLlama:
    model = HalvedLlama(tiny_model().config).eval().requires_grad_(False)
    model.load_state_dict(tiny_model().state_dict())
    return model


def a_pruned(model, *emptied: str):
    """Keeps 60 % of heads and channels; of the axes `emptied` nothing."""
    space = tiny_space(model)
    keep = torch.rand(len(space), generator=torch.Generator().manual_seed(0)) < 0.6
    for where, group in zip(space.slices(), space.groups, strict=True):
        keep[where.start] = group.spans[0][0] not in emptied
        if group.spans[0][0] in emptied:
            keep[where] = False
    return tiny_pruned(base(model), space, keep)


def compacted(pruned, ids):
    with Compactor(pruned.base.model, pruned.layout) as compactor, compactor.applied(pruned.axis_keep()) as model:
        return model(ids).logits


def test_every_rope_type_of_transformers_is_tried() -> None:
    assert ROPES.keys() >= ROPE_INIT_FUNCTIONS.keys()


@pytest.mark.parametrize("rope", [rope for rope in ROPES if rope == "default" or rope in ROPE_INIT_FUNCTIONS])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_several_widths_are_built_with_every_rope_type(family, rope) -> None:
    parameters = {"rope_type": rope, "rope_theta": 1e4} | ROPES[rope]
    pruned, ids = a_pruned(tiny_model(family, rope_parameters=parameters, head_dim=6)), tiny_windows()
    check_writable(pruned.base)
    smaller = pruned.build()
    assert float((smaller(ids).logits - compacted(pruned, ids)).abs().max()) <= 1e-5


def test_a_model_with_code_of_its_own_is_measured_by_its_own_logits() -> None:
    model, ids = halved(), tiny_windows()
    halves = model(ids).logits
    torch.testing.assert_close(halves, tiny_model()(ids).logits / 2)
    assert torch.equal(last_hidden(model, ids), halves)
    expected = torch.nn.functional.cross_entropy(halves[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(token_losses(model, ids).flatten(), expected, rtol=0, atol=1e-5)


def test_a_model_with_code_of_its_own_is_compared_with_its_own_predictions() -> None:
    pruned, ids = a_pruned(halved()), tiny_windows()
    with Compactor(pruned.base.model, pruned.layout) as compactor:
        evaluator = Evaluator(ids, whole=lambda: compactor.applied({}))
        evaluator.dense(compactor.model)
        with compactor.applied(pruned.axis_keep()) as model:
            found = evaluator.compare(model)
            smaller = model(ids).logits
    dense, smaller = (each[:, :-1].log_softmax(-1) for each in (pruned.base.model(ids).logits, smaller))
    divergence = (dense.exp() * (dense - smaller)).sum(-1).mean()
    assert found.kl_to_dense == pytest.approx(float(divergence), abs=1e-5)
    assert found.top1_agreement == pytest.approx(float((dense.argmax(-1) == smaller.argmax(-1)).float().mean()))


@pytest.mark.parametrize(
    "emptied", [(), ("layers.0.attention", "layers.2.mlp"), ("layers.1.attention", "layers.1.mlp")]
)
def test_a_smaller_model_keeps_the_code_of_the_dense_one(emptied) -> None:
    pruned, ids = a_pruned(halved(), *emptied), tiny_windows()
    weights = {name: tensor.clone() for name, tensor in pruned.base.model.state_dict().items()}
    smaller = pruned.build()
    assert type(smaller) is HalvedLlama
    torch.testing.assert_close(smaller(ids).logits, compacted(pruned, ids), rtol=0, atol=1e-5)
    assert sum(parameter.numel() for parameter in smaller.parameters()) == pruned.parameters
    written = smaller.generate(ids[:1], max_new_tokens=4, do_sample=False, use_cache=True)
    assert torch.equal(written, smaller.generate(ids[:1], max_new_tokens=4, do_sample=False, use_cache=False))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pruned.base.model.state_dict().items())


def test_a_repair_is_in_the_smaller_model_that_keeps_its_code() -> None:
    pruned, ids = a_pruned(halved()), tiny_windows()
    norm, bias = torch.full((36,), 1.5), torch.full((36,), 0.25)
    updates = {"model.norm.weight": norm, "model.layers.1.mlp.down_proj.bias": bias}
    smaller = cut_copy(pruned.base.model, pruned.layout, pruned.axis_keep(), updates)
    with Compactor(pruned.base.model, pruned.layout) as dense, dense.applied(pruned.axis_keep(), updates) as model:
        repaired = model(ids).logits
    torch.testing.assert_close(smaller(ids).logits, repaired, rtol=0, atol=1e-5)


def test_the_whole_model_runs_inside_a_pruned_and_repaired_one_and_leaves_it_as_it_was() -> None:
    pruned, ids = a_pruned(tiny_model()), tiny_windows()
    updates = {"model.norm.weight": torch.full((36,), 1.5), "model.layers.1.mlp.down_proj.bias": torch.ones(36)}
    with Compactor(pruned.base.model, pruned.layout) as compactor:
        whole = compactor.model(ids).logits
        with compactor.applied(pruned.axis_keep(), updates) as model:
            repaired = model(ids).logits
            with compactor.applied({}):
                assert torch.equal(model(ids).logits, whole)
            assert torch.equal(model(ids).logits, repaired)
        assert torch.equal(compactor.model(ids).logits, whole)


def test_a_folder_that_would_lose_code_is_refused() -> None:
    with pytest.raises(ModelError, match=r"HalvedLlama.*would be lost.*--exporter masks"):
        check_writable(base(halved()))


def test_a_model_that_cannot_be_set_up_with_several_widths_is_refused_with_the_reason(monkeypatch) -> None:
    def wants_one_width(self, module) -> None:
        if self.config.is_heterogeneous:
            raise ValueError("one width, please")

    monkeypatch.setattr(LlamaForCausalLM, "_init_weights", wants_one_width)
    with pytest.raises(ModelError, match=r"cannot be built with layers of several widths: one width, please"):
        check_writable(base(tiny_model()))


def test_checking_changes_nothing_of_the_model() -> None:
    model = tiny_model()
    before = model.config.to_dict()
    loaded = base(model)
    check_writable(replace(loaded, name="again"))
    assert model.config.to_dict() == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tiny_model().parameters(), strict=True))
