"""What `evaluate`, `export`, `recover` and `sample` are asked to do, checked before anything heavy loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from polyprune_core.config.settings import (
    Bos,
    Comparison,
    Distinct,
    Dtype,
    EvaluationLengths,
    EvaluationTexts,
    ManyOrOne,
    Place,
    Positive,
    Seed,
    Spec,
    TaskSettings,
    Word,
)
from polyprune_core.errors import ConfigError
from polyprune_core.utils.files import user_path


class EvaluateConfig(TaskSettings):
    """What `evaluate` is asked to find out about one model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    target: str
    model: Word | None = None
    reference: Word | None = None
    revision: Word | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "auto"
    device: str = "auto"
    evaluation: EvaluationTexts = ("builtin:pydocs",)
    text_column: str | None = None
    bos: Bos = "auto"
    eval_seq_len: EvaluationLengths = (128,)
    limit: Positive | None = None
    batch_size: Positive = 8
    generate: Annotated[tuple[str, ...], ManyOrOne] = ()
    new_tokens: Annotated[int, Field(gt=0, le=2**24)] = 32
    latency: bool = False
    latency_batch_sizes: Annotated[tuple[Positive, ...], Field(min_length=1), Distinct, ManyOrOne] = (1, 8)
    prompt_tokens: Annotated[int, Field(ge=8, le=2**24)] = 128
    turns: Annotated[int, Field(ge=2)] = 5


class Export(BaseModel):
    """A decision to write out: `source` is a folder of masks, a results store or a cell's file in it."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    source: Place
    exporter: str = "huggingface"
    cell: Word | None = None
    model: Word | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "auto"
    device: str = "auto"
    verify: bool = False
    by_shard: bool = False

    @model_validator(mode="after")
    def _not_both(self) -> Export:
        if self.by_shard and self.verify:
            raise ConfigError("--verify has both models in memory, which --by-shard is there to avoid; leave one out.")
        return self


class Recover(BaseModel):
    """A pruned model to train further: `source` is a folder of masks, a store, a cell's file, or a model's folder.

    `repair` is what trains. `tokens` is how many tokens it trains on; None stands for the repair's own default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    source: Word
    cell: Word | None = None
    model: Word | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "auto"
    device: str = "auto"
    repair: Spec = "recover"
    tokens: Positive | None = None
    seed: Seed = 0
    calibration: str = "builtin:mix"
    evaluation: EvaluationTexts = ("builtin:pydocs", "builtin:prose")
    text_column: str | None = None
    bos: Bos = "auto"
    seq_len: Annotated[int, Field(ge=2)] = 128
    eval_seq_len: EvaluationLengths = (128,)
    limit: Positive | None = None
    exporter: str = "huggingface"
    verify: bool = False

    @model_validator(mode="after")
    def _tokens_once(self) -> Recover:
        if self.tokens is not None and ":tokens=" in self.repair:
            raise ConfigError(
                f"--tokens {self.tokens} and --repair {self.repair} both say how many tokens to train on; give "
                "one of them."
            )
        return self

    @property
    def place(self) -> Path:
        """Where the source is, if it is on this machine."""
        return user_path(self.source)

    @property
    def trainer(self) -> str:
        """The repair that trains, with the number of tokens."""
        return self.repair if self.tokens is None else f"{self.repair}:tokens={self.tokens}"

    def as_comparison(self, model: str) -> Comparison:
        """Returns what a harness of one of the two models is asked for."""
        names = ("trust_remote_code", "dtype", "device", "calibration", "evaluation", "text_column", "bos", "seq_len")
        shared: dict[str, Any] = {name: getattr(self, name) for name in (*names, "eval_seq_len", "limit")}
        if self.tokens is not None:
            shared["repair_samples"] = -(-self.tokens // self.seq_len)
        return Comparison(model=model, repair=(self.trainer,), seeds=(self.seed,), **shared)


class Sample(BaseModel):
    """Text that `model` is to write: `tokens` tokens in texts of `length`, each of which goes on from `start`.

    `start` None stands for the token that begins a text for the model's tokenizer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: Word = "smollm2-135m"
    revision: Word | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "auto"
    device: str = "auto"
    tokens: Annotated[int, Field(gt=0, le=2**30)] = 65_536
    length: Annotated[int, Field(gt=0, le=2**24)] = 256
    start: Word | None = None
    temperature: Annotated[float, Field(gt=0, le=100)] = 1.0
    seed: Seed = 0
    batch_size: Positive = 64
