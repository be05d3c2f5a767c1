"""The smaller model written from a checkpoint's files a shard at a time: the dense weights are never all in memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyprune_core.errors import ModelError
from polyprune_core.models.checkpoint import NUMBER_FORMATS, WEIGHTS, WEIGHTS_INDEX, weight_files
from polyprune_core.models.placing import is_in_file
from polyprune_core.models.quiet import quiet
from polyprune_core.pruning.build import class_for, compact_config
from polyprune_core.pruning.surgery import Remains

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from polyprune_core.models.sources import LoadedModel
    from polyprune_core.pruning.pruned_model import PrunedModel

KINDS = {name: kind for kind, name in NUMBER_FORMATS.items()}


def is_unread(base: LoadedModel) -> bool:
    """Whether weights of a model are still in their files: none was read, or what is beyond a limit was not."""
    return any(parameter.is_meta or is_in_file(parameter) for parameter in base.model.parameters())


def write_by_shard(pruned: PrunedModel, folder: Path, dtype: torch.dtype, max_shard_size: str) -> PreTrainedModel:
    """Writes the weights of the smaller model as `save_pretrained` would; returns it, on the meta device.

    In memory is one tensor at a time.

    Raises:
        ModelError: the files name weights otherwise than transformers does, as those of experts do.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    config = compact_config(pruned)
    with torch.device("meta"), quiet():
        model: Any = class_for(config, pruned.layout)._from_config(config, dtype=dtype)
        model.tie_weights()
    model.generation_config = copy.deepcopy(pruned.base.model.generation_config)
    own = dict(model.named_parameters())
    sizes = {name: value for name, value in model.state_dict().items() if name in own}
    sizes = dict(sorted(sizes.items(), key=lambda item: _place(item[0])))
    split = split_torch_state_dict_into_shards(
        sizes, filename_pattern=WEIGHTS.replace(".", "{suffix}."), max_shard_size=max_shard_size
    )
    source = _Source(pruned)
    for file, names in split.filename_to_tensors.items():
        _write(folder / file, {name: sizes[name] for name in names}, lambda name: source.kept(name).to(dtype))
    if split.is_sharded:
        told = {"total_parameters": sum(value.numel() for value in own.values()), **split.metadata}
        index = {"metadata": told, "weight_map": split.tensor_to_filename}
        (folder / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    written: PreTrainedModel = model
    return written


def _write(path: Path, sizes: Mapping[str, Tensor], value: Callable[[str], Tensor]) -> None:
    """Writes a safetensors file a tensor at a time: a header in JSON, its length in front, then the numbers by name."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(sizes):
        start, end = end, end + sizes[name].nbytes
        kind = KINDS[str(sizes[name].dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(sizes[name].shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(sizes):
            tensor = value(name)
            if tensor.shape != sizes[name].shape:
                raise ModelError(f"{name} is left {tuple(tensor.shape)}, where {tuple(sizes[name].shape)} is needed.")
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _place(name: str) -> list[tuple[bool, int, str]]:
    """Sorts names as `save_pretrained` does: part by part, numbers by their value."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


class _Source:
    """What stays of each parameter by the smaller model's names; what the dense model lacks is read from its files."""

    def __init__(self, pruned: PrunedModel) -> None:
        from safetensors import safe_open

        self.names, self.updates, self.dtype = pruned.names(), pruned.updates, pruned.base.model.dtype
        self.remains = Remains.of(pruned.base.model, pruned.layout, pruned.axis_keep())
        self.held = {name: value for name, value in pruned.base.model.state_dict().items() if not value.is_meta}
        self.files: dict[str, Path] = {}
        if self.held:
            return
        assert pruned.base.path is not None
        for path in weight_files(pruned.base.path):
            with safe_open(path, "pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)
        unknown = [name for name in self.names.values() if name not in self.files and name not in self.updates]
        if unknown:
            raise ModelError(
                f"the files in {pruned.base.path} hold no {unknown[0]}: they name weights otherwise than transformers "
                "does in memory. Export without --by-shard."
            )

    def kept(self, own: str) -> Tensor:
        """Returns what is left of a parameter."""
        from safetensors import safe_open

        name = self.names[own]
        if name in self.updates:
            return self.updates[name].to("cpu", self.dtype)
        if name in self.held:
            return self.remains.slice(name, self.held[name]).cpu()
        with safe_open(self.files[name], "pt") as file:
            return self.remains.slice(name, file.get_tensor(name))
