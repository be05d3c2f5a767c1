"""The catalogue's real model: it is the one we say it is, and it works."""

from __future__ import annotations

import pytest
import torch

from polyprune_core.models.sources import catalogue, load_model


@pytest.mark.real
def test_smollm2_has_its_parameters_and_knows_the_capital_of_france():
    loaded = load_model("smollm2-135m")
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 134_515_008
    assert catalogue()["smollm2-135m"].parameters == 134_515_008
    prompt = loaded.tokenizer("The capital of France is", return_tensors="pt").to(loaded.model.device)
    with torch.no_grad():
        next_token = loaded.model(**prompt).logits[0, -1].argmax()
    assert loaded.tokenizer.decode(next_token) == " Paris"
    assert len(loaded.sha256) == 64


@pytest.mark.real
def test_smollm2_splits_every_digit_from_the_spaces_before_it():
    tokenizer = load_model("smollm2-135m").tokenizer
    assert tokenizer.tokenize("a  12\n\n\n3") == ["a", "ĠĠ", "1", "2", "ĊĊĊ", "3"]
