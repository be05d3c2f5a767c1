"""Where the work of a request is done: it decides no number, so neither results nor the names of cells hold it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from polyprune_core.errors import ConfigError

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
OF_RAY = ("address", "cpus_per_cell", "gpus_per_cell", "memory_per_cell")

Count = Annotated[int, Field(gt=0, le=100_000)]
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Size = Annotated[str, AfterValidator(lambda text: (bytes_of(text), text)[1])]


class Execution(BaseModel):
    """Who runs the cells, how many at a time, and on how much of a machine.

    `workers` None is one, or with Ray as many as there is room for. `mask_workers` are copies of the model that each
    worker spreads the masks of a search over, 0 for none. `threads` compute in each process. `patience`: seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    executor: Annotated[Literal["local", "ray"], Field(exclude=True)] = "local"
    workers: Annotated[Count | None, Field(exclude=True)] = None
    mask_workers: Annotated[int, Field(exclude=True, ge=0, le=100_000)] = 0
    address: Annotated[str, Field(exclude=True, min_length=1)] = "local"
    cpus_per_cell: Annotated[Share, Field(exclude=True)] = 1.0
    gpus_per_cell: Annotated[Share | None, Field(exclude=True)] = None
    memory_per_cell: Annotated[Size | None, Field(exclude=True)] = None
    patience: Annotated[float | None, Field(exclude=True, gt=0)] = None
    threads: Annotated[Count | None, Field(exclude=True)] = None

    @model_validator(mode="after")
    def _of_this_executor(self) -> Execution:
        given = [name for name in OF_RAY if name in self.model_fields_set]
        if given and self.executor != "ray":
            raise ConfigError(
                f"--{given[0].replace('_', '-')} is about --executor ray; give that too, or leave it out."
            )
        return self


def bytes_of(text: str) -> int:
    """Returns the bytes of "8GB", "1.5GiB" and the like, or of a plain number.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]i?B)?\s*", text)
    if not found:
        raise ConfigError(f"{text!r} is no size; give one as 8GB, 7.5GiB or 500MB.")
    return int(float(found[1]) * UNITS.get((found[2] or "").replace("k", "K"), 1))
