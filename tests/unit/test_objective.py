"""The loss of a model under masks is the loss that transformers computes of the gated model."""

from __future__ import annotations

import pytest
import torch

from polyprune_core.evaluation import losses as objective
from polyprune_core.evaluation.losses import Objective, last_hidden, losses_from_hidden, token_losses
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.surgery import Compactor
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head


@torch.no_grad()
def reference(model, ids: torch.Tensor) -> torch.Tensor:
    """Returns (B,) transformers' own mean loss of each window."""
    return torch.stack([model(input_ids=window[None], labels=window[None]).loss for window in ids])


@torch.no_grad()
def test_token_losses_average_to_the_loss_of_transformers(model, ids) -> None:
    losses = token_losses(model, ids)
    assert losses.shape == (5, 11)
    assert losses.dtype == torch.float32
    # Float32 losses of about 4: a few units in the last place.
    torch.testing.assert_close(losses.mean(dim=1), reference(model, ids), rtol=0, atol=2e-6)


@torch.no_grad()
def test_each_token_loss_is_minus_the_log_probability_of_the_next_token(llama, ids) -> None:
    log_p = torch.log_softmax(llama(input_ids=ids).logits.double(), dim=-1)
    expected = -log_p[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(token_losses(llama, ids).double(), expected, rtol=0, atol=5e-6)


@torch.no_grad()
def test_losses_do_not_depend_on_how_many_positions_are_worked_on_at_a_time(llama, ids, monkeypatch) -> None:
    hidden = last_hidden(llama, ids)
    losses = losses_from_hidden(llama, hidden, ids)
    for rows in (1, 7, 55, 10_000):
        monkeypatch.setattr(objective, "LOGIT_ROWS", rows)
        torch.testing.assert_close(losses_from_hidden(llama, hidden, ids), losses, rtol=0, atol=2e-6)


@torch.no_grad()
def test_more_positions_than_one_piece_give_the_loss_of_transformers(llama) -> None:
    ids = torch.randint(97, (7, 40), generator=torch.Generator().manual_seed(3))  # 273 positions
    torch.testing.assert_close(token_losses(llama, ids).mean(dim=1), reference(llama, ids), rtol=0, atol=2e-6)


@torch.no_grad()
def test_losses_of_large_logits_do_not_overflow(tiny, ids) -> None:
    model = tiny("llama")
    model.lm_head.weight.mul_(1000)
    losses = token_losses(model, ids)
    assert losses.isfinite().all()
    torch.testing.assert_close(losses.mean(dim=1), reference(model, ids), rtol=1e-5, atol=0)


@torch.no_grad()
def test_losses_of_a_bfloat16_model_are_computed_in_float32(tiny, ids) -> None:
    model = tiny("llama").bfloat16()
    losses = token_losses(model, ids)
    assert losses.dtype == torch.float32
    # transformers, too, goes to float32 from bfloat16 logits.
    torch.testing.assert_close(losses.mean(dim=1), reference(model, ids), rtol=0, atol=1e-5)


def test_losses_have_the_gradient_of_transformers_loss(tiny, ids) -> None:
    model = tiny("llama").requires_grad_(True)
    model(input_ids=ids, labels=ids).loss.backward()
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(token_losses(model, ids).mean(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.fixture
def masked(model, space_of):
    space = space_of(model, Head(), Channel())
    masks = torch.rand((3, len(space)), generator=torch.Generator().manual_seed(2)) < 0.6
    masks[2] = True
    return model, space, masks


def test_losses_under_masks_are_those_of_the_gated_model(masked, ids) -> None:
    model, space, masks = masked
    with Compactor(model, space.layout) as compactor:
        found = Objective(compactor, space).losses(masks, ids)
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    for mask, loss in zip(masks, found, strict=True):
        with gated(model, space.layout, space.axis_keep(mask)):
            torch.testing.assert_close(loss.clone(), reference(model, ids).mean(), rtol=0, atol=1e-5)


def test_the_full_mask_has_the_loss_of_the_model_itself(masked, ids) -> None:
    model, space, masks = masked
    with Compactor(model, space.layout) as compactor:
        found = Objective(compactor, space).losses(masks[2:], ids)
    torch.testing.assert_close(found.clone(), reference(model, ids).mean()[None], rtol=0, atol=2e-6)


def test_the_order_of_masks_changes_nothing_but_the_order_of_losses(masked, ids) -> None:
    model, space, masks = masked
    with Compactor(model, space.layout) as compactor:
        objective = Objective(compactor, space)
        assert torch.equal(objective.losses(masks, ids), objective.losses(masks.flip(0), ids).flip(0))


def test_passes_and_tokens_are_counted(masked, ids) -> None:
    model, space, masks = masked
    with Compactor(model, space.layout) as compactor:
        objective = Objective(compactor, space)
        assert (objective.forward_passes, objective.forward_tokens) == (0, 0)
        objective.losses(masks, ids)
        assert (objective.forward_passes, objective.forward_tokens) == (3, 3 * 60)
        objective.losses(masks[:1], ids[:2])
        assert (objective.forward_passes, objective.forward_tokens) == (4, 3 * 60 + 24)


def test_losses_can_be_used_outside_of_inference_mode(masked, ids) -> None:
    model, space, masks = masked
    with Compactor(model, space.layout) as compactor:
        losses = Objective(compactor, space).losses(masks, ids)
    assert torch.where(losses.isfinite(), losses, torch.tensor(0.0)).mean() > 0


def test_kl_is_that_of_the_dense_model_to_the_gated_one_and_costs_a_pass_a_batch(masked, ids) -> None:
    model, space, masks = masked
    with torch.no_grad():
        dense = model(input_ids=ids).logits[:, :-1].double().log_softmax(dim=-1)
    with Compactor(model, space.layout) as compactor:
        objective = Objective(compactor, space, "kl")
        found = objective.losses(masks, ids)
        assert (objective.forward_passes, objective.forward_tokens) == (4, 4 * 60)
        slopes = objective.gradients(masks[:1].float(), ids)
    for mask, loss in zip(masks, found, strict=True):
        with torch.no_grad(), gated(model, space.layout, space.axis_keep(mask)):
            pruned = model(input_ids=ids).logits[:, :-1].double().log_softmax(dim=-1)
        expected = (dense.exp() * (dense - pruned)).sum(dim=-1).mean()
        torch.testing.assert_close(loss.clone().double(), expected, rtol=1e-4, atol=1e-6)
    assert float(found[2]) < 1e-6  # nothing is removed
    torch.testing.assert_close(slopes[0], found[:1].clone(), rtol=1e-4, atol=1e-6)
