"""Has a model write text, and keeps it as a file that `--calibration` takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyprune_core.config.requests import Sample
from polyprune_core.errors import ConfigError
from polyprune_core.evaluation.sampling import sample
from polyprune_core.evaluation.text import Text
from polyprune_core.evaluation.windows import Cutter
from polyprune_core.models.sources import LoadedModel
from polyprune_core.runs.model_sources import load_asked
from polyprune_core.utils.files import write_atomically
from polyprune_core.utils.progress import Reporter


@dataclass(frozen=True)
class Sampled:
    """A file of text that a model wrote.

    Attributes:
        path: the file.
        sha256: of its content, as results name a text.
        model: the name of the model.
        weights: the sha256 of the model's weights.
        texts: how many texts it holds.
        forward_tokens: how many tokens went through the model.
        start: what each text goes on from.
    """

    path: Path
    sha256: str
    model: str
    weights: str
    texts: int
    forward_tokens: int
    start: str

    def to_json(self) -> dict[str, Any]:
        """Returns what `--format json` prints."""
        return asdict(self) | {"path": str(self.path)}

    def lines(self) -> list[str]:
        """Returns what is told of it on a terminal."""
        return [
            f"{self.path}: {self.texts} texts that {self.model} (weights sha256 {self.weights[:8]}…) wrote after "
            f"{self.start!r}, {self.forward_tokens:,} forward tokens",
            f"give --calibration {self.path}, or builtin:mix+{self.path}; tables do not count these tokens",
        ]


def write_sample(request: Sample, output: Path, overwrite: bool, reporter: Reporter) -> Sampled:
    """Writes the texts, with an empty line after each.

    Raises:
        PolypruneError: the model cannot be had, texts are longer than it has positions, it has no token that begins a
            text, or the file is there already.
    """
    if output.is_dir():
        raise ConfigError(f"{output} is a folder; give a file as --output.")
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} is there already; give another --output, or --overwrite.")
    if not output.parent.is_dir():
        raise ConfigError(f"there is no folder {output.parent}; give --output a place in one that is there.")
    loaded = load_asked(request.model, request, reporter, request.revision)
    start = _start(loaded, request)
    texts = -(-request.tokens // request.length)
    with reporter.task("writing text", texts) as task:
        ids = sample(
            *(loaded.model, start, texts, request.length),
            **(request.model_dump(include={"temperature", "batch_size", "seed"})),
            progress=task.update,
        )
    content = "".join(f"{loaded.tokenizer.decode(text, skip_special_tokens=True).strip()}\n\n" for text in ids)
    write_atomically(output, content)
    return Sampled(
        path=output,
        sha256=Text(output.name, content).sha256,
        model=loaded.name,
        weights=loaded.sha256,
        texts=texts,
        forward_tokens=texts * (len(start) + request.length - 1),
        start=loaded.tokenizer.decode(start),
    )


def _start(loaded: LoadedModel, request: Sample) -> Tensor:
    """Returns (S,) int64: the tokens that every text goes on from."""
    tokenizer = loaded.tokenizer
    if request.start is not None:
        ids = tokenizer(request.start, add_special_tokens=False)["input_ids"]
    else:
        ids = [tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id]
    if not ids or ids[0] is None:
        raise ConfigError(
            f"nothing begins a text for the tokenizer of {loaded.name}; give --start some text to go on from."
        )
    start = torch.tensor(ids)
    Cutter.of(tokenizer, loaded.model, "never").check(start)
    positions = getattr(loaded.model.config, "max_position_embeddings", None)
    if positions and len(start) + request.length > positions:
        raise ConfigError(
            f"--length {request.length}: {loaded.name} has no more than {positions} positions; give a shorter one."
        )
    return start
