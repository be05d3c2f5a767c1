"""An ONNX graph in ONNX Runtime: the same numbers, read at once and token by token, at any length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyprune_core.models.quiet import quiet
from polyprune_core.models.sources import load_model
from polyprune_core.runs.verification import ask_runtime
from polyprune_core.testing.tiny import tiny_base, tiny_model, tiny_pruned, tiny_space, tiny_tokenizer, tiny_windows
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


def test_what_a_model_computes_once_has_the_precision_of_the_graph_and_not_of_the_dense_model(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    with quiet():
        tiny_model("gemma3_text", hidden_size=42).save_pretrained(tmp_path / "base")
        tiny_tokenizer().save_pretrained(tmp_path / "base")
    base = load_model(str(tmp_path / "base"), dtype="bfloat16", device="cpu")
    space = tiny_space(base.model)
    (tmp_path / "out").mkdir()
    Onnx().export(tiny_pruned(base, space, torch.arange(len(space)) % 4 > 0), tmp_path / "out")
    stored = {each.name: each for each in onnx.load(str(tmp_path / "out" / "model.onnx")).graph.initializer}
    scale = onnx.numpy_helper.to_array(stored["constant.model.embed_tokens.embed_scale"])
    assert float(scale) == pytest.approx(base.model.config.hidden_size**0.5, rel=1e-6)
