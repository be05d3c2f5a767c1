"""The four hooks, version 1 of the plugin interface. Each takes no argument and returns an iterable of `Provider`s.

A plugin is a module, or an object with methods, that a distribution names among its entry points:

    [project.entry-points.polyprune]
    my-metric = "my_package.my_module"

The group's name says which version of the interface the plugin is written for: `polyprune` is version 1, `polyprune2`
would be version 2. A plugin for a newer version than this polyprune has is refused before its code runs.

Hooks are called once, when plugins are loaded, so they must be quick and import nothing heavy: torch is imported inside
methods, or for type checking only. What a hook raises, or yields wrongly, is shown by `polyprune plugins list` and
stops no other plugin. The contracts that implementations fulfil are in `polyprune_core.plugins.contracts`.

Symbols: U units, K masks, N calibration windows of T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from polyprune_core.plugins.contracts import Exporter, GradientEstimator, Granularity, Initializer, Provider

PROJECT = "polyprune"
API_VERSION = 1
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def polyprune_granularities() -> Iterable[Provider[Granularity]]:
    """What a unit is: which entries of the model's axes are kept or removed together.

    An implementation has one method:

        groups(layout: ModelLayout) -> Sequence[UnitGroup]

    It returns the units as runs of like ones, one `UnitGroup` for each kind and layer, in layer order; unit i of a
    group owns entries [i n, (i + 1) n) of each of its axes, n being that axis' entries per unit. Every axis that is
    named is divided whole, and no unit is free. Users join granularities with +, as in `head+channel`.

    PluginError is raised for it where a group names an axis that the model does not have, leaves entries to no unit,
    has units that own nothing, or owns axes of another layer; ConfigError where two granularities own the same axis.

    >>> from dataclasses import dataclass
    >>> from polyprune_core import Provider, UnitGroup, hookimpl
    >>> @dataclass(frozen=True)
    ... class Blocks:
    ...     size: int = 10
    ...
    ...     def groups(self, layout):
    ...         return [
    ...             UnitGroup("block", axis.layer, -(-axis.size // self.size), ((axis.name, self.size),))
    ...             for axis in layout.of_kind("mlp")
    ...         ]
    >>> @hookimpl
    ... def polyprune_granularities():
    ...     yield Provider("block", "neighbouring MLP channels", Blocks)

    >>> from polyprune_core.models.describe import describe
    >>> from polyprune_core.testing.tiny import tiny_model
    >>> Blocks(size=30).groups(describe(tiny_model()))[0]
    UnitGroup(kind='block', layer=0, count=3, spans=(('layers.0.mlp', 30),))
    """


@hookspec
def polyprune_initializers() -> Iterable[Provider[Initializer]]:
    """A metric: how much each unit matters, in the dense model and before any search.

    An implementation has one method:

        score(model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor

    It returns (U,) finite floating-point scores in the order of `space`, higher = keep, in any unit: only their order
    within a pool, or after `--scale` their place among the others, counts. `calibration` has the text (`windows`,
    (N, T) int64), moments of inputs, gradients of the mean loss in nats per token, and the metric's own generator.
    `MaskSpace.sum_weights`, `sum_columns` and `sum_entries` add up what a unit owns.

    The model comes back as it was: weights, hooks, training flags. PluginError is raised for a metric that leaves it
    otherwise, draws from a global generator, or returns something else; its cells fail, and the others go on.
    A metric that gives every weight an importance is shorter as a plain function: see `polyprune_core.initializer`.

    >>> from dataclasses import dataclass
    >>> from polyprune_core import Provider, hookimpl
    >>> @dataclass(frozen=True)
    ... class LargestWeight:
    ...     def score(self, model, space, calibration):
    ...         return space.sum_columns(model, lambda axis, weight: weight.abs().amax(dim=0))
    >>> @hookimpl
    ... def polyprune_initializers():
    ...     yield Provider("largest-weight", "largest weight of a column", LargestWeight)

    >>> from polyprune_core.testing.tiny import tiny_calibration, tiny_model, tiny_space
    >>> model = tiny_model()
    >>> space = tiny_space(model, "head+channel")
    >>> LargestWeight().score(model, space, tiny_calibration(model)).shape == (len(space),)
    True
    """


@hookspec
def polyprune_estimators() -> Iterable[Provider[GradientEstimator]]:
    """How the gradient of the expected loss is estimated from masks and their losses.

    An implementation has two methods, and says how it may be used:

        sample(policy: Policy, num_masks: int, rng: torch.Generator) -> MaskBatch
        gradient(policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]
        min_masks: int, mask_multiple: int, unbiased: bool, precondition: str | None

    `sample` draws masks (K, U) bool that keep unit i with probability `policy.keep_prob[i]`, from `rng` alone.
    `gradient` gets `losses`, (K,) float32: the mean next-token loss in nats under each mask, and returns the (U,)
    float32 estimate of d E[loss] / d keep_prob, a negative entry where keeping the unit more often lowers the loss,
    with a state of numbers and tensors that the next step is given (None at the first).

    ConfigError is raised where the user asks for fewer masks than `min_masks` or no multiple of `mask_multiple`,
    PluginError for masks or gradients of another shape, and for numbers that are not finite.

    >>> from dataclasses import dataclass
    >>> from polyprune_core import Provider, hookimpl
    >>> @dataclass(frozen=True)
    ... class MeanBaseline:
    ...     min_masks = 2
    ...     mask_multiple = 1
    ...     unbiased = True
    ...     precondition = None
    ...
    ...     def sample(self, policy, num_masks, rng):
    ...         return policy.sample(num_masks, rng)
    ...
    ...     def gradient(self, policy, batch, losses, state):
    ...         return (losses - losses.mean()) @ policy.score_function(batch) / (len(losses) - 1), None
    >>> @hookimpl
    ... def polyprune_estimators():
    ...     yield Provider("mean-baseline", "baseline of the step's own losses", MeanBaseline)

    >>> import torch
    >>> from polyprune_core import Policy
    >>> policy = Policy(torch.tensor([0.2, 0.5, 0.9]))
    >>> batch = MeanBaseline().sample(policy, 4, torch.Generator().manual_seed(0))
    >>> gradient, state = MeanBaseline().gradient(policy, batch, torch.tensor([2.0, 2.5, 1.5, 3.0]), None)
    >>> gradient.shape, state
    (torch.Size([3]), None)
    """


@hookspec
def polyprune_exporters() -> Iterable[Provider[Exporter]]:
    """What is written out for a pruned model, and how it is read back.

    An implementation has two methods:

        export(pruned: PrunedModel, out_dir: Path) -> ExportReport
        load(path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False) -> LoadedModel

    `export` writes into the existing, empty folder `out_dir` and nowhere else, names no path of this machine in what it
    writes, leaves the dense model as it is, and reports every file with its SHA-256, sizes in bytes and the parameters
    that are left. `load` reads the folder back, ready to run: eval mode, no gradients, no cache; the perplexity that
    users are told is that of the model it returns. `trust_remote_code` is what they said of code that comes with the
    dense model. One more method may be declared, `check(base: LoadedModel)`: it raises ModelError where no smaller form
    of a model can be written, before anything is scored.

    PluginError is raised where something else is returned; the output folder then does not appear.

    >>> from dataclasses import dataclass
    >>> from polyprune_core import Provider, hookimpl
    >>> @dataclass(frozen=True)
    ... class WithCard:
    ...     def _plain(self):
    ...         from polyprune_core.plugins.registry import load_registry
    ...         return load_registry().build("exporter", "masks")
    ...
    ...     def export(self, pruned, out_dir):
    ...         from polyprune_core.pruning.provenance import export_report
    ...         written = self._plain().export(pruned, out_dir)
    ...         (out_dir / "CARD.md").write_text(f"{pruned.selection.sparsity:.0%} removed")
    ...         return export_report(out_dir, "with-card", written.reload, written.parameters)
    ...
    ...     def load(self, path, *, dtype="auto", device="auto", trust_remote_code=False):
    ...         return self._plain().load(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    >>> @hookimpl
    ... def polyprune_exporters():
    ...     yield Provider("with-card", "masks with a card", WithCard)

    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from polyprune_core.testing.tiny import tiny_base, tiny_pruned, tiny_space
    >>> with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as out:
    ...     dense = tiny_base(Path(base))
    ...     space = tiny_space(dense.model)
    ...     report = WithCard().export(tiny_pruned(dense, space, torch.arange(len(space)) % 2 == 0), Path(out))
    >>> sorted(report.files)
    ['CARD.md', 'masks.json', 'masks.safetensors']
    """
