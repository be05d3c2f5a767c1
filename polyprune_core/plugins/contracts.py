"""What a plugin provides: an implementation of one of six small protocols, and the `Provider` that registers it.

Symbols in shapes: U units, K masks, P parameters of a policy. An implementation is usually a frozen dataclass. The
fields of the dataclass are then the options that users can set.
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
        name: what users type to choose the plugin: lower-case words joined by dashes.
        summary: one line for `polyprune plugins list`.
        factory: makes the implementation. It is called with the options as keywords, and its signature is the list of
            options.
        needs: what the plugin needs, as a set of these words, which `polyprune plugins show` lists. "calibration": it
            reads the calibration text. "gradients": it back-propagates. "budget": a metric that is made for one
            sparsity and scope (see `Initializer`). "held-back": a metric that chooses by its loss on windows of
            calibration text that it does not measure on (`calibration.held_back`). "mix": a repair that fits weights
            to the text; users are warned if they give it one text alone, or fewer tokens than a reader has input
            features.
        reference: paper and equation that the plugin implements.
        xfail: checks of the conformance kit that this plugin is right to fail, each with the reason.
        quick: options with which the plugin does the same in less time, for instance fewer masks. The conformance kit
            uses them.
    """

    name: str
    summary: str
    factory: Callable[..., T]
    needs: frozenset[str] = field(default_factory=frozenset)
    reference: str = ""
    xfail: Mapping[str, str] = field(default_factory=dict, hash=False)
    quick: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Granularity(Protocol):
    """Says what a unit is: which entries of a model's axes are kept or removed together.

    A granularity may declare `if_none`: the reason why a model may have no such unit. The error message shows it if a
    model has none.
    """

    def groups(self, layout: ModelLayout) -> Sequence[UnitGroup]:
        """Returns the units of a model with this layout, one group for each layer and kind, in layer order."""


class Initializer(Protocol):
    """Scores how much each unit matters, before any search. Users call it a metric.

    A metric whose provider needs "budget" is asked again for every sparsity and scope, and reads them from
    `calibration.budget`. Its scores are compared across layers without scaling, whatever `--scale` says. So the run
    selects the same units that `calibration.budget.select` selects for the metric while it measures.

    An initializer may declare four more members:

    - `comparable = True` says that its scores are comparable across layers already, at any budget, so that no scaling
      is applied to them.
    - `granularities` lists the names of the granularities that it can score, if it refuses others.
    - `made_for` names the granularity that it scores itself, if it leaves other units to another metric. `--baselines
      all` leaves the metric out of a comparison that has no units of that granularity.
    - `windows_run(units, windows, held_back)` returns how many windows of text run forward while the metric scores this
      many units on this many windows, if that is not once each. `--dry-run` reports it.
    """

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        """Returns finite scores (U,) in the order of `space`; a higher score means keep.

        The method must leave the model unchanged, and draw random numbers from `calibration.rng` only.
        """


class GradientEstimator(Protocol):
    """Estimates the gradient of the expected loss by the parameters of a policy, from K masks and their losses.

    An estimator may declare two more attributes:

    - `independent_units = True` says that its formula holds only if units are drawn independently, with the keep
      probabilities as parameters (P = U). The default policy does not draw units so. `policy.score_function` holds for
      every policy.
    - `extra_passes` is the number of forward passes that a step takes besides those of its masks, for instance for
      `MaskBatch.reference`. An equal budget of tokens then pays for fewer steps.
    """

    @property
    def min_masks(self) -> int:
        """The fewest masks that one step can have."""

    @property
    def mask_multiple(self) -> int:
        """The number of masks of one step has to be a multiple of this number."""

    @property
    def unbiased(self) -> bool:
        """Whether the expectation of what `gradient` returns is the exact gradient."""

    @property
    def precondition(self) -> str | None:
        """How the search scales what `gradient` returns, whatever the run asks for: a name in PRECONDITIONERS, or None.

        None leaves the choice to the run. An estimator whose formula scales the gradient already says "none", which
        takes the gradient as it is.
        """

    def sample(self, policy: Policy, num_masks: int, rng: torch.Generator) -> MaskBatch:
        """Draws `num_masks` masks from `rng` only; each keeps unit i with probability `policy.keep_prob[i]`."""

    def gradient(self, policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns the estimate (P,) of d E[loss] / d policy.parameters, and the state for the next step.

        For independent units the parameters are the keep probabilities. A negative entry of the gradient then means
        that keeping the unit more often lowers the loss.

        Args:
            policy: the distribution that the masks were drawn from.
            batch: the K masks that `sample` drew.
            losses: (K,) float32, the mean next-token loss in nats under each mask; all are finite.
            state: what this method returned at the step before, None at the first step. It may hold numbers and tensors
                only.
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
    """Returns how many windows a metric that needs text runs forward: what it declares, or each window once."""
    own = getattr(metric, "windows_run", OPTIONAL["initializer"]["windows_run"])
    return int(own(units, windows, held_back)) if own else windows


def independent_units(estimator: GradientEstimator) -> bool:
    """Returns whether an estimator's formula holds only for units that are drawn independently."""
    return bool(getattr(estimator, "independent_units", OPTIONAL["estimator"]["independent_units"]))


def extra_passes(estimator: GradientEstimator) -> int:
    """Returns how many forward passes one step of an estimator takes besides those of its masks."""
    return int(getattr(estimator, "extra_passes", OPTIONAL["estimator"]["extra_passes"]))


def trained_tokens(repair: Repair) -> int:
    """Returns how many tokens a repair trains on, which is never more than its calibration text has.

    Each token passes forward through the dense and the pruned model, and backward through the pruned one.
    """
    return int(getattr(repair, "trained_tokens", OPTIONAL["repair"]["trained_tokens"]))


def adds_biases(repair: Repair, build: Callable[[str], Repair]) -> bool:
    """Returns whether a repair, or the repair that it starts from, adds biases.

    `build` makes a repair from its name and options as users type them.
    """
    own, start = (getattr(repair, name, OPTIONAL["repair"][name]) for name in ("adds_biases", "start"))
    return bool(own) or (start is not None and adds_biases(build(start), build))


class BoundPolicy(Protocol):
    """A search policy that is bound to one model's units and one metric's scores: what a search does with parameters.

    The parameters are a vector (P,) float32 that the search holds and changes.
    """

    def start(self) -> Tensor:
        """Returns the parameters (P,) that the search starts from. They come from the metric and meet the budget."""

    def policy(self, parameters: Tensor, sparsity: float, progress: float = 1.0) -> Policy:
        """Returns the distribution of masks that the parameters (P,) stand for.

        `sparsity` is the fraction to remove at this step. `progress` is the fraction of the search that is done, from 0
        to 1.
        """

    def gradient(self, policy: Policy, gradient: Tensor) -> Tensor:
        """Returns the gradient (P,) by the parameters here, given the gradient by `policy.parameters`."""

    def fisher(self, policy: Policy) -> Tensor:
        """Returns the diagonal (P,) of the Fisher information of the parameters here; every entry is above 0."""

    def project(self, parameters: Tensor, sparsity: float) -> Tensor:
        """Returns the parameters (P,) moved to where the masks remove the fraction `sparsity`, if they remove less."""

    def ranking(self, parameters: Tensor) -> Tensor:
        """Returns (U,): the final selection keeps the units with the highest numbers."""


class SearchPolicy(Protocol):
    """Says how the parameters of a search become masks, and how the masks stay within the budget.

    A search policy also declares the defaults of its searches: optimizer, learning rate and scope.
    """

    @property
    def independent_units(self) -> bool:
        """Whether each unit is drawn independently and the parameters are the keep probabilities (P = U).

        Some estimators need that.
        """

    @property
    def optimizer(self) -> str:
        """The optimizer if the user names none: "sgd" or "adam"."""

    @property
    def learning_rate(self) -> float:
        """The learning rate of the first step if the user gives none."""

    @property
    def scope(self) -> str:
        """Which units share a budget if the user does not say: "kind", "global" or "layer"."""

    def bind(self, given: PolicyStart) -> BoundPolicy:
        """Returns the policy for the units, the scores and the budget in `given`."""


class Repair(Protocol):
    """Changes the weights that stay, after it is decided which units go.

    A repair that back-propagates has "gradients" among its provider's `needs`. A comparison then has a row of the dense
    model after the same training. A repair that runs for long keeps its state with `calibration.save`, and reads it
    back after an interruption with `calibration.saved`.

    A repair may declare three more attributes:

    - `trained_tokens` is how many tokens it trains on, from which its cost is predicted.
    - `adds_biases = True` says that, with these options, it adds biases to readers that have none. A format that cannot
      hold them is refused before anything is scored.
    - `start` is another repair, written as users type it, whose result this one starts from
      (`calibration.repair(self.start, pruned)`). That repair may add biases too.
    """

    def repair(self, pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]:
        """Returns new values of parameters under their names in the dense model, floating-point and finite.

        A value has the shape that the pruned model has of its parameter (`pruned.shapes()`). The biases in
        `pruned.possible_biases()` may be added. Parameters that are not named stay as they are. The method must leave
        the dense model unchanged, and draw random numbers from `calibration.rng` only.
        """


@dataclass(frozen=True)
class Runtime:
    """The program that runs what an exporter writes, such as llama.cpp, for `polyprune export --verify`.

    `program` is a Python file that runs in a process of its own, where polyprune cannot be imported. The file defines
    `open_model(folder: str, threads: int)`, which returns an object with these members:

        version: str
        tokenize(text: str) -> list[int] | None                 None if it reads token ids only
        log_probs(ids: list[int], top: int) -> list[tuple[float, dict[int, float]]]
        generate(ids: list[int], new: int) -> tuple[list[int], float, float]

    `log_probs` returns for each token but the first its natural log-probability, given the tokens before it, and the
    log-probabilities of the `top` likeliest tokens in its place. `generate` returns `new` tokens, each the likeliest
    one after those before it, then the seconds that reading `ids` took, and the seconds that writing the tokens after
    the first took.

    Attributes:
        name: the name of the runtime, as users know it.
        requires: the modules that the program imports, each with what pip has to install for it.
        program: the path of the Python file.
        tolerance: the largest difference allowed, in nats, between a log-probability here and the one that transformers
            computes with the same weights. The mean difference over a text may be a tenth of that. None is for a
            runtime that rounds intermediate results: it allows three times the difference that the dense model shows,
            written in the same format.
    """

    name: str
    requires: Mapping[str, str]
    program: Path
    tolerance: float | None = 1e-3


class Exporter(Protocol):
    """Writes a pruned model to a folder in one format, and reads it back.

    An exporter may declare five more members:

    - `legal_shapes(layout: ModelLayout) -> LegalShapes` says which widths the format can hold, and whether it can hold
      biases that a repair adds. Without it, the format can hold any shape.
    - `check(base: LoadedModel)` raises ModelError if no smaller form of `base` can be written. It is called before
      anything is scored or searched.
    - `rounding` is the largest relative error that the format makes in a weight, besides the rounding to the number
      format that `load` reports in `LoadedModel.stored`.
    - `runtime() -> Runtime` returns the program that runs what was written.
    - `by_shard = True` says that it can write a model whose weights were not read (`base.model` is on the meta device).
      `write_model` can do that: it reads the weights from the files of the dense model, a shard at a time.
    """

    def export(self, pruned: PrunedModel, out_dir: Path) -> ExportReport:
        """Writes files into the existing, empty folder `out_dir`, and nowhere else, and returns a report on them."""

    def load(
        self, path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
    ) -> LoadedModel:
        """Returns the model that `export` wrote to the folder `path`. An exported model is evaluated as read back here.

        `dtype` and `device` are as for `load_model`. `trust_remote_code` says whether the user allows code that comes
        with the dense model to run; the files that `export` writes need no such permission of their own.
        """


def check_exportable(exporter: Exporter, base: LoadedModel) -> None:
    """Calls the exporter's `check(base)`, if it has one, and raises the ModelError that this raises."""
    check = getattr(exporter, "check", None)
    if check is not None:
        check(base)
