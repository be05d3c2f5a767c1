"""The coordinates of a row: what is pruned how, from where, under which budget, with which seed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.errors import BudgetError

Scope = Literal["kind", "global", "layer"]
Scale = Literal["raw", "zscore", "per-parameter"]
# What may be asked of a metric alone; `auto`: chosen by loss on calibration text that the metric has not seen.
AskedScope = Literal["auto", "kind", "global", "layer"]
AskedScale = Literal["auto", "raw", "zscore", "per-parameter"]
AUTO: Literal["auto"] = "auto"
NO_REPAIR = "none"


class Cell(BaseModel):
    """What tells one row from another; a coordinate that a kind of cell does not have is None.

    `target` is the budget. In JSON it is two columns: `sparsity`, where it is a fraction of the prunable parameters,
    or else `budget`. `shapes` is a `ShapesSpec`: what widths are multiples of, and what they are for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dense", "baseline", "start", "search"]
    granularity: str | None = None
    initializer: str | None = None
    estimator: str | None = None
    target: BudgetSpec | None = None
    repair: str | None = None
    seed: int | None = None
    scope: AskedScope | None = None
    scale: AskedScale | None = None
    shapes: str | None = None

    @property
    def sparsity(self) -> float | None:
        """The fraction of the prunable parameters to remove, where that is what is asked."""
        return self.target.sparsity if self.target else None

    @property
    def budget(self) -> str | None:
        """The budget, where it is not a sparsity."""
        return str(self.target) if self.target and self.sparsity is None else None

    @property
    def asked(self) -> str:
        """The budget as the user gave it."""
        return f"budget {self.budget}" if self.budget else f"sparsity {self.sparsity}"

    @property
    def is_reference(self) -> bool:
        """Whether this is the dense model as it was, which every other row is measured against."""
        return self.kind == "dense" and not self.repaired

    @property
    def repaired(self) -> bool:
        """Whether a repair changes the weights that stay."""
        return self.repair not in (None, NO_REPAIR)

    @property
    def label(self) -> str:
        """What the cell is called while it runs; granularity, scope and scale are left out."""
        name = f"{self.initializer} → {self.estimator}" if self.estimator else self.initializer
        repaired = f" + {self.repair}" if self.repaired else ""
        return f"{name}{repaired}, {self.asked}, seed {self.seed}"

    def without(self, *names: str) -> Cell:
        """Returns the cell with these coordinates None: what it shares with others."""
        return self.model_copy(update=dict.fromkeys(names))

    @model_validator(mode="before")
    @classmethod
    def _one_target(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "target" in values:
            return values
        rest = {name: value for name, value in values.items() if name not in ("sparsity", "budget")}
        sparsity, budget = values.get("sparsity"), values.get("budget")
        if budget is not None:
            return rest | {"target": BudgetSpec.parse(str(budget))}
        if isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool):
            return rest | {"target": BudgetSpec.of_sparsity(sparsity)}
        return rest

    @model_serializer(mode="wrap")
    def _two_columns(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        columns: dict[str, Any] = {}
        for name, value in handler(self).items():
            columns |= {"sparsity": self.sparsity, "budget": self.budget} if name == "target" else {name: value}
        return columns


class Dense(Cell):
    """The model that nothing is removed from; with a `repair` that trains, what that alone makes of it."""

    kind: Literal["dense"] = "dense"

    @property
    def label(self) -> str:
        """What the cell is called while it runs."""
        return f"dense model + {self.repair}, seed {self.seed}" if self.repaired else "dense model"


class Pruned(Cell):
    """What every cell that removes something has."""

    granularity: str
    initializer: str
    target: BudgetSpec
    repair: str = NO_REPAIR
    seed: int = 0
    scope: AskedScope = "kind"


class Metric(Pruned):
    """A metric alone, its scores compared across layers by `scale`."""

    kind: Literal["baseline"] = "baseline"
    scale: AskedScale = "zscore"

    @property
    def open(self) -> bool:
        """Whether its pooling is chosen."""
        return AUTO in (self.scope, self.scale)


class Start(Pruned):
    """The policy that a search starts from, with nothing learned."""

    kind: Literal["start"] = "start"
    scope: Scope = "kind"


class Search(Pruned):
    """A policy that `estimator` has learned from `initializer`'s start."""

    kind: Literal["search"] = "search"
    estimator: str
    scope: Scope = "kind"

    def start(self) -> Start:
        """Returns the cell of the search's own start."""
        return Start(**{name: getattr(self, name) for name in Pruned.model_fields if name not in ("kind", "estimator")})


AnyCell = Dense | Metric | Start | Search
COORDINATES = tuple(
    column for name in Cell.model_fields for column in (("sparsity", "budget") if name == "target" else (name,))
)
_CELL: TypeAdapter[AnyCell] = TypeAdapter(Annotated[AnyCell, Field(discriminator="kind")])


def cell_from_json(record: dict[str, Any]) -> AnyCell:
    """Reads a cell from its columns; what a kind of cell does not have may be null or left out.

    Raises:
        ValueError: it does not say what was pruned how.
    """
    given = {name: value for name, value in record.items() if name in (*COORDINATES, "target") and value is not None}
    try:
        return _CELL.validate_python(given)
    except (ValidationError, BudgetError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": ("budget",), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"] if part not in ("dense", "baseline", "start", "search"))
        raise ValueError(f"it does not say what was pruned how ({where or 'kind'}: {first['msg']})") from error
