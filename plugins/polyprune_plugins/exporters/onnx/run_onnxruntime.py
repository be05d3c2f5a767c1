"""A graph in ONNX Runtime, with a cache or without; run by itself, without polyprune."""

from __future__ import annotations

import time
from typing import Any


class OnnxRuntime:
    """One model on the processor."""

    def __init__(self, folder: str, threads: int) -> None:
        import onnxruntime
        from transformers import AutoTokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.version = onnxruntime.__version__
        self.session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options)
        self.past = [value for value in self.session.get_inputs() if value.name != "input_ids"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)

    def tokenize(self, text: str) -> list[int]:
        """Returns the token ids of a text; the tokenizer lies beside the graph."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return ids

    def log_probs(self, ids: list[int], top: int) -> list[tuple[float, dict[int, float]]]:
        """Reads all at once."""
        import numpy

        logits = self._run(ids[:-1], self._nothing())[0][0].astype(numpy.float64)
        largest = logits.max(axis=-1, keepdims=True)
        rows = logits - largest - numpy.log(numpy.exp(logits - largest).sum(axis=-1, keepdims=True))
        found = []
        for row, token in zip(rows, ids[1:], strict=True):
            best = numpy.argsort(-row)[:top].tolist()
            found.append((float(row[token]), {other: float(row[other]) for other in best}))
        return found

    def generate(self, ids: list[int], new: int) -> tuple[list[int], float, float]:
        """Reads `ids`, then writes a token at a time; without a cache everything is read again for each."""
        start = time.perf_counter()
        logits, *past = self._run(ids, self._nothing())
        read = time.perf_counter()
        tokens = [int(logits[0, -1].argmax())]
        while len(tokens) < new:
            given = tokens[-1:] if self.past else [*ids, *tokens]
            logits, *past = self._run(given, past)
            tokens.append(int(logits[0, -1].argmax()))
        return tokens, read - start, time.perf_counter() - read

    def _nothing(self) -> list[Any]:
        import numpy

        return [numpy.zeros((1, value.shape[1], 0, value.shape[3]), numpy.float32) for value in self.past]

    def _run(self, ids: list[int], past: list[Any]) -> Any:
        import numpy

        feed = {value.name: tensor for value, tensor in zip(self.past, past, strict=True)}
        return self.session.run(None, feed | {"input_ids": numpy.array([ids], numpy.int64)})


open_model = OnnxRuntime
