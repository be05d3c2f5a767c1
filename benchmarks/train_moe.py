"""Trains a small mixture of experts on `builtin:pydocs`, to compare what scores experts where a model really routes.

    python benchmarks/train_moe.py --out moe
    polyprune compare --model moe --granularity expert --sparsity 0.25,0.5 --baselines random,frequency,reap

A Qwen3-MoE of 4 layers with 8 experts of which a token sees 2, with the tokenizer of the bundled tiny model. The loss
has the model's own term for the balance of experts. Nothing is trained on the held-out topics.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click
import torch
from train_tiny import LONGEST, perplexity, tokens, train
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from polyprune_core.evaluation.pydocs import calibration_text, docstrings_text, evaluation_text
from polyprune_core.models.catalogue import catalogue


def moe_config(vocabulary: int, experts: int) -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=128,
        moe_intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=16,
        num_experts=experts,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        output_router_logits=True,
        router_aux_loss_coef=0.01,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Model folder.")
@click.option("--epochs", default=7, type=click.IntRange(min=1), help="Passes over the text.")
@click.option("--experts", default=8, type=click.IntRange(min=2), help="Experts of a layer.")
@click.option("--rate", default=4e-3, help="Highest learning rate.")
@click.option("--seed", default=0, help="Seeds initialisation and order.")
def main(out: Path, epochs: int, experts: int, rate: float, seed: int) -> None:
    """Trains the model, writes its folder and prints its figures."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(catalogue()["tiny"].folder)
    streams = [tokens(tokenizer, text) for text in (calibration_text(), docstrings_text())]
    held_out = tokens(tokenizer, evaluation_text())
    model = Qwen3MoeForCausalLM(moe_config(len(tokenizer), experts))
    model.set_experts_implementation("eager")  # the fastest of transformers' on a CPU
    start = time.monotonic()
    seen = train(model, streams, epochs, rate, torch.Generator().manual_seed(seed))
    model.config.output_router_logits = False
    figures = {
        "parameters": model.num_parameters(),
        "tokens_seen": seen,
        "held_out_128": perplexity(model, held_out, 128),
        "seconds": round(time.monotonic() - start),
    }
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    click.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
