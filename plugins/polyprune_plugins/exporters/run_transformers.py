"""A folder in transformers, computed in float32; run by itself, without polyprune."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path


class Transformers:
    """One model on the processor. Code is run where the folder brings some along."""

    def __init__(self, folder: str, threads: int) -> None:
        os.environ |= {"HF_MODULES_CACHE": tempfile.mkdtemp(dir="."), "HF_HUB_OFFLINE": "1"}
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(threads)
        self.version = transformers.__version__
        trusted = "auto_map" in json.loads((Path(folder) / "config.json").read_text("utf-8"))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=trusted)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)

    def tokenize(self, text: str) -> list[int]:
        """Returns the token ids of a text."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def log_probs(self, ids: list[int], top: int) -> list[tuple[float, dict[int, float]]]:
        """Reads all at once."""
        import torch

        rows = self.model(torch.tensor([ids[:-1]]), use_cache=False).logits[0].float().log_softmax(-1)
        found = []
        for row, token in zip(rows, ids[1:], strict=True):
            values, tokens = row.topk(min(top, len(row)))
            found.append((float(row[token]), dict(zip(tokens.tolist(), values.tolist(), strict=True))))
        return found

    def generate(self, ids: list[int], new: int) -> tuple[list[int], float, float]:
        """Reads `ids`, then writes a token at a time with a cache."""
        import torch

        start = time.perf_counter()
        output = self.model(torch.tensor([ids]), use_cache=True)
        read = time.perf_counter()
        tokens = [int(output.logits[0, -1].argmax())]
        while len(tokens) < new:
            output = self.model(torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values, use_cache=True)
            tokens.append(int(output.logits[0, -1].argmax()))
        return tokens, read - start, time.perf_counter() - read


open_model = Transformers
