"""What a plugin provides: four small protocols and the `Provider` that registers an implementation.

U units, K masks. An implementation is usually a frozen dataclass whose fields are its options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from polyprune_core.evaluation.calibration import Calibration
    from polyprune_core.models.layout import ModelLayout
    from polyprune_core.models.sources import LoadedModel
    from polyprune_core.pruning.pruned_model import PrunedModel
    from polyprune_core.pruning.space import MaskSpace
    from polyprune_core.pruning.types import ExportReport, MaskBatch, Policy, UnitGroup

T = TypeVar("T")
NEEDS = frozenset({"calibration", "gradients", "budget"})
State = Mapping[str, Any] | None


@dataclass(frozen=True)
class Provider(Generic[T]):
    """Registers one implementation under a name.

    Attributes:
        name: lower-case words joined by dashes; what users type.
        summary: one line for `polyprune plugins list`.
        factory: called with the options as keywords; its signature is the list of options.
        needs: of "calibration" (text), "gradients" (back-propagation), "budget" (a metric made for one sparsity and
            scope, see `Initializer`); shown by `polyprune plugins show`.
        reference: paper and equation.
        xfail: checks of the conformance kit that this plugin is right to fail, each with the reason.
    """

    name: str
    summary: str
    factory: Callable[..., T]
    needs: frozenset[str] = field(default_factory=frozenset)
    reference: str = ""
    xfail: Mapping[str, str] = field(default_factory=dict, hash=False)


class Granularity(Protocol):
    """What a unit is."""

    def groups(self, layout: ModelLayout) -> Sequence[UnitGroup]:
        """Returns the units, one group per layer and kind, in layer order."""


class Initializer(Protocol):
    """How much each unit matters, before any search.

    A metric that needs "budget" is asked anew for every sparsity and scope, which `calibration.budget` holds, and is
    taken at its word: its scores are compared across layers as they are, whatever scale the run asks for, so that what
    `calibration.budget.select` gave it while it measured is what the run selects.
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
    probability keep_prob only, so the parameters must be those (P = U). `extra_passes`: forward passes a step beside
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
OPTIONAL: dict[str, Any] = {"independent_units": False, "extra_passes": 0, "check": None}


def independent_units(estimator: GradientEstimator) -> bool:
    """Whether an estimator's formula holds for units drawn independently only."""
    return bool(getattr(estimator, "independent_units", OPTIONAL["independent_units"]))


def extra_passes(estimator: GradientEstimator) -> int:
    """Forward passes of one step beside its masks."""
    return int(getattr(estimator, "extra_passes", OPTIONAL["extra_passes"]))


class Exporter(Protocol):
    """What is written for a pruned model.

    One more method may be declared: `check(base: LoadedModel)`, called before anything is scored or searched, raises
    ModelError where no smaller form of `base` can be written.
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
