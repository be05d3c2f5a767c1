"""What a plugin provides: six small protocols and the `Provider` that registers an implementation.

U units, K masks, P parameters of a policy. An implementation is usually a frozen dataclass; its fields are its options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from polyprune_core.pruning.types import LegalShapes

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from polyprune_core.evaluation.calibration import Calibration
    from polyprune_core.models.layout import ModelLayout
    from polyprune_core.models.sources import LoadedModel
    from polyprune_core.pruning.pruned_model import PrunedModel
    from polyprune_core.pruning.space import MaskSpace
    from polyprune_core.pruning.starting import PolicyStart
    from polyprune_core.pruning.types import ExportReport, MaskBatch, Policy, UnitGroup

T = TypeVar("T")
NEEDS = frozenset({"calibration", "gradients", "budget", "held-back", "mix"})
State = Mapping[str, Any] | None


@dataclass(frozen=True)
class Provider(Generic[T]):
    """Registers one implementation under a name.

    Attributes:
        name: lower-case words joined by dashes; what users type.
        summary: one line for `polyprune plugins list`.
        factory: called with the options as keywords; its signature is the list of options.
        needs: of "calibration" (text), "gradients" (back-propagation), "budget" (a metric made for one sparsity and
            scope, see `Initializer`), "held-back" (a metric that chooses by loss on text it does not measure on,
            which `calibration.held_back` holds), "mix" (a repair that fits weights to the text: users are warned who
            give it one text alone, or fewer tokens than a reader has input features); shown by `plugins show`.
        reference: paper and equation.
        xfail: checks of the conformance kit that this plugin is right to fail, each with the reason.
        quick: options under which it does the same in less time, as fewer masks to draw; the conformance kit, whose
            models are tiny, examines its behaviour with those.
    """

    name: str
    summary: str
    factory: Callable[..., T]
    needs: frozenset[str] = field(default_factory=frozenset)
    reference: str = ""
    xfail: Mapping[str, str] = field(default_factory=dict, hash=False)
    quick: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Granularity(Protocol):
    """What a unit is.

    `if_none` may be declared: why a model may have no such unit, which is said where it has none.
    """

    def groups(self, layout: ModelLayout) -> Sequence[UnitGroup]:
        """Returns the units, one group per layer and kind, in layer order."""


class Initializer(Protocol):
    """How much each unit matters, before any search.

    A metric that needs "budget" is asked anew for every sparsity and scope, which `calibration.budget` holds. Its
    scores are compared across layers as they are, whatever scale the run asks for. So the run selects the very units
    that `calibration.budget.select` gave the metric while it measured.

    Four more may be declared. `comparable = True`: the scores say how much each layer gives, whatever the budget, and
    are compared across layers as they are too. `granularities`: names of those that it can score, where it refuses
    others. `made_for`: the granularity that it is about, where it asks another metric for the rest. `--baselines all`
    leaves it out where it scores nothing itself. `windows_run(units, windows, held_back)`: how many windows of text go
    forward while it scores so many units on so many windows, where that is not once each; `--dry-run` tells of it.
    """

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        """Returns (U,) finite scores, higher = keep.

        The model comes back unchanged; randomness comes from `calibration.rng` alone.
        """


class GradientEstimator(Protocol):
    """How expected loss changes with each parameter of the policy, from K masks and their losses.

    `precondition` is None for a plain gradient; an estimator whose formula already scales it says how the search must
    treat what it returns, whatever the run's own setting ("none": take it as it is).

    Two more may be declared. `independent_units = True`: the formula holds for units drawn independently with
    probability keep_prob only, so the parameters must be those (P = U), which those of the default policy are not.
    `policy.score_function` holds for every policy. `extra_passes`: forward passes a step beside
    its masks, as for `MaskBatch.reference`; an equal budget of tokens then pays for fewer steps.
    """

    @property
    def min_masks(self) -> int:
        """Fewest masks a step."""

    @property
    def mask_multiple(self) -> int:
        """The masks of a step are a multiple of this."""

    @property
    def unbiased(self) -> bool:
        """Whether the expectation of `gradient` is the exact gradient."""

    @property
    def precondition(self) -> str | None:
        """How the search must treat what `gradient` returns, or None."""

    def sample(self, policy: Policy, num_masks: int, rng: torch.Generator) -> MaskBatch:
        """Draws `num_masks` masks, each with unit i kept with probability keep_prob[i]."""

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns (P,) estimate of d E[loss] / d policy.parameters, and the state for the next step.

        `losses` is (K,): mean next-token loss in nats under each mask, all finite. For independent units the parameters
        are keep_prob, and a negative entry means that keeping the unit more often lowers the loss. `state` is None at
        the first step; it holds numbers and tensors only.
        """


# Powers of the Fisher information that a step may be divided by.
PRECONDITIONERS = {"none": 0.0, "half-natural": 0.5, "natural": 1.0}
OPTIONAL: dict[str, dict[str, Any]] = {
    "granularity": {"if_none": ""},
    "initializer": {"comparable": False, "granularities": None, "made_for": None, "windows_run": None},
    "estimator": {"independent_units": False, "extra_passes": 0},
    "repair": {"trained_tokens": 0, "adds_biases": False, "start": None},
    "exporter": {
        "legal_shapes": lambda layout: LegalShapes(),
        "check": None,
        "rounding": 0.0,
        "runtime": None,
        "by_shard": False,
    },
}


def windows_run(metric: Initializer, units: int, windows: int, held_back: int) -> int:
    """Windows that a metric which needs text runs forward: once each where it does not say, see `Initializer`."""
    own = getattr(metric, "windows_run", OPTIONAL["initializer"]["windows_run"])
    return int(own(units, windows, held_back)) if own else windows


def independent_units(estimator: GradientEstimator) -> bool:
    """Whether an estimator's formula holds for units drawn independently only."""
    return bool(getattr(estimator, "independent_units", OPTIONAL["estimator"]["independent_units"]))


def extra_passes(estimator: GradientEstimator) -> int:
    """Forward passes of one step beside its masks."""
    return int(getattr(estimator, "extra_passes", OPTIONAL["estimator"]["extra_passes"]))


def trained_tokens(repair: Repair) -> int:
    """Tokens that a repair trains on, at most its sample; each goes through both models, and back through the small."""
    return int(getattr(repair, "trained_tokens", OPTIONAL["repair"]["trained_tokens"]))


def adds_biases(repair: Repair, build: Callable[[str], Repair]) -> bool:
    """Whether a repair, or the one that it starts from, adds biases; `build` makes a repair of what users type."""
    own, start = (getattr(repair, name, OPTIONAL["repair"][name]) for name in ("adds_biases", "start"))
    return bool(own) or (start is not None and adds_biases(build(start), build))


class BoundPolicy(Protocol):
    """A search policy on one space, with one metric's scores: parameters (P,) float32 and the geometry of a step."""

    def start(self) -> Tensor:
        """Returns the parameters that the metric starts, within the budget."""

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        """Returns the distribution of masks after `progress`, a fraction, of the search."""

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        """Returns (P,): the gradient with respect to `policy.parameters` carried over to the parameters here."""

    def fisher(self, policy: Policy) -> Tensor:
        """Returns (P,): the diagonal of the Fisher information of the parameters, above 0."""

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        """Returns the parameters brought back within the budget."""

    def ranking(self, parameters: Tensor) -> Tensor:
        """Returns (U,): the order in which the final selection keeps units, higher = keep."""


class SearchPolicy(Protocol):
    """What a search moves: how parameters become masks, and how they stay within the budget.

    It brings the defaults of its own searches: `optimizer` ("sgd" or "adam"), `learning_rate`, and `scope`, who shares
    a budget. `independent_units`: whether every unit is drawn on its own with its keep probability, and those are the
    policy's parameters (P = U), as some estimators need.
    """

    @property
    def independent_units(self) -> bool:
        """Whether units are drawn independently, with P = U."""

    @property
    def optimizer(self) -> str:
        """How the parameters step unless told."""

    @property
    def learning_rate(self) -> float:
        """The rate of the first step unless told."""

    @property
    def scope(self) -> str:
        """Who shares a budget unless told: "kind", "global" or "layer"."""

    def bind(self, given: PolicyStart) -> BoundPolicy:
        """Returns the policy on one space, started from one metric's scores."""


class Repair(Protocol):
    """What happens to the weights that stay, once it is decided which units go.

    A repair that back-propagates says that it needs "gradients"; a comparison then has a row of the dense model after
    the same training. Long work goes on after an interruption where it keeps its state with `calibration.save` and
    looks for it with `calibration.saved`.

    Three more may be declared. `trained_tokens`: what it trains on, by which its cost is foretold. `adds_biases`: True
    where it adds biases, with its options as they are, to readers that have none. `start`: another repair, as users
    type it, whose updates it begins with (`calibration.repair(self.start, pruned)`) and which may add biases too. A
    format that has no place for them is refused before anything is scored.
    """

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        """Returns new values of parameters, by name in the dense model, floating-point and finite.

        A value has the shape that is left of its parameter (`pruned.shapes()`); `READER.bias` of a reader without one
        may be added. What is not named stays as it is. The dense model comes back unchanged; randomness comes from
        `calibration.rng` alone.
        """


@dataclass(frozen=True)
class Runtime:
    """Where what an exporter writes runs for real.

    `program` is a Python file that a process of its own runs, in which polyprune cannot be imported. It defines
    `open_model(folder: str, threads: int)`, which returns an object with

        version: str
        tokenize(text: str) -> list[int] | None                 None where it reads token ids alone
        log_probs(ids: list[int], top: int) -> list[tuple[float, dict[int, float]]]
        generate(ids: list[int], new: int) -> tuple[list[int], float, float]

    `log_probs` tells for each token but the first its natural log-probability after those before it, and those of the
    `top` likeliest tokens in its place. `generate` returns the `new` likeliest tokens one after another, and the
    seconds that reading `ids` and writing them took.

    Attributes:
        name: of the runtime.
        requires: modules that the program imports, with what pip installs to have them.
        program: the file.
        tolerance: how far a log-probability may be from what transformers computes of the same weights, in nats; their
            mean over a text may be off by a tenth of it. None: three times as far as those of the dense model, written
            alike, are there: what a runtime that rounds what it computes with makes of any model.
    """

    name: str
    requires: Mapping[str, str]
    program: Path
    tolerance: float | None = 1e-3


class Exporter(Protocol):
    """What is written for a pruned model.

    More may be declared. `legal_shapes(layout: ModelLayout) -> LegalShapes` says what the format can hold, widths and
    biases that a repair adds; without it anything. `check(base: LoadedModel)`, called before anything is scored or
    searched, raises ModelError where no smaller form of `base` can be written. `rounding` is what the format loses of a
    weight, relative to it, beside the rounding of the number format that `load` says it is stored in. `runtime() ->
    Runtime` says where it runs. `by_shard = True`: it writes a model whose weights were not read (`base.model` is on
    the meta device), as `write_model` does, which reads them from the base's files a shard at a time.
    """

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        """Writes files inside the existing, empty folder `out_dir` only."""

    def load(
        self, path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> LoadedModel:
        """Reads back what `export` wrote; evaluation goes through this.

        `trust_remote_code` is what the user said of code that comes with the dense model; what `export` wrote itself
        needs none.
        """


def check_exportable(exporter: Exporter, base: LoadedModel) -> None:
    """Raises what the exporter's own `check(base)` raises, if it has one."""
    check = getattr(exporter, "check", None)
    if check is not None:
        check(base)
