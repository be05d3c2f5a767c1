"""A GGUF file in llama.cpp, through the server that xllamacpp packs; run by itself, without polyprune."""

from __future__ import annotations

import json
import urllib.request
from importlib.metadata import version
from typing import Any

EVERY = 1_000_000
FORCED = 1e6  # a bias that makes a token the one that is drawn; its probability is told without it


class LlamaCpp:
    """One model, one sequence at a time, with a float32 cache."""

    def __init__(self, folder: str, threads: int) -> None:
        import gguf
        import xllamacpp

        fields = gguf.GGUFReader(f"{folder}/model.gguf").fields
        self.reads_ids_alone = fields["tokenizer.ggml.model"].contents() == "none"  # llama.cpp aborts at text then
        self.version = version("xllamacpp")
        settings = xllamacpp.CommonParams()
        settings.model.path = f"{folder}/model.gguf"
        settings.n_ctx, settings.n_parallel = 2048, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.warmup, settings.verbosity = False, -1
        self.server = xllamacpp.Server(settings)

    def tokenize(self, text: str) -> list[int] | None:
        """Returns the token ids of a text, None where the file has no tokenizer."""
        if self.reads_ids_alone:
            return None
        body = json.dumps({"content": text, "add_special": True, "parse_special": False}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            tokens: list[int] = json.load(answer)["tokens"]
        return tokens

    def log_probs(self, ids: list[int], top: int) -> list[tuple[float, dict[int, float]]]:
        """Asks for one token after each beginning of `ids`, and makes it the one that stands there."""
        return [self._next(ids[:end], ids[end], top) for end in range(1, len(ids))]

    def _next(self, before: list[int], token: int, top: int) -> tuple[float, dict[int, float]]:
        told = self._forced(before, token, top)
        if told is None:  # part of a character, which the server holds back: found among all beside a whole one
            others = (self._forced(before, other, EVERY) for other in range(EVERY))
            likeliest = next(other for other in others if other is not None)[1]
            return likeliest[token], dict(list(likeliest.items())[:top])
        return told

    def _forced(self, before: list[int], token: int, top: int) -> tuple[float, dict[int, float]] | None:
        answer = self._complete(before, 1, n_probs=top, logit_bias=[[token, FORCED]])
        logprobs = answer["choices"][0]["logprobs"]
        if not logprobs:
            return None
        told = logprobs["content"][0]
        if told["id"] != token:
            raise RuntimeError(f"llama.cpp drew token {told['id']} where {token} was forced.")
        return told["logprob"], {other["id"]: other["logprob"] for other in told["top_logprobs"]}

    def generate(self, ids: list[int], new: int) -> tuple[list[int], float, float]:
        """Returns the likeliest tokens after `ids`, with llama.cpp's own times."""
        answer = self._complete(ids, new, n_probs=1, cache_prompt=False, ignore_eos=True)
        tokens = [told["id"] for told in answer["choices"][0]["logprobs"]["content"]]
        times = answer["timings"]
        return tokens, times["prompt_ms"] / 1000, times["predicted_ms"] / 1000

    def _complete(self, ids: list[int], new: int, **settings: Any) -> Any:
        request = {"prompt": ids, "n_predict": new, "temperature": 0.0, "cache_prompt": True, **settings}
        answer = self.server.handle_completions(request)
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp answered {json.dumps(answer)[:500]}")
        return answer


open_model = LlamaCpp
