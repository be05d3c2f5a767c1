"""`polyprune export --by-shard`: the bytes that the whole model in memory gives, in the memory of two shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from forks import forks, in_a_fork

from polyprune_core import ConfigError, load_model
from polyprune_core.config.requests import Export
from polyprune_core.models.quiet import quiet
from polyprune_core.plugins.registry import load_registry
from polyprune_core.pruning.mask_file import write_masks
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.runs.export import export
from polyprune_core.testing.tiny import tiny_model, tiny_pruned, tiny_space, tiny_tokenizer
from polyprune_core.utils.memory import PeakMemory, give_back_freed
from polyprune_core.utils.progress import Reporter
from polyprune_core.utils.rng import generator

SHARD = 24_000_000  # bytes, the largest that is read or written
EXPORTER = "huggingface:max_shard_size=24MB"


def masks(folder: Path, family: str = "llama", repaired: bool = False, **changes: object) -> PrunedModel:
    """Writes a model in shards and masks of it, one layer without attention and one gone as a whole."""
    with quiet():
        tiny_model(family, seed=1, **changes).save_pretrained(folder / "base", max_shard_size=SHARD)
        tiny_tokenizer().save_pretrained(folder / "base")
    base = load_model(str(folder / "base"), device="cpu")
    space = tiny_space(base.model)
    keep = torch.rand(len(space), generator=generator(0, "shards")) < 0.6
    for units, group in zip(space.slices(), space.groups, strict=True):
        keep[units.start] = True
        if group.layer == 1 or (group.layer == 2 and group.kind == "head"):
            keep[units] = False
    pruned = tiny_pruned(base, space, keep)
    if repaired:
        shapes = pruned.possible_biases() | {"model.norm.weight": base.model.model.norm.weight.shape}
        pruned = replace(pruned, updates={name: torch.linspace(-1, 1, *shape) for name, shape in shapes.items()})
    (folder / "masks").mkdir()
    write_masks(pruned, folder / "masks")
    return pruned


def write(folder: Path, exporter: str, by_shard: bool) -> Path:
    output = folder / f"{exporter.partition(':')[0]}-{by_shard}"
    asked = Export(source=folder / "masks", exporter=exporter, by_shard=by_shard)
    export(asked, load_registry(), output, False, Reporter())
    return output


def written(folder: Path, exporter: str, by_shard: bool) -> dict[str, bytes]:
    output = write(folder, exporter, by_shard)
    found = {path.name: path.read_bytes() for path in output.iterdir()}
    record = json.loads(found.pop("polyprune.json"))
    record["report"].pop("path")
    return found | {"record": json.dumps(record).encode()}


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False, "dtype": torch.bfloat16}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("llama, repaired", {}),
    ],
)
@pytest.mark.parametrize("exporter", ["huggingface:max_shard_size=20KB", "vllm:dtype=float16"])
def test_the_bytes_are_those_that_the_model_in_memory_gives(family, changes, exporter, tmp_path) -> None:
    name, _, repaired = family.partition(", ")
    masks(tmp_path, name, bool(repaired), **changes)
    whole, slices = (written(tmp_path, exporter, by_shard) for by_shard in (False, True))
    assert whole.keys() == slices.keys()
    assert [file for file in whole if whole[file] != slices[file]] == []
    assert ("model.safetensors.index.json" in whole) == ("max_shard_size" in exporter)


@forks
def test_it_never_has_more_than_two_shards_in_memory(tmp_path) -> None:
    sizes = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 4096}
    for name, changes in {"small": {}, "big": {**sizes, "num_hidden_layers": 8}}.items():
        (tmp_path / name).mkdir()
        masks(tmp_path / name, **changes)
    total = sum(path.stat().st_size for path in (tmp_path / "big" / "base").glob("*.safetensors"))
    assert total > 8 * SHARD

    def megabytes(by_shard: bool) -> float:
        write(tmp_path / "small", EXPORTER, by_shard)  # whatever is imported and set up is there now
        peak = PeakMemory(torch.device("cpu"), 0)
        peak.restart()
        write(tmp_path / "big", EXPORTER, by_shard)
        return peak.megabytes()

    def work() -> None:
        give_back_freed()
        assert megabytes(by_shard=True) < 2 * SHARD / 1e6
        assert megabytes(by_shard=False) > 4 * SHARD / 1e6

    in_a_fork(work)


def test_what_needs_all_weights_is_refused(tmp_path) -> None:
    masks(tmp_path)
    for exporter in ("gguf", "masked", "huggingface:pad=widest"):
        asked = Export(source=tmp_path / "masks", exporter=exporter, by_shard=True)
        with pytest.raises(ConfigError, match="all weights in memory; leave --by-shard out"):
            export(asked, load_registry(), tmp_path / "out", False, Reporter())
        assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="leave one out"):
        Export(source=tmp_path / "masks", by_shard=True, verify=True)
