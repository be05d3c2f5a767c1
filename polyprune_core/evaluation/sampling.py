"""Text that a model writes by itself, so that a metric and a repair can look at text without any being at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyprune_core.models.quiet import quiet


@torch.inference_mode()
def sample(
    model: Any,
    start: Tensor,
    texts: int,
    length: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Returns tokens (texts, length) int64 that are drawn one by one from what the model predicts.

    Calibration on such text is by Williams et al. 2025 (arXiv 2410.17170). A text goes on after an end that the model
    sets. Torch's global generator is used, and put back.

    Args:
        model: a causal language model of transformers.
        start: (S,) int64, the tokens that each text goes on from; they are no part of it.
        texts: how many texts are drawn.
        length: the number of tokens of a text.
        temperature: what logits are divided by; 1 draws from the model's own distribution.
        batch_size: how many texts are drawn side by side, which decides with the seed what is drawn.
        seed: what the draws depend on.
        progress: is called after each batch with the number of texts so far.
    """
    written = []
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), quiet():
        torch.manual_seed(seed)
        for first in range(0, texts, batch_size):
            ids = start.repeat(min(batch_size, texts - first), 1).to(model.device)
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=length,
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                eos_token_id=None,
            )
            written.append(found[:, len(start) :].cpu())
            progress(first + len(ids))
    return torch.cat(written)
