"""GGUF files in llama.cpp itself: every family, every shape, and what neither of its architectures holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from polyprune_core import ConfigError, LoadedModel, ModelError, PrunedModel, load_model
from polyprune_core.models.describe import describe
from polyprune_core.models.quiet import quiet
from polyprune_core.plugins.registry import load_registry
from polyprune_core.runs.verification import ask_runtime
from polyprune_core.testing.checking import world_restored
from polyprune_core.testing.tiny import VOCABULARY, tiny_model, tiny_pruned, tiny_space, tiny_tokenizer, tiny_windows
from polyprune_core.utils.rng import generator
from polyprune_plugins.exporters.gguf import Gguf
from polyprune_plugins.exporters.gguf.quantise import format_of, quantised


@dataclass(frozen=True)
class Case:
    """A model of a family, what is gone of it as a whole, and the architecture that its file is to have."""

    family: str
    architecture: str
    changes: dict[str, Any] = field(default_factory=dict)
    emptied: tuple[str, ...] = ()
    kept: float = 0.6
    biases: bool = False
    units: str = "head+channel"


def rope(kind: str, **settings: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **settings}}


HALF_GONE = ("layers.0.attention", "layers.1.attention", "layers.2.mlp")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
CASES = {
    "llama": Case("llama", "deci"),
    "llama with biases": Case("llama", "deci", {"attention_bias": True, "mlp_bias": True}),
    "llama without the first attention": Case("llama", "deci", emptied=HALF_GONE),
    "llama query heads": Case("llama", "deci", {"num_attention_heads": 12, "head_dim": 4}, units="query-head+channel"),
    "llama without a layer": Case("llama", "deci", emptied=("layers.1.attention", "layers.1.mlp")),
    "llama whose repair added biases": Case("llama", "deci", biases=True),
    "llama, nothing removed": Case("llama", "llama", kept=1.0),
    "llama3 rope": Case("llama", "deci", rope("llama3", **LLAMA3)),
    "linear rope": Case("llama", "deci", rope("linear")),
    "yarn rope": Case("llama", "deci", rope("yarn", original_max_position_embeddings=16)),
    "mistral": Case("mistral", "deci", {"sliding_window": None}),
    "qwen2": Case("qwen2", "deci"),
    "qwen2 whose repair added biases": Case("qwen2", "deci", biases=True),
    "qwen2, nothing removed": Case("qwen2", "qwen2", kept=1.0),
    "qwen3": Case("qwen3", "openelm", {"tie_word_embeddings": True}),
    "qwen3 without the first attention": Case("qwen3", "openelm", {"tie_word_embeddings": True}, HALF_GONE),
    "qwen3, nothing removed": Case("qwen3", "qwen3", kept=1.0),
}


def words() -> PreTrainedTokenizerFast:
    """A tokenizer of words as Llama's first ones were made: characters, merged in order, with a sign for spaces."""
    whole = [f"▁w{number}" for number in range(VOCABULARY - 13)]
    tokens = ["<unk>", "<s>", "</s>", *whole[3:], "▁", "w", *"0123456789", "▁w"]
    merges = [("▁", "w"), *(("▁w", str(number)) for number in range(3, 10))]
    merges += [(f"▁w{number // 10}", str(number % 10)) for number in range(30, len(whole))]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def dense(folder: Path, case: Case, tokenizer: Callable[[], Any] = words) -> LoadedModel:
    with quiet():
        tiny_model(case.family, seed=1, **case.changes).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
    return load_model(str(folder), dtype="float32", device="cpu")


def pruned(base: LoadedModel, case: Case) -> PrunedModel:
    space = load_registry().space(case.units, describe(base.model))
    keep = torch.rand(len(space), generator=generator(0, "gguf")) < case.kept
    for units, group in zip(space.slices(), space.groups, strict=True):
        keep[units.start] = True
        if group.spans[0][0] in case.emptied:
            keep[units] = False
    made = tiny_pruned(base, space, keep)
    biases = {name: torch.linspace(-1, 1, *shape) for name, shape in made.possible_biases().items()}
    return replace(made, updates=biases) if case.biases else made


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_transformers_computes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    case, exporter, windows = CASES[name], Gguf("f32"), tiny_windows()[:2]
    base = dense(tmp_path, case)
    if case.kept < 1:
        exporter.check(base)
    (tmp_path / "out").mkdir()
    model = pruned(base, case)
    report = exporter.export(model, tmp_path / "out")
    assert report.details["architecture"] == case.architecture
    answer = ask_runtime(exporter.runtime(), tmp_path / "out", windows, "w5 w67 w30")
    assert answer["tokens"] == base.tokenizer("w5 w67 w30")["input_ids"]
    with torch.no_grad():
        expected = model.build()(windows).logits.log_softmax(-1)
        back = exporter.load(tmp_path / "out", dtype="float32", device="cpu").model(windows).logits.log_softmax(-1)
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-6)
    assert [len(rows) for rows in answer["log_probs"]] == [11, 11]
    for window, row, answers in zip(windows.tolist(), expected, answer["log_probs"], strict=True):
        for place, (found, likeliest) in enumerate(answers):
            told = {int(token): value for token, value in likeliest.items()} | {window[place + 1]: found}
            assert max(abs(value - float(row[place, token])) for token, value in told.items()) < 5e-5


def test_a_window_that_slides_ends_the_context(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    base = dense(tmp_path, Case("mistral", "deci"))
    (tmp_path / "out").mkdir()
    Gguf("f32").export(pruned(base, Case("mistral", "deci")), tmp_path / "out")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["deci.context_length"].contents() == base.model.config.sliding_window == 6
    assert len(fields["deci.attention.head_count"].contents()) == 3


REFUSED = {
    "another rope": (Case("llama", "", rope("dynamic")), Gguf(), "no GGUF is written for rope_type 'dynamic'"),
    "qwen3, untied": (Case("qwen3", ""), Gguf(), "with tied embeddings only. Use --exporter gguf:shape=uniform"),
    "another activation": (Case("llama", "", {"hidden_act": "gelu"}), Gguf(), "with silu, not gelu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused_before_the_search(name: str, tmp_path: Path) -> None:
    case, exporter, message = REFUSED[name]
    with pytest.raises(ModelError, match=message):
        exporter.check(dense(tmp_path, case))


# Configurations that have no rope, one for each kind of layer, or other names for what llama.cpp is asked about.
@pytest.mark.parametrize("model_type", ["gemma3_text", "gpt2", "opt", "falcon", "mixtral"])
def test_a_family_that_llama_cpp_has_no_form_for_is_refused_by_its_name(model_type: str) -> None:
    with world_restored(), quiet():
        base = LoadedModel("theirs", tiny_model(model_type), words(), "", None)
    with pytest.raises(ModelError, match=f"not for {model_type}. Use huggingface"):
        Gguf().check(base)


def test_a_tokenizer_without_a_form_is_refused_unless_token_ids_are_enough(tmp_path: Path) -> None:
    base = dense(tmp_path, Case("llama", ""), tiny_tokenizer)
    with pytest.raises(ModelError, match=r"could not read text\. --exporter gguf:ids_only=true"):
        Gguf().check(base)
    Gguf(ids_only=True).check(base)


@pytest.mark.parametrize(("family", "holds"), [("llama", True), ("qwen2", True), ("qwen3", False)])
def test_it_says_of_each_family_whether_biases_that_a_repair_adds_have_a_place(tmp_path: Path, family, holds) -> None:
    layout = describe(dense(tmp_path, Case(family, "", {"tie_word_embeddings": True})).model)
    assert Gguf().legal_shapes(layout).added_biases is holds


def test_uniform_shapes_and_blocks_are_chosen_before_the_selection(tmp_path: Path) -> None:
    layout = tiny_space(dense(tmp_path, Case("llama", "")).model).layout
    assert Gguf("q8_0").legal_shapes(layout).multiple_of == {"channel": 32}
    assert Gguf(multiple=8).legal_shapes(layout).multiple_of == {"channel": 8}
    assert Gguf(shape="uniform").legal_shapes(layout).equal_widths
    assert Gguf().legal_shapes(layout).multiple_of == {}


def test_k_quants_are_llama_cpps_own_and_lose_less_than_a_step_of_their_block() -> None:
    pytest.importorskip("xllamacpp")
    gguf = pytest.importorskip("gguf")
    rows = torch.randn(6, 512, generator=generator(0, "rows")).numpy()
    for name, bits in (("Q4_K", 4), ("Q5_K", 5), ("Q6_K", 6)):
        kind = gguf.GGMLQuantizationType[name]
        stored = quantised(rows, kind)
        assert stored.shape == gguf.quants.quant_shape_to_byte_shape(rows.shape, kind)
        back = gguf.quants.dequantize(stored, kind)
        assert abs(back - rows).max() < 2 * abs(rows).max() / (2**bits - 1)


@pytest.mark.parametrize(
    ("name", "shape", "kind", "tied", "wanted"),
    [
        ("blk.0.ffn_down.weight", (8, 256), "q4_k", False, "Q6_K"),  # of eight layers 0, 3, 6 and 7 keep more
        ("blk.1.ffn_down.weight", (8, 256), "q4_k", False, "Q4_K"),
        ("blk.3.attn_v.weight", (8, 256), "q5_k", False, "Q6_K"),
        ("blk.4.attn_v.weight", (8, 256), "q5_k", False, "Q5_K"),
        ("blk.0.attn_q.weight", (8, 256), "q4_k", False, "Q4_K"),
        ("blk.1.attn_q.weight", (8, 96), "q4_k", False, "Q5_0"),
        ("blk.1.attn_q.weight", (8, 96), "q6_k", False, "Q8_0"),
        ("blk.1.attn_q.weight", (8, 33), "q4_k", False, "F16"),
        ("blk.1.attn_q.weight", (8, 33), "q8_0", False, "F16"),
        ("blk.1.attn_norm.weight", (256,), "q4_k", False, "F32"),
        ("token_embd.weight", (8, 256), "q4_k", True, "Q6_K"),
        ("token_embd.weight", (8, 256), "q4_k", False, "Q4_K"),
        ("output.weight", (8, 256), "q4_k", False, "Q6_K"),
    ],
)
def test_a_mixture_keeps_what_llama_cpps_tool_keeps(name, shape, kind, tied, wanted) -> None:
    assert format_of(name, shape, kind, 8, tied).name == wanted


def test_llama_cpp_reads_k_quants_as_they_are_read_back(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    case = Case(
        "llama",
        "deci",
        {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 4},
    )
    base, exporter, windows = dense(tmp_path, case), Gguf("q4_k"), tiny_windows()[:2]
    space = tiny_space(base.model, "channel")
    assert exporter.legal_shapes(space.layout).multiple_of == {"channel": 256}
    keep = torch.cat([torch.arange(768) < 256 * (1 + layer % 2) for layer in range(3)])
    (tmp_path / "out").mkdir()
    report = exporter.export(tiny_pruned(base, space, keep), tmp_path / "out")
    assert "filled up" not in report.details
    answer = ask_runtime(exporter.runtime(), tmp_path / "out", windows, "w5 w67 w30")
    back = exporter.load(tmp_path / "out", dtype="float32", device="cpu").model
    with torch.no_grad():
        expected, unpruned = (
            model(windows).logits[:, :-1].log_softmax(-1).gather(2, windows[:, 1:, None])[..., 0]
            for model in (back, base.model)
        )
    told = torch.tensor([[found for found, _ in rows] for rows in answer["log_probs"]])
    assert (told - expected).abs().max() < 0.3 * (unpruned - expected).abs().max()


def test_a_decision_made_without_the_widths_is_filled_up_and_says_so(tmp_path: Path) -> None:
    case = Case("llama", "deci")
    base = dense(tmp_path, case)
    (tmp_path / "out").mkdir()
    model = pruned(base, case)
    report = Gguf("f32", multiple=4).export(model, tmp_path / "out")
    assert f"{report.parameters - model.parameters:,} zeros" in report.details["filled up"]


def test_k_quants_without_llama_cpp_are_refused_with_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("polyprune_plugins.exporters.gguf.missing", lambda: True)
    with pytest.raises(ConfigError, match=r"pip install 'polyprune\[gguf\]'"):
        Gguf("q4_k").check(dense(tmp_path, Case("llama", "deci")))
