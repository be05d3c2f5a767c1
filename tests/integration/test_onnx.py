"""An ONNX graph in ONNX Runtime: the same numbers, read at once and token by token, at any length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyprune_core.runs.verification import ask_runtime
from polyprune_core.testing.tiny import tiny_base, tiny_pruned, tiny_space, tiny_windows
from polyprune_core.utils.rng import generator
from polyprune_plugins.exporters.onnx import Onnx

pytestmark = pytest.mark.slow


CASES = [("qwen2", Onnx()), ("qwen2", Onnx(cache=False)), ("qwen2", Onnx(type="int8")), ("gemma3_text", Onnx())]


@pytest.mark.parametrize(("family", "exporter"), CASES, ids=repr)
def test_onnx_runtime_computes_what_transformers_computes_of_the_same_weights(
    family: str, exporter: Onnx, tmp_path: Path
) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module)
    base, windows = tiny_base(tmp_path / "base", family), tiny_windows()[:2]
    space = tiny_space(base.model)
    keep = torch.rand(len(space), generator=generator(0, "onnx")) < 0.6
    for units, group in zip(space.slices(), space.groups, strict=True):
        keep[units] &= group.spans[0][0] not in ("layers.0.attention", "layers.2.mlp")
    pruned = tiny_pruned(base, space, keep)
    exporter.check(base)
    (tmp_path / "out").mkdir()
    exporter.export(pruned, tmp_path / "out")
    back, whole = exporter.load(tmp_path / "out", dtype="float32", device="cpu").model, pruned.build()
    for name, value in whole.named_parameters():
        largest = value.abs().amax(dim=-1, keepdim=True) if value.dim() > 1 else value.abs().max()
        assert bool(((back.get_parameter(name) - value).abs() <= (1.001 * exporter.rounding) * largest).all()), name
    with torch.no_grad():
        expected = back(windows).logits.log_softmax(-1)
    answer = ask_runtime(exporter.runtime(), tmp_path / "out", windows, "w5 w6")
    for window, row, answers in zip(windows.tolist(), expected, answer["log_probs"], strict=True):
        for place, (found, likeliest) in enumerate(answers):
            told = {int(token): value for token, value in likeliest.items()} | {window[place + 1]: found}
            assert max(abs(value - float(row[place, token])) for token, value in told.items()) < 1e-5
    ids = windows.flatten()[None]
    for token in answer["generated"][:8]:
        assert token == int(back(ids).logits[0, -1].argmax())
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
