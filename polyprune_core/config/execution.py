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
Limits = Annotated[str, AfterValidator(lambda text: (limits_of(text), text)[1])]
Size = Annotated[str, AfterValidator(lambda text: (bytes_of(text), text)[1])]


class Machine(BaseModel):
    """On how much of which machines the work is done.

    `mask_workers` are copies of the model that the masks of a search are spread over, 0 for none. `threads` compute in
    each process. `device_map` auto: layers lie on all GPUs, then in memory, as accelerate places them; `max_memory`:
    what weights may take on each, as cpu=8GB,cuda:0=20GB; those that no memory is left for stay in their files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    executor: Annotated[Literal["local", "ray"], Field(exclude=True)] = "local"
    mask_workers: Annotated[int, Field(exclude=True, ge=0, le=100_000)] = 0
    threads: Annotated[Count | None, Field(exclude=True)] = None
    address: Annotated[str, Field(exclude=True, min_length=1)] = "local"
    cpus_per_cell: Annotated[Share, Field(exclude=True)] = 1.0
    gpus_per_cell: Annotated[Share | None, Field(exclude=True)] = None
    memory_per_cell: Annotated[Size | None, Field(exclude=True)] = None
    device_map: Annotated[Literal["none", "auto"], Field(exclude=True)] = "none"
    max_memory: Annotated[Limits | None, Field(exclude=True)] = None

    @property
    def memory_limits(self) -> dict[str, int]:
        """Bytes that weights may take on each device that `max_memory` names."""
        return limits_of(self.max_memory or "")

    @model_validator(mode="after")
    def _of_this_executor(self) -> Machine:
        given = [name for name in OF_RAY if name in self.model_fields_set]
        if given and self.executor != "ray":
            name = given[0].replace("_", "-")
            raise ConfigError(f"--{name} is about --executor ray; give that too, or leave it out.")
        gpus = [name for name in self.memory_limits if name != "cpu"]
        if gpus and self.device_map == "none":
            raise ConfigError(f"--max-memory {gpus[0]} is about --device-map auto; give that too, or cpu alone.")
        return self


class Execution(Machine):
    """Who runs the cells of a grid, and how many at a time.

    `workers` None is one, or with Ray as many as there is room for. `patience`: seconds.
    """

    workers: Annotated[Count | None, Field(exclude=True)] = None
    patience: Annotated[float | None, Field(exclude=True, gt=0)] = None


def limits_of(text: str) -> dict[str, int]:
    """Returns the bytes by device of "cpu=8GB,cuda:0=20GB".

    Raises:
        ConfigError: it cannot be read so.
    """
    found: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        device, _, size = part.partition("=")
        if not re.fullmatch(r"cpu|cuda:\d+", device) or not size:
            raise ConfigError(f"--max-memory {part!r} cannot be used: give DEVICE=SIZE, as cpu=8GB or cuda:0=20GB.")
        found[device] = bytes_of(size)
    return found


def bytes_of(text: str) -> int:
    """Returns the bytes of "8GB", "1.5GiB" and the like, or of a plain number.

    Raises:
        ConfigError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]i?B)?\s*", text)
    if not found:
        raise ConfigError(f"{text!r} is no size; give one as 8GB, 7.5GiB or 500MB.")
    return int(float(found[1]) * UNITS.get((found[2] or "").replace("k", "K"), 1))
