"""What a comparison or a pruning is asked to do, checked before anything heavy loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    model_validator,
)

from polyprune_core.config.budget_spec import BudgetSpec
from polyprune_core.config.cell import AUTO, NO_REPAIR, AskedScale, AskedScope, Scope
from polyprune_core.config.execution import Execution, Machine
from polyprune_core.config.held_back import held_back_count, looks
from polyprune_core.config.presets import PRESETS, Preset
from polyprune_core.config.protect import Protect
from polyprune_core.config.shapes_spec import ShapesSpec, normal_multiples
from polyprune_core.errors import BudgetError, ConfigError
from polyprune_core.utils.files import user_path

Spec = Annotated[str, AfterValidator(lambda spec: _normal(spec))]
Word = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(gt=0, lt=2**53)]
Seed = Annotated[int, Field(ge=-(2**53), lt=2**53)]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Bos = Literal["auto", "always", "never"]
Distinct = AfterValidator(lambda values: tuple(dict.fromkeys(values)))
# The empty list, as which the command line reads "none", is the plugin of that name.
OrNone = AfterValidator(lambda specs: specs or (NO_REPAIR,))
Place = Annotated[Path, BeforeValidator(lambda value: user_path(value) if isinstance(value, str) else value)]
ManyOrOne = BeforeValidator(lambda value: _many(value))
# A list of one is written as the one, so that cells keep the identity and records the look of before there were lists.
OneAsIs = PlainSerializer(lambda values: values[0] if len(values) == 1 else list(values))
# What a model is evaluated on: every text at every length; the first of both is the headline.
EvaluationTexts = Annotated[tuple[Word, ...], Field(min_length=1), Distinct, OneAsIs, ManyOrOne]
EvaluationLengths = Annotated[
    tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1), Distinct, OneAsIs, ManyOrOne
]


class Settings(BaseModel):
    """What every row of a table shares: one model, one text to calibrate on, the same evaluations."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    preset: Preset = "default"
    model: str = "smollm2-135m"
    revision: Word | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "auto"
    device: str = "auto"
    calibration: str = AUTO
    evaluation: EvaluationTexts = ("builtin:pydocs",)
    text_column: str | None = None
    bos: Bos = "auto"
    calibration_samples: Positive = 64
    repair_samples: Positive = 512
    seq_len: Annotated[int, Field(ge=2)] = 128
    eval_seq_len: EvaluationLengths = (128,)
    limit: Positive | None = None
    batch_size: Positive = 2
    steps: Positive = 50
    masks_per_step: Positive = 8
    forward_tokens: Positive | None = None
    objective: Literal["cross-entropy", "kl"] = "cross-entropy"
    policy: Spec = "gaussian"
    # Those of the policy, unless told.
    optimizer: Literal["sgd", "adam"] | None = None
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    precondition: Literal["none", "half-natural", "natural"] = "half-natural"
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.0
    averaging: Annotated[float, Field(ge=0, le=1)] = 0.0
    early_stopping: Positive | None = None
    min_keep: Annotated[int, Field(ge=0, lt=2**53)] = 1
    protect: Annotated[str, AfterValidator(lambda text: str(Protect.parse(text)) or None)] | None = None

    @property
    def protected(self) -> Protect:
        """The layers that are left whole."""
        return Protect.parse(self.protect)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = dict(PRESETS).get(values.get("preset", "default"), {})
        return {name: value for name, value in preset.items() if name in cls.model_fields} | values

    @property
    def search_steps(self) -> int:
        """Steps of a search that runs its masks and nothing else."""
        return self.steps_for(0)

    @property
    def held_back(self) -> int:
        """The windows of calibration text that are held back from metrics, and from searches that stop by them."""
        return held_back_count(self.calibration_samples)

    @property
    def dense_passes(self) -> int:
        """Passes of every step through the dense model."""
        return int(self.objective == "kl")

    def steps_for(self, extra_passes: int) -> int:
        """Returns the steps of a search: what `forward_tokens` pays for where it is given, else `steps`.

        `extra_passes`: forward passes of a step beside its masks.

        Raises:
            ConfigError: the tokens do not pay for one step.
        """
        if self.forward_tokens is None:
            return self.steps
        passes = self.masks_per_step + extra_passes + self.dense_passes
        per_step = passes * self.batch_size * self.seq_len
        if self.forward_tokens < per_step + self.look_tokens(1):
            more = f", and {self.look_tokens(1)} on text held back" if self.early_stopping else ""
            raise ConfigError(
                f"forward-tokens {self.forward_tokens} is less than one step of {per_step} tokens "
                f"({passes} forward passes x {self.batch_size} sequences x {self.seq_len}){more}; give more."
            )
        steps = self.forward_tokens // per_step
        while steps * per_step + self.look_tokens(steps) > self.forward_tokens:
            steps -= 1
        return steps

    def look_tokens(self, steps: int) -> int:
        """Returns what a search of that many steps spends on text held back, where it stops by that."""
        tokens = self.held_back * self.seq_len
        return looks(steps) * (1 + self.dense_passes) * tokens if self.early_stopping else 0


Budget = Annotated[str, AfterValidator(lambda text: str(BudgetSpec.parse(text)))]
Multiples = Annotated[str, AfterValidator(normal_multiples)]


class TaskSettings(BaseModel):
    """Zero-shot tasks; `tasks_limit` is a number of items of each."""

    tasks: Annotated[tuple[str, ...], Distinct, ManyOrOne] = ()
    include_path: Place | None = None
    num_fewshot: Annotated[int, Field(ge=0, lt=2**53)] | None = None
    tasks_limit: Positive | None = None

    @model_validator(mode="after")
    def _for_something(self) -> TaskSettings:
        alone = [name for name in TaskSettings.model_fields if name != "tasks" and getattr(self, name) is not None]
        if alone and not self.tasks:
            raise ConfigError(
                f"--{alone[0].replace('_', '-')} is about --tasks, of which there are none; give --tasks."
            )
        return self


Loggers = Annotated[
    tuple[Literal["tensorboard", "wandb", "trackio"], ...],
    Distinct,
    ManyOrOne,
    BeforeValidator(lambda value: () if value == "none" else value),
]


class Comparison(Settings, TaskSettings, Execution):
    """A grid: every combination of these lists is one or more rows."""

    granularity: Annotated[tuple[Spec, ...], Field(min_length=1), Distinct, ManyOrOne] = ("head+channel",)
    initializers: Annotated[tuple[Spec, ...], Distinct, ManyOrOne] = ("thinet",)
    baselines: Annotated[tuple[Spec, ...], Distinct, ManyOrOne] = ("random", "magnitude", "wanda", "thinet")
    estimators: Annotated[tuple[Spec, ...], Distinct, ManyOrOne] = ()
    sparsity: Annotated[tuple[float, ...], Distinct, ManyOrOne] = (0.2,)
    budget: Annotated[tuple[Budget, ...], Distinct, ManyOrOne] = ()
    repair: Annotated[tuple[Spec, ...], Distinct, OrNone, ManyOrOne] = (NO_REPAIR,)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), Distinct, ManyOrOne] = (0,)
    scope: Annotated[tuple[AskedScope, ...], Distinct, ManyOrOne] = ()
    scale: Annotated[tuple[AskedScale, ...], Field(min_length=1), Distinct, ManyOrOne] = (AUTO,)
    multiple_of: Annotated[tuple[Multiples, ...], Distinct, ManyOrOne] = ()
    target: Annotated[tuple[Spec, ...], Distinct, ManyOrOne] = ()
    # Decides no number: neither results nor the commands that make them again hold it.
    report_to: Annotated[Loggers, Field(exclude=True)] = ()
    _search_scope: Scope = PrivateAttr("global")
    _trained: tuple[str, ...] = PrivateAttr(())

    @property
    def metric_scopes(self) -> tuple[AskedScope, ...]:
        """The scopes of metrics alone; `auto` unless told."""
        return self.scope or (AUTO,)

    @property
    def search_scopes(self) -> tuple[Scope, ...]:
        """The scopes of searches; unless told, the one that the policy makes most of."""
        told = (self._search_scope if scope == "auto" else scope for scope in self.scope)
        return tuple(dict.fromkeys(told)) or (self._search_scope,)

    def for_policy(self, optimizer: str, learning_rate: float, scope: Scope) -> Comparison:
        """Returns the comparison with what its policy brings, where nothing else was asked for."""
        own = {"optimizer": self.optimizer or optimizer, "learning_rate": self.learning_rate or learning_rate}
        filled = self.model_copy(update=own)
        filled._search_scope = scope
        return filled

    @property
    def trained(self) -> tuple[str, ...]:
        """The repairs that train, which the dense model gets too; known once plugins have been asked."""
        return self._trained

    def with_trained(self, repairs: tuple[str, ...]) -> Comparison:
        """Returns the comparison with the repairs that train."""
        filled = self.model_copy()
        filled._trained = repairs
        return filled

    @property
    def targets(self) -> tuple[BudgetSpec, ...]:
        """What is to be removed: the sparsities, then the budgets; one that says the same twice stands once."""
        sparsities = map(BudgetSpec.of_sparsity, self.sparsity)
        return tuple(dict.fromkeys((*sparsities, *map(BudgetSpec.parse, self.budget))))

    @property
    def shapes(self) -> tuple[str | None, ...]:
        """The widths that layers may have, as cells name them; None where they are free."""
        asked = product(self.multiple_of or (None,), self.target or (None,))
        return tuple(dict.fromkeys(str(ShapesSpec.of(multiples, target)) or None for multiples, target in asked))

    @model_validator(mode="before")
    @classmethod
    def _budget_instead(cls, values: Any) -> Any:
        """The default sparsity gives way to a budget."""
        instead = isinstance(values, dict) and values.get("budget") and "sparsity" not in values
        return values | {"sparsity": ()} if instead else values

    @model_validator(mode="after")
    def _something_to_remove(self) -> Comparison:
        if not self.targets:
            raise BudgetError("there is nothing to remove; give --sparsity or --budget.")
        return self


class Pruning(Settings, Machine):
    """One model to cut for good."""

    # A model that is kept has to do more than what it was calibrated on.
    evaluation: EvaluationTexts = ("builtin:pydocs", "builtin:prose")
    initializer: str = "thinet"
    estimator: Annotated[Word | None, BeforeValidator(lambda name: None if name == "none" else name)] = None
    granularity: str = "head+channel"
    sparsity: float | None = None
    budget: Budget | None = None
    repair: str = NO_REPAIR
    seed: Seed = 0
    scope: AskedScope | None = None
    scale: AskedScale = AUTO
    multiple_of: Multiples | None = None
    target: Spec | None = None
    exporter: str = "huggingface"
    from_masks: Place | None = None

    def as_comparison(self) -> Comparison:
        """Returns the grid of one cell that this is."""
        shared: dict[str, Any] = self.model_dump(include=set(Settings.model_fields))
        lists: dict[str, Any] = {name: (getattr(self, name),) for name in ("granularity", "scale", "repair")}
        shared |= {name: getattr(self, name) for name in Machine.model_fields if name in self.model_fields_set}
        lists |= {"seeds": (self.seed,), "scope": (self.scope,) if self.scope else (), **self._asked()}
        searches: dict[str, Any] = {
            "initializers": (self.initializer,),
            "estimators": (self.estimator,),
            "baselines": (),
        }
        alone: dict[str, Any] = {"baselines": (self.initializer,)}
        return Comparison(**shared, **lists, **(searches if self.estimator else alone))

    @model_validator(mode="after")
    def _one_budget(self) -> Pruning:
        if self.sparsity is not None and self.budget is not None:
            raise BudgetError(f"sparsity {self.sparsity:g} and budget {self.budget} were both given; give one of them.")
        return self

    def _asked(self) -> dict[str, Any]:
        given = {name: getattr(self, name) for name in ("sparsity", "budget", "multiple_of", "target")}
        return {name: (value,) for name, value in given.items() if value is not None}


def _many(value: Any) -> tuple[Any, ...]:
    """Returns the items of a list, a range and the like; anything else is one item."""
    single = isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable)
    return (value,) if single else tuple(value)


def _normal(spec: str) -> str:
    name, colon, options = spec.strip().partition(":")
    return name.lower().replace("_", "-") + colon + options
