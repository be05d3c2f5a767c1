"""The six hooks, version 1 of the plugin interface. Each takes no argument and returns an iterable of `Provider`s.

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
    from polyprune_core.plugins.contracts import (
        Exporter,
        GradientEstimator,
        Granularity,
        Initializer,
        Provider,
        Repair,
        SearchPolicy,
    )

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

    >>> from polyprune_core.testing.tiny import tiny_model, tiny_space
    >>> Blocks(size=30).groups(tiny_space(tiny_model()).layout)[0]
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
def polyprune_policies() -> Iterable[Provider[SearchPolicy]]:
    """What a search moves: how parameters become masks, and how they stay within the budget.

    An implementation declares how its searches go unless told, and has one method:

        optimizer: "sgd" or "adam", learning_rate: float, scope: "kind", "global" or "layer", independent_units: bool
        bind(given: PolicyStart) -> BoundPolicy

    `bind` is given the units, a metric's scores and the budget, and returns an object that holds parameters (P,)
    float32 to six methods: `start()` gives them, `policy(parameters, sparsity, progress)` the distribution of masks,
    `gradient(policy, gradient)` and `fisher(policy)` the geometry of a step, `project(parameters, sparsity)` brings
    them back within the budget, and `ranking(parameters)` (U,) says in which order the final selection keeps units.
    `independent_units` says whether every unit is drawn on its own with `keep_prob`, which are then the parameters of
    the `Policy` that is returned; some estimators need that.

    PluginError is raised for a vector that is not float32 or not finite, and for keep probabilities outside 0 and 1.

    >>> from dataclasses import dataclass
    >>> from polyprune_core import Policy, Provider, hookimpl
    >>> @dataclass(frozen=True)
    ... class Halves:
    ...     given: object
    ...
    ...     def start(self):
    ...         return self.given.keep_prob("uniform")
    ...
    ...     def policy(self, parameters, sparsity, progress=1.0):
    ...         return Policy(Policy.bounded(parameters))
    ...
    ...     def gradient(self, policy, gradient):
    ...         return gradient
    ...
    ...     def fisher(self, policy):
    ...         return 1 / (policy.keep_prob * (1 - policy.keep_prob))
    ...
    ...     def project(self, parameters, sparsity):
    ...         return self.given.rule.at(sparsity).project(parameters, self.given.space)
    ...
    ...     def ranking(self, parameters):
    ...         return parameters
    >>> @dataclass(frozen=True)
    ... class Indifferent:
    ...     optimizer, learning_rate, scope, independent_units = "sgd", 1e-3, "kind", True
    ...
    ...     def bind(self, given):
    ...         return Halves(given)
    >>> @hookimpl
    ... def polyprune_policies():
    ...     yield Provider("indifferent", "keep probabilities that start equal", Indifferent)

    >>> import torch
    >>> from polyprune_core import PolicyStart, Scores, SelectionRule
    >>> from polyprune_core.testing.tiny import tiny_model, tiny_space
    >>> space = tiny_space(tiny_model())
    >>> bound = Indifferent().bind(PolicyStart(space, Scores(torch.zeros(len(space)), "none"), SelectionRule(0.25)))
    >>> bound.policy(bound.start(), 0.25).keep_prob.unique()
    tensor([0.7500])
    """


@hookspec
def polyprune_estimators() -> Iterable[Provider[GradientEstimator]]:
    """How the gradient of the expected loss is estimated from masks and their losses.

    An implementation has two methods, and says how it may be used:

        sample(policy: Policy, num_masks: int, rng: torch.Generator) -> MaskBatch
        gradient(policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]
        min_masks: int, mask_multiple: int, unbiased: bool, precondition: str | None

    `sample` draws masks (K, U) bool that keep unit i with probability `policy.keep_prob[i]`, from `rng` alone.
    `gradient` gets `losses`, (K,) float32: the mean next-token loss in nats under each mask, and returns the (P,)
    float32 estimate of d E[loss] / d policy.parameters, with a state of numbers and tensors that the next step is given
    (None at the first).

    The parameters of the default policy are not keep probabilities: P is not U, and units are not drawn independently.
    `policy.sample` and `policy.score_function(batch)`, (K, P) the gradients of log p(mask), hold for every policy. A
    formula of its own, such as psi = (m - s) / (s (1 - s)) with s = policy.keep_prob, holds for independent units only:
    then declare `independent_units = True`; users add `--policy probabilities`, or another that draws units so.

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
def polyprune_repairs() -> Iterable[Provider[Repair]]:
    """What happens to the weights that stay, once it is decided which units go.

    An implementation has one method:

        repair(pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]

    It returns new values of parameters by their names in the dense model, in the shape that is left of them
    (`pruned.shapes()`), or a bias for a reader that has none (`pruned.possible_biases()`). What it does not name stays
    as it is. `pruned.cut_readers()` gives the modules that lost inputs, with their dense weights and what stays of
    them, each expert of a mixture by itself (it is `routed`, and has no place for a bias), and `calibration` has the
    text and `moments` of what each takes in in the dense model; its passes are counted.
    `calibration.windows` are those of `--repair-samples`, whatever the metric saw.

    A repair that adds biases declares `adds_biases = True`, or a property where an option decides, so that a format
    without a place for them is refused before the search. One that begins with another names it in `start`.

    A repair that fits weights to the text needs "mix", and one that back-propagates "gradients": the grid then has a
    row of the dense model after it. Long training keeps its state with `calibration.save` and finds it with `saved`.

    The dense model comes back as it was. PluginError is raised for another shape, an unknown name, numbers that are not
    finite, and for a repair that touches the model or a global generator.

    >>> from dataclasses import dataclass
    >>> from polyprune_core import Provider, hookimpl
    >>> @dataclass(frozen=True)
    ... class Louder:
    ...     factor: float = 1.1
    ...
    ...     def repair(self, pruned, calibration):
    ...         updates = {}
    ...         for reader in pruned.cut_readers():
    ...             updates |= reader.updates(self.factor * reader.weight[:, reader.keep])
    ...         return updates
    >>> @hookimpl
    ... def polyprune_repairs():
    ...     yield Provider("louder", "readers are scaled up", Louder)

    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from polyprune_core.testing.tiny import tiny_base, tiny_calibration, tiny_pruned, tiny_space
    >>> with tempfile.TemporaryDirectory() as base:
    ...     dense = tiny_base(Path(base))
    ...     space = tiny_space(dense.model)
    ...     pruned = tiny_pruned(dense, space, torch.arange(len(space)) % 2 == 0)
    ...     updates = Louder().repair(pruned, tiny_calibration(dense.model))
    >>> sorted(updates)[0], tuple(updates["model.layers.0.mlp.down_proj.weight"].shape)
    ('model.layers.0.mlp.down_proj.weight', (36, 35))
    """


@hookspec
def polyprune_exporters() -> Iterable[Provider[Exporter]]:
    """What is written out for a pruned model, and how it is read back.

    An implementation has two methods:

        export(pruned: PrunedModel, out_dir: Path) -> ExportReport
        load(path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False) -> LoadedModel

    `export` writes into the existing, empty folder `out_dir` and nowhere else, names no path of this machine in what it
    writes, leaves the dense model as it is, and reports every file with its SHA-256, sizes in bytes, the parameters
    that are left, and `reload`: Python that leaves the model in `model`, where DIR stands for the path of the folder.
    What a repair changed (`pruned.updates`) is part of it, as of `pruned.state_dict()` and `pruned.build()`.

    `load` reads the folder back, ready to run: eval mode, no gradients, no cache; the perplexity that users are told is
    that of the model it returns. `trust_remote_code` is what they said of code that comes with the dense model.

    More may be declared. `check(base: LoadedModel)` raises ModelError where no smaller form of a model can be written,
    before anything is scored. `legal_shapes(layout: ModelLayout) -> LegalShapes` says which shapes the format can hold,
    and whether biases that a repair adds have a place in it; the conformance kit asks for no others. `runtime() ->
    Runtime` names the program that runs what was written, for `export --verify`, and `rounding` is what the format
    loses of a weight, relative to it. What a format cannot do besides, such as a dense checkpoint with zeros in place
    of removed units, is excused by the provider's `xfail`.

    PluginError is raised where something else is returned; the output folder then does not appear.

    >>> from dataclasses import dataclass
    >>> from polyprune_core import Provider, hookimpl
    >>> @dataclass(frozen=True)
    ... class WithCard:
    ...     def export(self, pruned, out_dir):
    ...         from polyprune_core import export_report, write_model
    ...         model = write_model(pruned, out_dir, pruned.base.stored_dtype, "5GB", pruned.provenance())
    ...         (out_dir / "CARD.md").write_text(f"{pruned.selection.sparsity:.0%} removed")
    ...         reload = "from polyprune_core import load_model\\nmodel = load_model(DIR).model"
    ...         return export_report(out_dir, "with-card", reload, model.num_parameters())
    ...
    ...     def load(self, path, *, dtype="auto", device="auto", trust_remote_code=False):
    ...         from polyprune_core import load_model
    ...         return load_model(str(path), dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    >>> @hookimpl
    ... def polyprune_exporters():
    ...     yield Provider("with-card", "a smaller model with a card", WithCard)

    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from polyprune_core.testing.tiny import tiny_base, tiny_pruned, tiny_space
    >>> with tempfile.TemporaryDirectory() as base, tempfile.TemporaryDirectory() as out:
    ...     dense = tiny_base(Path(base))
    ...     space = tiny_space(dense.model)
    ...     report = WithCard().export(tiny_pruned(dense, space, torch.arange(len(space)) % 2 == 0), Path(out))
    >>> sorted(report.files)[:2]
    ['CARD.md', 'config.json']
    """
