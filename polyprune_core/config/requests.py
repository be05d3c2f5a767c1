"""What `evaluate` and `export` are asked to do, checked before anything heavy loads."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from polyprune_core.config.settings import (
    Bos,
    Distinct,
    Dtype,
    EvaluationLengths,
    EvaluationTexts,
    ManyOrOne,
    Place,
    Positive,
    TaskSettings,
    Word,
)


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
