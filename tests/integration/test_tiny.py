"""The bundled tiny model: small, loadable without a network, and trained."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import polyprune_core
from polyprune_core.evaluation.pydocs import evaluation_text

TINY = Path(polyprune_core.__file__).parent / "models" / "tiny"
WINDOW, WINDOWS = 128, 32


@pytest.fixture(autouse=True)
def _offline(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    """Returns held-out token ids, [WINDOWS, WINDOW], spread over the whole text."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    ids = torch.tensor(tokenizer(evaluation_text(), add_special_tokens=False)["input_ids"])
    return ids.unfold(0, WINDOW, (len(ids) - WINDOW) // (WINDOWS - 1))[:WINDOWS]


@torch.no_grad()
def perplexity(model: torch.nn.Module, ids: torch.Tensor) -> float:
    return math.exp(float(model.eval()(input_ids=ids, labels=ids).loss))


def test_the_folder_is_at_most_four_megabytes_and_has_a_card() -> None:
    assert sum(path.stat().st_size for path in TINY.rglob("*")) <= 4_000_000
    assert "Apache-2.0" in (TINY / "README.md").read_text(encoding="utf-8")


def test_the_model_has_grouped_heads_and_under_a_million_and_a_half_parameters() -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY)
    assert model.num_parameters() < 1_500_000
    assert model.dtype == torch.bfloat16
    assert model.config.num_attention_heads > model.config.num_key_value_heads > 1
    assert model.config.num_attention_heads % model.config.num_key_value_heads == 0


def test_the_tokenizer_returns_any_text_unchanged() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    text = "  def f(x):\n\treturn 'é→🐍'\n\n# two  spaces, , and a stop .\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert len(tokenizer) == AutoConfig.from_pretrained(TINY).vocab_size


def test_held_out_perplexity_is_twenty_times_below_a_random_initialisation(windows: torch.Tensor) -> None:
    torch.manual_seed(0)
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY), dtype=torch.float32)
    trained = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    assert perplexity(random, windows) > 20 * perplexity(trained, windows)


def test_without_any_one_attention_or_mlp_perplexity_is_higher(windows: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    windows = windows[::4]
    whole = perplexity(model, windows)
    for layer in model.model.layers:
        for part in (layer.self_attn.o_proj, layer.mlp.down_proj):
            weight = part.weight.detach().clone()
            part.weight.data.zero_()
            assert perplexity(model, windows) > whole
            part.weight.data.copy_(weight)


def test_the_committed_figures_are_those_of_the_bundled_model() -> None:
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "tiny.json"
    figures = json.loads(path.read_text(encoding="utf-8"))
    model = AutoModelForCausalLM.from_pretrained(TINY)
    assert figures["parameters"] == model.num_parameters()
    assert min(figures["ratio_128"], figures["ratio_256"]) >= 20
    assert f"{figures['trained_128']:.1f} / {figures['trained_256']:.1f}" in (TINY / "README.md").read_text("utf-8")
