"""The smaller model as a folder of transformers: whether it can be written, known early, and how it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from polyprune_core.config.execution import bytes_of
from polyprune_core.errors import ModelError
from polyprune_core.models.describe import describe
from polyprune_core.models.placing import is_in_file
from polyprune_core.models.quiet import quiet
from polyprune_core.models.remote_code import CODE, is_stock
from polyprune_core.models.sources import LoadedModel
from polyprune_core.pruning.build import class_for, compact_config
from polyprune_core.pruning.pruned_model import PrunedModel
from polyprune_core.pruning.space import MaskSpace
from polyprune_core.pruning.types import Scores, Selection, UnitGroup

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


# Bytes; what of a model that is larger than memory is held at a time while it is written.
MOST_IN_A_SHARD = 256_000_000


def check_writable(base: LoadedModel) -> None:
    """Checks that a smaller form of a model can be written: its configuration, and none of its code.

    A model as small as one entry less in its first layer is set up without memory for weights.

    Raises:
        ModelError: it cannot.
    """
    model: Any = base.model
    if not is_stock(model):
        raise ModelError(
            f"{base.name} is a {type(model).__name__}, which is not transformers' own: what its code does would be "
            "lost in a folder of a smaller model. --exporter masks writes what stays without the model."
        )
    layout = describe(model)
    groups = [UnitGroup(axis.kind, axis.layer, axis.size, ((axis.name, 1),)) for axis in layout.axes]
    space = MaskSpace(layout, groups)
    keep = torch.ones(len(space), dtype=torch.bool)
    keep[[part.start for part, group in zip(space.slices(), space.groups, strict=True) if group.layer == 0]] = False
    selection = Selection(keep, int(space.cost[keep].sum()), space.total_cost)
    pruned = PrunedModel(base, space, selection, Scores(keep.float(), "the first entries"))
    try:
        config = compact_config(pruned)
        with torch.device("meta"), quiet():
            made = class_for(config, layout)._from_config(config)
            for module in made.modules():
                made._init_weights(module)  # as reading it from a folder does
    except Exception as error:
        # Not a list of types: what a configuration of any model leads to inside transformers is nowhere stated.
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ModelError(f"{base.name} cannot be built with layers of several widths: {reason}") from error


def write_model(
    pruned: PrunedModel, folder: Path, dtype: torch.dtype, max_shard_size: str, origin: dict[str, Any]
) -> PreTrainedModel:
    """Writes weights, configuration and tokenizer, and the code of layers that differ; returns the model written.

    `origin` is what config.json says of where the model comes from, under `polyprune`.

    Raises:
        ModelError: as `check_writable`, or the dense model's files have changed since they were read.
    """
    check_writable(pruned.base)
    pruned = pruned.stored_as(dtype)
    if any(map(is_in_file, pruned.base.model.parameters())):
        model: Any = _written_by_shard(pruned, folder, dtype, max_shard_size)
    else:
        model = pruned.build()
        if model.dtype != dtype:
            model = model.to(dtype)
        with quiet():
            model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_settings(model, pruned.base.tokenizer, folder, origin)
    written: PreTrainedModel = model
    return written


def _written_by_shard(pruned: PrunedModel, folder: Path, dtype: torch.dtype, max_shard_size: str) -> PreTrainedModel:
    """Writes the weights of a model that may be larger than memory, a shard at a time; returns it without weights."""
    config = compact_config(pruned)
    config.dtype = dtype
    with torch.device("meta"), quiet():
        made: PreTrainedModel = class_for(config, pruned.layout)._from_config(config)
    made.tie_weights()
    tied = {name for name, _ in made.named_parameters(remove_duplicate=False)} - dict(made.named_parameters()).keys()
    wanted = made.state_dict().keys() - tied
    most, shard, size = min(bytes_of(max_shard_size), MOST_IN_A_SHARD), dict[str, Tensor](), 0
    shards: list[list[str]] = []
    total = 0

    def write() -> None:
        shards.append(list(shard))
        save_file(shard, folder / f"{len(shards)}.part", {"format": "pt"})
        shard.clear()

    for name, tensor in pruned.state_dict():
        if name not in wanted:
            continue
        if shard and size + tensor.nbytes > most:
            write()
            size = 0
        shard[name] = tensor.to(dtype)
        size, total = size + tensor.nbytes, total + tensor.nbytes
    write()
    if missing := wanted - {name for names in shards for name in names}:
        raise ModelError(f"{pruned.base.name} cannot be written by shards: {sorted(missing)[0]} is missing.")
    files = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for number, file in enumerate(files, 1):
        (folder / f"{number}.part").rename(folder / file)
    placed = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    return made


def write_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, origin: dict[str, Any]
) -> None:
    """Writes all of a model's folder but the weights: configuration, tokenizer, and the code of layers that differ.

    `origin` is what config.json says of where the model comes from, under `polyprune`.
    """
    config: Any = model.config
    config.polyprune = getattr(config, "polyprune", {}) | origin
    config.architectures = [type(model).__name__]
    with quiet():
        config.save_pretrained(folder)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _forget_how_it_was_loaded(folder / "tokenizer_config.json")
    if hasattr(config, "auto_map"):
        shutil.copyfile(CODE, folder / CODE.name)


def _forget_how_it_was_loaded(path: Path) -> None:
    config = json.loads(path.read_text("utf-8"))
    for key in ("is_local", "local_files_only", "name_or_path"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
