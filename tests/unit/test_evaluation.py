"""Agreement with the dense model is what its definition says, on however many positions at a time."""

from __future__ import annotations

import pytest
import torch

from polyprune_core.evaluation import losses as objective
from polyprune_core.evaluation.perplexity import Evaluator


@pytest.fixture
def other(tiny) -> torch.nn.Module:
    """A Llama whose predictions are near the shared one's, and not the same."""
    model, rng = tiny("llama"), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * weight.std() * torch.randn(weight.shape, generator=rng) if weight.dim() > 1 else 0)
    return model


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 7, 256])
def test_divergence_and_agreement_are_those_of_all_logits_at_once(llama, other, ids, monkeypatch, rows) -> None:
    monkeypatch.setattr(objective, "LOGIT_ROWS", rows)
    evaluator = Evaluator(ids, batch_tokens=24)
    evaluator.dense(llama)
    found = evaluator.compare(other)
    log_p, log_q = (torch.log_softmax(each(input_ids=ids).logits[:, :-1].double(), dim=-1) for each in (llama, other))
    expected = (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
    assert expected > 0.01
    # Float32 sums over 97 words: a few units in the last place of logits of size 1 to 5.
    assert found.kl_to_dense == pytest.approx(float(expected), abs=5e-6)
    same = (log_p.argmax(dim=-1) == log_q.argmax(dim=-1)).double().mean()
    assert 0 < same < 1
    assert found.top1_agreement == pytest.approx(float(same))


def test_a_model_agrees_with_itself_exactly(llama, ids) -> None:
    evaluator = Evaluator(ids)
    dense = evaluator.dense(llama)
    found = evaluator.compare(llama)
    assert (dense.kl_to_dense, dense.top1_agreement) == (None, None)
    assert (found.kl_to_dense, found.top1_agreement) == (0.0, 1.0)
    assert found.nll == dense.nll
