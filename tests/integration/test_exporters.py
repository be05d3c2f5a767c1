"""What exporters write is loaded by others: a fresh process with transformers alone, and polyprune itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from forks import forks, in_a_fork
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from polyprune_core import Policy, PrunedModel, Scores, Selection
from polyprune_core.errors import BudgetError, ModelError
from polyprune_core.models.describe import describe
from polyprune_core.models.sources import LoadedModel, load_model
from polyprune_core.pruning import budget
from polyprune_core.pruning.gating import gated
from polyprune_core.pruning.mask_file import MaskFile
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.surgery import Compactor
from polyprune_core.testing.exporter import modules_of_models_in
from polyprune_core.testing.tiny import tiny_model, tiny_tokenizer, tiny_windows
from polyprune_plugins.exporters.huggingface import HuggingFace
from polyprune_plugins.exporters.masks import Masks
from polyprune_plugins.granularities.attention import Attention
from polyprune_plugins.granularities.channel import Channel
from polyprune_plugins.granularities.head import Head
from polyprune_plugins.granularities.layer import Layer
from polyprune_plugins.granularities.mlp import Mlp

VOCABULARY = 97
SHARED = {"vocab_size": VOCABULARY, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
SHARED |= {"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": None, "max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 40, "tie_word_embeddings": True},
    "mistral": {"hidden_size": 32, "intermediate_size": 48, "sliding_window": 6},
    "qwen2": {
        "hidden_size": 64,
        "intermediate_size": 33,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3": {"hidden_size": 48, "intermediate_size": 40, "head_dim": 10, "tie_word_embeddings": True},
}
PARTS = {"head": Head, "channel": Channel, "layer": Layer, "attention": Attention, "mlp": Mlp}


@dataclass(frozen=True)
class Case:
    """One export: `removed` lists units, or is a fraction to remove at random."""

    family: str
    granularity: str
    removed: tuple[int, ...] | float
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_shard_size: str = "5GB"
    ordinary: bool = False


CASES = {
    "llama heads and channels": Case("llama", "head+channel", 0.4),
    "mistral heads and channels": Case("mistral", "head+channel", 0.4),
    "qwen2 heads and channels": Case("qwen2", "head+channel", 0.4),
    "qwen3 heads and channels": Case("qwen3", "head+channel", 0.4),
    "llama without the first attention": Case("llama", "attention", (0, 2)),
    "mistral without the first attention": Case("mistral", "attention", (0,)),
    "qwen2 without the first attention": Case("qwen2", "attention", (0, 1)),
    "qwen3 without any attention": Case("qwen3", "attention", (0, 1, 2, 3)),
    "mistral without two MLPs": Case("mistral", "mlp", (1, 3)),
    "llama sublayers of all sorts": Case("llama", "attention+mlp", (0, 1, 3, 5, 6)),
    "llama without the first layer": Case("llama", "layer", (0, 2), ordinary=True),
    "qwen2 without a layer": Case("qwen2", "layer", (0,), ordinary=True),
    "llama with a third of the heads gone everywhere": Case("llama", "head", (0, 5, 10, 15)),
    "qwen2 with the same heads gone everywhere": Case("qwen2", "head", (0, 5, 10, 15), ordinary=True),
    "llama in half precision and shards": Case("llama", "head+channel", 0.4, "bfloat16", "20KB"),
}
SMALLER = pytest.mark.parametrize("name", CASES)

FRESH_PROCESS = """
import json, sys, torch
sys.modules["polyprune_core"] = sys.modules["polyprune_plugins"] = None
torch.set_num_threads(1)
results = {}
for name, (DIR, reload) in json.load(open("jobs.json")).items():
    found = {"DIR": DIR}
    try:
        exec(reload.replace(", trust_remote_code=True", ", trust_remote_code=False"), found)
        untrusted = "loaded"
    except ValueError as error:
        untrusted = str(error)
    exec(reload, found)
    model, ids = found["model"], torch.load("ids.pt")
    with torch.no_grad():
        logits, cache, pieces = model(ids).logits, None, []
        for piece in ids.split([5, 1, 8], dim=1):
            output = model(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            pieces.append(output.logits)
    generated = [
        model.generate(ids[:1], do_sample=False, max_new_tokens=12, use_cache=use_cache).tolist()
        for use_cache in (True, False)
    ]
    # A layer of its own widths has a configuration of its own, which asks the model's for all the rest.
    model.set_attn_implementation("eager")
    model.config.output_attentions = "changed"
    settable = [module for module in model.modules() if hasattr(module, "config") and not hasattr(module, "inv_freq")]
    seen = sorted({f"{m.config._attn_implementation} {m.config.output_attentions}" for m in settable})
    text = found["tokenizer"].decode(found["tokenizer"]("w5 w6")["input_ids"])
    results[name] = {
        "logits": logits,
        "in_pieces": torch.cat(pieces, dim=1),
        "generated": generated,
        "untrusted": untrusted,
        "settings": seen,
        "text": text,
        "parameters": model.num_parameters(),
    }
torch.save(results, "results.pt")
"""


@pytest.fixture(autouse=True, scope="module")
def _contained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns a folder with a random model of each family and a tokenizer of its own."""
    root = tmp_path_factory.mktemp("bases")
    words = {f"w{i}": i for i in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    for seed, (family, sizes) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SHARED, **sizes))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, 1.0, 0.2)
        model.save_pretrained(root / family)
        PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="w1", unk_token="w0").save_pretrained(root / family)
    return {family: root / family for family in FAMILIES}


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    """Returns token ids (2, 14), longer than the sliding windows."""
    return torch.randint(2, VOCABULARY, (2, 14), generator=torch.Generator().manual_seed(5))


def pruned(base: LoadedModel, case: Case) -> PrunedModel:
    layout = describe(base.model)
    parts = [PARTS[part]().groups(layout) for part in case.granularity.split("+")]
    space = MaskSpace(layout, [group for groups in parts for group in groups], case.granularity)
    scores = torch.rand(len(space), generator=torch.Generator().manual_seed(7))
    recipe = {"granularity": case.granularity, "scope": "kind", "min_keep": 1, "text": "/somewhere/secret/text.txt"}
    if isinstance(case.removed, float):
        selection = budget.select(scores, space, case.removed, "kind")
        recipe["sparsity"] = case.removed
    else:
        keep = torch.ones(len(space), dtype=torch.bool)
        keep[list(case.removed)] = False
        selection = Selection(keep, int(space.cost[keep].sum()), space.total_cost)
    return PrunedModel(base, space, selection, Scores(scores, "random"), Policy(scores.clamp(0.01, 0.99)), recipe)


@dataclass(frozen=True)
class Exported:
    pruned: PrunedModel
    report: Any
    gated: torch.Tensor
    compacted: torch.Tensor
    fresh: dict[str, Any]


@pytest.fixture(scope="module")
def exports(bases: dict[str, Path], ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Exports every case and reads all of them back in one process of its own."""
    root = tmp_path_factory.mktemp("exports")
    written = {}
    for number, (name, case) in enumerate(CASES.items()):
        base = load_model(str(bases[case.family]), dtype=case.dtype, device="cpu")
        model = pruned(base, case)
        folder = root / f"{number}"
        folder.mkdir()
        report = HuggingFace(case.max_shard_size, case.dtype).export(model, folder)
        with torch.no_grad(), gated(base.model, model.layout, model.axis_keep()):
            reference = base.model(ids).logits
        with torch.no_grad(), Compactor(base.model, model.layout) as compactor, compactor.applied(model.axis_keep()):
            compacted = base.model(ids).logits
        written[name] = Exported(model, report, reference, compacted, {})
    jobs = {name: (str(export.report.path), export.report.reload) for name, export in written.items()}
    (root / "jobs.json").write_text(json.dumps(jobs))
    torch.save(ids, root / "ids.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_HOME"] = str(root / "home")
    subprocess.run([sys.executable, "-c", FRESH_PROCESS], cwd=root, env=environment, check=True, timeout=300)
    results = torch.load(root / "results.pt")
    return {name: replace(export, fresh=results[name]) for name, export in written.items()}


@SMALLER
def test_a_process_without_polyprune_computes_the_same_logits(exports: dict[str, Exported], name: str) -> None:
    export = exports[name]
    rounding = 1e-5 if CASES[name].dtype == "float32" else 0.1
    assert float(export.gated.abs().max()) > 1
    assert float((export.fresh["logits"] - export.gated).abs().max()) <= rounding
    assert float((export.fresh["logits"] - export.compacted).abs().max()) <= rounding


@SMALLER
def test_generation_with_a_cache_equals_generation_without(exports: dict[str, Exported], name: str) -> None:
    with_cache, without = exports[name].fresh["generated"]
    assert len(with_cache[0]) == 14 + 12
    assert with_cache == without


@SMALLER
def test_reading_in_pieces_through_a_cache_equals_reading_at_once(exports: dict[str, Exported], name: str) -> None:
    fresh = exports[name].fresh
    rounding = 1e-5 if CASES[name].dtype == "float32" else 0.03
    largest = float(fresh["logits"].abs().max())
    assert float((fresh["in_pieces"] - fresh["logits"]).abs().max()) <= rounding * largest


@SMALLER
def test_settings_changed_in_the_configuration_reach_every_layer(exports: dict[str, Exported], name: str) -> None:
    assert exports[name].fresh["settings"] == ["eager changed"]
    assert json.loads((exports[name].report.path / "config.json").read_text())["use_cache"] is True


@SMALLER
def test_the_parameters_are_the_dense_models_minus_the_removed_ones(exports: dict[str, Exported], name: str) -> None:
    export = exports[name]
    selection = export.pruned.selection
    expected = export.pruned.layout.total_parameters - (selection.total_cost - selection.kept_cost)
    assert export.report.parameters == expected == export.fresh["parameters"]


@SMALLER
def test_the_report_lists_every_file_with_its_hash(exports: dict[str, Exported], name: str) -> None:
    report = exports[name].report
    on_disk = {path.name: path.read_bytes() for path in report.path.iterdir()}
    assert report.files == {file: hashlib.sha256(content).hexdigest() for file, content in on_disk.items()}
    assert report.bytes == sum(map(len, on_disk.values()))
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= on_disk.keys()


@SMALLER
def test_no_file_holds_a_path_of_this_machine(exports: dict[str, Exported], bases: dict[str, Path], name: str) -> None:
    export = exports[name]
    foreign = (str(bases["llama"].parent), str(export.report.path.parent), str(Path.home()), "/somewhere")
    for path in export.report.path.iterdir():
        content = path.read_bytes()
        assert not [text for text in foreign if text.encode() in content], path.name


@SMALLER
def test_only_a_model_with_code_needs_trust_and_fails_loudly_without(exports: dict[str, Exported], name: str) -> None:
    export, ordinary = exports[name], CASES[name].ordinary
    config = json.loads((export.report.path / "config.json").read_text())
    assert ("auto_map" in config) == (not ordinary) == (export.report.path / "modeling_polyprune.py").is_file()
    assert config["model_type"] == CASES[name].family if ordinary else f"polyprune_{CASES[name].family}"
    if ordinary:
        assert export.fresh["untrusted"] == "loaded"
    else:
        assert "trust_remote_code=True" in export.fresh["untrusted"]


@SMALLER
def test_weights_keep_their_number_format_and_tied_ones_are_one_tensor(exports: dict[str, Exported], name: str) -> None:
    export = exports[name]
    shards = [load_file(path) for path in export.report.path.glob("*.safetensors")]
    tensors = {key: tensor for shard in shards for key, tensor in shard.items()}
    assert (len(shards) > 1) == (CASES[name].max_shard_size != "5GB")
    assert {tensor.dtype for tensor in tensors.values()} == {export.pruned.base.model.dtype}
    assert sum(tensor.numel() for tensor in tensors.values()) == export.report.parameters


def test_the_tokenizer_and_the_card_come_along(exports: dict[str, Exported]) -> None:
    export = exports["llama heads and channels"]
    card = (export.report.path / "README.md").read_text("utf-8")
    assert export.fresh["text"] == "w5 w6"
    assert export.report.reload in card
    assert f"{export.report.parameters:,} of the {export.pruned.layout.total_parameters:,} parameters" in card
    assert "40.00% asked for" in card
    origin = json.loads((export.report.path / "config.json").read_text())["polyprune"]
    assert origin["base"] == {"name": "llama", "sha256": export.pruned.base.sha256, "source": None}
    assert origin["recipe"]["text"] == "text.txt"


def test_a_reloaded_model_is_pruned_and_exported_again(
    exports: dict[str, Exported], ids: torch.Tensor, tmp_path: Path
) -> None:
    first = HuggingFace().load(exports["llama sublayers of all sorts"].report.path, dtype="float32", device="cpu")
    again = pruned(first, Case("llama", "head+channel", 0.3))
    report = HuggingFace().export(again, tmp_path)
    second = HuggingFace().load(tmp_path, dtype="float32", device="cpu")
    with torch.no_grad(), gated(first.model, again.layout, again.axis_keep()):
        expected = first.model(ids).logits
    assert again.layout.family == "llama"
    assert report.parameters == second.model.num_parameters() < first.model.num_parameters()
    torch.testing.assert_close(second.model(ids).logits, expected, rtol=1e-5, atol=1e-5)


@SMALLER
def test_polyprune_loads_it_with_its_own_classes_and_without_trust(
    exports: dict[str, Exported], ids: torch.Tensor, name: str
) -> None:
    export = exports[name]
    loaded = load_model(str(export.report.path), dtype=CASES[name].dtype, device="cpu")
    rounding = 1e-5 if CASES[name].dtype == "float32" else 0.1
    assert type(loaded.model).__module__.partition(".")[0] in ("transformers", "polyprune_core")
    assert float((loaded.model(ids).logits - export.compacted).abs().max()) <= rounding


RUNS = "raise SystemExit('foreign code ran')\n"
OTHER_CODE = {
    "a file of that name": ("modeling_polyprune.py", "modeling_polyprune.{}"),
    "a module that begins with that name": ("modeling_polyprune.lib--m.py", "modeling_polyprune.lib--m.{}"),
    "a folder in the current one": ("../modeling_polyprune.lib/m.py", "modeling_polyprune.lib--m.{}"),
    "a repository of the hub": ("modeling_polyprune.py", "modeling_polyprune.evil/repo--m.{}"),
    "another module": ("evil.py", "evil.{}"),
}


@pytest.mark.parametrize("where", OTHER_CODE)
@pytest.mark.parametrize("trusted", [False, True])
def test_code_in_a_folder_of_ours_is_never_run(
    exports: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, trusted: bool
) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(exports["llama heads and channels"].report.path, folder, symlinks=True)
    file, reference = OTHER_CODE[where]
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(RUNS)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {auto: reference.format(name.split(".")[1]) for auto, name in config["auto_map"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    loaded = load_model(str(folder), dtype="float32", device="cpu", trust_remote_code=trusted)
    assert type(loaded.model).__module__ == "polyprune_core.models.modeling_polyprune"


WITHOUT_TRUST = """
import torch, polyprune_core
from transformers import AutoModelForCausalLM, AutoTokenizer
polyprune_core.register_models()
folder, ids, logits = arguments
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, dtype=torch.float32)
AutoTokenizer.from_pretrained(folder)
torch.save(model(torch.load(ids)).logits, logits)
"""


@forks
def test_transformers_loads_it_without_trust_once_our_classes_are_registered(
    exports: dict[str, Exported], ids: torch.Tensor, tmp_path: Path
) -> None:
    export = exports["llama heads and channels"]
    torch.save(ids, tmp_path / "ids.pt")
    arguments = [export.report.path, tmp_path / "ids.pt", tmp_path / "logits.pt"]
    in_a_fork(lambda: exec(WITHOUT_TRUST, {"arguments": list(map(str, arguments))}))
    assert float((torch.load(tmp_path / "logits.pt") - export.compacted).abs().max()) <= 1e-5


@pytest.fixture(scope="module")
def llama(bases: dict[str, Path]) -> LoadedModel:
    return load_model(str(bases["llama"]), dtype="float32", device="cpu")


@pytest.fixture
def masks(llama: LoadedModel, tmp_path: Path) -> Path:
    folder = tmp_path / "masks"
    folder.mkdir()
    Masks().export(pruned(llama, CASES["llama heads and channels"]), folder)
    return folder


def test_masks_come_back_as_they_were_written(llama: LoadedModel, masks: Path) -> None:
    written, read = pruned(llama, CASES["llama heads and channels"]), MaskFile.read(masks).apply(llama)
    assert read.selection.kept_cost == written.selection.kept_cost
    assert torch.equal(read.selection.keep, written.selection.keep)
    assert torch.equal(read.scores.values, written.scores.values)
    assert torch.equal(read.policy.keep_prob, written.policy.keep_prob)
    assert read.space.groups == written.space.groups
    assert (read.space.name, read.scores.source) == ("head+channel", "random")
    assert read.recipe == written.recipe | {"text": "text.txt"}


def test_masks_load_the_model_that_the_checkpoint_holds(
    exports: dict[str, Exported], masks: Path, ids: torch.Tensor
) -> None:
    loaded = Masks().load(masks, dtype="float32", device="cpu")
    export = exports["llama heads and channels"]
    assert loaded.model.config.use_cache is False
    assert loaded.sha256 != export.pruned.base.sha256
    torch.testing.assert_close(loaded.model(ids).logits, export.fresh["logits"], rtol=1e-6, atol=1e-6)


def test_masks_name_a_model_from_a_folder_relative_to_themselves(bases: dict[str, Path], masks: Path) -> None:
    header = json.loads((masks / "masks.json").read_text())
    assert (masks / header["base"]["folder"]).resolve() == bases["llama"].resolve()
    assert str(bases["llama"].parent) not in (masks / "masks.json").read_text()


def test_masks_at_another_sparsity_equal_a_selection_from_the_same_scores(llama: LoadedModel, masks: Path) -> None:
    direct = pruned(llama, Case("llama", "head+channel", 0.6))
    again = MaskFile.read(masks).apply(llama, sparsity=0.6)
    assert torch.equal(again.selection.keep, direct.selection.keep)
    assert again.recipe["sparsity"] == 0.6
    with pytest.raises(BudgetError, match="above 0 and below 1"):
        MaskFile.read(masks).apply(llama, sparsity=1.5)


def test_masks_refuse_another_model(bases: dict[str, Path], masks: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bases["llama"], other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="weights sha256"):
        MaskFile.read(masks).apply(load_model(str(other), device="cpu"))


def _edit_header(folder: Path, **changes: Any) -> None:
    path = folder / "masks.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _groups(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "masks.json").read_text())["groups"]


def _edit_scores(folder: Path) -> None:
    tensors = load_file(folder / "masks.safetensors")
    tensors["scores"][0] += 1
    save_file(tensors, folder / "masks.safetensors", metadata={"format": "pt"})


DAMAGE = {
    "no masks in": lambda folder: (folder / "masks.json").unlink(),
    "masks.safetensors is missing": lambda folder: (folder / "masks.safetensors").unlink(),
    "cut short": lambda folder: os.truncate(folder / "masks.safetensors", 300),
    "Invalid JSON": lambda folder: os.truncate(folder / "masks.json", 300),
    "is not a mask file": lambda folder: _edit_header(folder, format="another"),
    "recipe: .*sparsity is 'x'": lambda folder: _edit_header(folder, recipe={"sparsity": "x"}),
    "recipe: .*revision is 5": lambda folder: _edit_header(folder, recipe={"revision": 5}),
    "masks.json is not a mask file": lambda folder: (folder / "masks.json").write_text("[" * 100_000),
    "groups: Input should": lambda folder: _edit_header(folder, groups="all"),
    "units, so": lambda folder: _edit_header(folder, groups=_groups(folder)[1:]),
    "is not the file that masks.json beside it was written with": lambda folder: _edit_scores(folder),
    "differ in what is kept": lambda folder: (folder / "masks.json").write_text(
        (folder / "masks.json").read_text().replace('"kept": "', '"kept": "0-', 1)
    ),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_damaged_masks_are_refused_in_one_sentence(masks: Path, message: str) -> None:
    DAMAGE[message](masks)
    with pytest.raises(ModelError, match=message):
        MaskFile.read(masks)


def test_masks_of_before_they_named_their_tensors_still_read(masks: Path) -> None:
    _edit_header(masks, tensors=None)
    _edit_scores(masks)
    assert MaskFile.read(masks).keep.any()


def test_masks_of_other_units_are_refused(llama: LoadedModel, masks: Path) -> None:
    path = masks / "masks.json"
    path.write_text(path.read_text().replace("layers.3.mlp", "layers.9.mlp"))
    with pytest.raises(ModelError, match="do not fit"):
        MaskFile.read(masks).apply(llama)


BEFORE = {"original_max_position_embeddings": 16}
ROPES: dict[str, dict[str, Any]] = {
    "linear": {},
    "dynamic": {},
    "yarn": BEFORE,
    "longrope": BEFORE | {"short_factor": [1.0] * 3, "long_factor": [2.0] * 3},
    "llama3": BEFORE | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}


@pytest.mark.parametrize("kind", ROPES)
def test_layers_that_differ_have_every_rotary_embedding_of_transformers(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **ROPES[kind]}
    tiny_model("llama", rope_parameters=rope).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    made = pruned(load_model(str(tmp_path / "base"), dtype="float32", device="cpu"), CASES["llama heads and channels"])
    (tmp_path / "out").mkdir()
    HuggingFace().check(made.base)
    HuggingFace().export(made, tmp_path / "out")
    with modules_of_models_in(tmp_path / "modules"), torch.no_grad():
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
        found, expected = (model(tiny_windows()).logits for model in (again, made.build()))
    assert torch.equal(found, expected)


def test_what_transformers_saves_again_has_card_licence_and_provenance(
    exports: dict[str, Exported], bases: dict[str, Path], tmp_path: Path
) -> None:
    with_licence = tmp_path / "base"
    shutil.copytree(bases["llama"], with_licence)
    (with_licence / "LICENSE").write_text("do as you like")
    folder = tmp_path / "pruned"
    folder.mkdir()
    base = load_model(str(with_licence), device="cpu")
    HuggingFace().export(pruned(base, CASES["llama heads and channels"]), folder)
    with modules_of_models_in(tmp_path / "modules"):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        model.save_pretrained(tmp_path / "again")
    for name in ("README.md", "LICENSE", "modeling_polyprune.py"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    ours, theirs = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "again"))
    assert ours["polyprune"] == theirs["polyprune"]


def test_a_card_shows_foreign_text_as_text(llama: LoadedModel, tmp_path: Path) -> None:
    foreign = "<img src=x onerror=alert(1)> [a](http://b) | c\n# d"
    made = pruned(replace(llama, name=foreign), CASES["llama heads and channels"])
    made = replace(made, recipe={**made.recipe, foreign: foreign})
    HuggingFace().export(made, tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "<img" not in card
    assert "[a](" not in card
    assert "\n# d" not in card
    assert "&lt;img src=x onerror=alert(1)&gt; \\[a\\](http://b) \\| c # d" in card
