"""Trains the bundled tiny model: a byte-level BPE tokenizer and a Llama on `builtin:pydocs` and library docstrings.

    python benchmarks/train_tiny.py

It writes the model folder, with its card, and the figures as JSON. Nothing is trained on the held-out topics of
`builtin:pydocs`. With one thread and the same versions of Python and torch the run repeats exactly.
"""

from __future__ import annotations

import json
import math
import platform
import time
from pathlib import Path

import click
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.hooks import RemovableHandle
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polyprune_core.evaluation.pydocs import calibration_text, docstrings_text, evaluation_text

ROOT = Path(__file__).resolve().parent.parent
END, PAD = "<|endoftext|>", "<|pad|>"
LENGTH, LONGEST, BATCH = 256, 1024, 8


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE tokenizer of `vocabulary` entries; id 0 is end and beginning, id 1 padding."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END, PAD], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        bos_token=END,
        pad_token=PAD,
        model_max_length=LONGEST,
        clean_up_tokenization_spaces=False,
    )


def tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> torch.Tensor:
    """Returns the token ids of `text`, int64 [n]."""
    return torch.tensor(tokenizer.backend_tokenizer.encode(text).ids)


def tiny_config(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=LONGEST,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, ids: torch.Tensor, length: int) -> float:
    """Returns exp of the mean loss, in nats per predicted token, over the non-overlapping windows of `ids` [n]."""
    model.eval()
    windows = ids[: len(ids) // length * length].view(-1, length)
    losses = [float(model(input_ids=b, labels=b).loss) * len(b) for b in windows.split(16)]
    return math.exp(sum(losses) / len(windows))


def epoch_batches(streams: list[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
    """Returns the shuffled batches of one pass over `streams`, cut from a random offset: BATCH * LENGTH tokens each.

    One in eight is [2, LONGEST], the others [BATCH, LENGTH]. A quarter of the short windows begin with the end token,
    so that a prompt may begin with it too.
    """
    cut = []
    for ids in streams:
        start = int(torch.randint(LONGEST, (), generator=generator))
        count = (len(ids) - start) // LONGEST
        cut.append(ids[start : start + count * LONGEST].view(-1, LONGEST))
    blocks = torch.cat(cut)
    blocks = blocks[torch.randperm(len(blocks), generator=generator)]
    long, short = blocks[: len(blocks) // 8], blocks[len(blocks) // 8 :].reshape(-1, LENGTH)
    short = short[torch.randperm(len(short), generator=generator)]
    short[::4, 0] = 0
    batches = [*long.split(BATCH * LENGTH // LONGEST), *short.split(BATCH)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


def add_dropout(model: LlamaForCausalLM, rate: float) -> list[RemovableHandle]:
    """Drops a share `rate` of the embeddings and of what every attention and MLP adds, until the handles are removed.

    Without it the model learns the text by heart, and pruning it then tells little about held-out text.
    """
    layers = model.model.layers
    parts = [model.model.embed_tokens, *(p for x in layers for p in (x.self_attn.o_proj, x.mlp.down_proj))]
    return [p.register_forward_hook(lambda _m, _i, out: torch.nn.functional.dropout(out, rate)) for p in parts]


def train(
    model: LlamaForCausalLM, streams: list[torch.Tensor], epochs: int, rate: float, generator: torch.Generator
) -> int:
    """Trains `model` in place on the `streams` of ids; returns the tokens seen.

    AdamW; the rate warms up over 3 % of the steps and follows a cosine to zero.
    """
    vectors = [p for p in model.parameters() if p.dim() == 1]
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)
    model.train()
    step = seen = 0
    start = time.monotonic()
    for epoch in range(epochs):
        batches = epoch_batches(streams, generator)
        total = 0.0
        for i, batch in enumerate(batches):
            done = (epoch + i / len(batches)) / epochs
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (done + 1e-3) / 0.03) * (0.5 + 0.5 * math.cos(math.pi * done))
            loss = model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            total += float(loss.detach())
            step += 1
            seen += batch.numel()
            if step % 20 == 0:
                rate_now = seen / (time.monotonic() - start)
                click.echo(
                    f"\rstep {step}, {done:.1%}, loss {float(loss.detach()):.2f}, {rate_now:.0f} tokens/s ",
                    nl=False,
                    err=True,
                )
        click.echo(
            f"\repoch {epoch + 1}/{epochs}: training perplexity {math.exp(total / len(batches)):.1f}" + " " * 24,
            err=True,
        )
    return seen


CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---
# polyprune tiny

A Llama of {parameters:,} parameters (6 layers, hidden 128, 8 query heads over 4 KV heads, MLP 344, tied embeddings,
byte-level BPE of {vocabulary} entries) on which pruning can be tried in seconds, without a network or a GPU.

- Made by `benchmarks/train_tiny.py`, seed {seed}: {epochs} epochs, {tokens_seen:,} tokens, dropout 0.1, windows of
  {length} tokens and, in one batch of eight, {longest}.
- Data: help topics (`pydoc_data`) and docstrings of the standard library, CPython {python};
  without the held-out topics, `polyprune_core.evaluation.pydocs.evaluation_text()`.
- Perplexity on the held-out topics, windows of 128 / 256 tokens: {trained_128:.1f} / {trained_256:.1f}; the same
  architecture at random initialisation: {random_128:.0f} / {random_256:.0f}; on the topics it was trained
  on, windows of 256: {training_256:.1f}. Other Python versions differ a little.
- Weights in bfloat16. It knows nothing but the manner of Python documentation and is of no use beyond tests and
  demonstrations.
- Licence Apache-2.0; the training text is documentation under the PSF licence.
"""


@click.command(context_settings={"show_default": True})
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "polyprune_core/models/tiny", help="Model folder."
)
@click.option(
    "--results", type=click.Path(path_type=Path), default=ROOT / "benchmarks/results/tiny.json", help="Figures."
)
@click.option("--vocabulary", default=2048, type=click.IntRange(1024, 2048), help="Entries of the tokenizer.")
@click.option("--epochs", default=7, type=click.IntRange(min=1), help="Passes over the text.")
@click.option("--rate", default=4e-3, help="Highest learning rate.")
@click.option("--seed", default=0, help="Seeds initialisation and order.")
@click.option("--threads", default=1, type=click.IntRange(min=1), help="CPU threads.")
def main(out: Path, results: Path, vocabulary: int, epochs: int, rate: float, seed: int, threads: int) -> None:
    """Trains the bundled tiny model, writes its folder and prints its figures."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    topics, docstrings = calibration_text(), docstrings_text()
    tokenizer = train_tokenizer([topics, docstrings], vocabulary)
    topic_ids, docstring_ids = tokens(tokenizer, topics), tokens(tokenizer, docstrings)
    held_out = tokens(tokenizer, evaluation_text())
    model = LlamaForCausalLM(tiny_config(vocabulary))
    random = {n: perplexity(model, held_out, n) for n in (128, 256)}
    start = time.monotonic()
    generator = torch.Generator().manual_seed(seed)
    dropout = add_dropout(model, 0.1)
    seen = train(model, [topic_ids, docstring_ids], epochs, rate, generator)
    for handle in dropout:
        handle.remove()
    seconds = time.monotonic() - start
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    saved = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    trained = {n: perplexity(saved, held_out, n) for n in (128, 256)}
    figures = {
        "parameters": saved.num_parameters(),
        "vocabulary": vocabulary,
        "random_128": random[128],
        "random_256": random[256],
        "trained_128": trained[128],
        "trained_256": trained[256],
        "ratio_128": random[128] / trained[128],
        "ratio_256": random[256] / trained[256],
        "trained_1024": perplexity(saved, held_out, LONGEST),
        "training_256": perplexity(saved, topic_ids, 256),
        "tokens_seen": seen,
        "training_tokens": len(topic_ids) + len(docstring_ids),
        "held_out_tokens": len(held_out),
        "length": LENGTH,
        "longest": LONGEST,
        "epochs": epochs,
        "seed": seed,
        "seconds": round(seconds),
        "threads": threads,
        "bytes": sum(path.stat().st_size for path in out.iterdir() if path.suffix != ".md"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (out / "README.md").write_text(CARD.format(**figures), encoding="utf-8")
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    click.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
