"""The six hooks, version 1 of the plugin interface. Each takes no argument and returns an iterable of `Provider`s.

A plugin is a module, or an object with methods, that a distribution names among its entry points:

    [project.entry-points.polyprune]
    my-metric = "my_package.my_module"

The group's name says which version of the interface the plugin is written for: `polyprune` is version 1, `polyprune2`
would be version 2. A plugin that is written for a newer version than the installed polyprune has is refused before its
code runs.

Each hook is called once, when plugins are loaded. So a hook must be quick and import nothing heavy: import torch inside
methods, or for type checking only. If a hook raises an exception or yields something wrong, `polyprune plugins list`
shows that, and the other plugins still work. The protocols that an implementation has to meet are in
`polyprune_core.plugins.contracts`.

Symbols in shapes: U units, K masks, P parameters of a policy, N calibration windows of T tokens each.
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
    """Yields granularities: each says which entries of the model's axes are kept or removed together, as one unit.

    An implementation has one method:

        groups(layout: ModelLayout) -> Sequence[UnitGroup]

    It returns all units, one `UnitGroup` for each kind and layer, in layer order. Unit i of a group owns the entries
    [i * n, (i + 1) * n) of each axis of the group, where n is the number of entries per unit that the group states for
    that axis. The units of a group must own every entry of each axis that the group names, and removing a unit must
    remove at least one parameter. Users join granularities with +, as in `head+channel`.

    PluginError is raised if a group names an axis that the model does not have, leaves entries to no unit, has units
    that own nothing, or owns axes of another layer. ConfigError is raised if two joined granularities own the same
    axis.

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
    """Yields initializers, which users call metrics: each scores how much every unit of the dense model matters.

    An implementation has one method:

        score(model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor

    It returns finite floating-point scores (U,) in the order of `space`; a higher score means keep. The scores have no
    fixed unit of measurement, because a selection only ranks them, and `--scale` makes them comparable across layers.
    `calibration` has the text (`windows`, (N, T) int64), the moments of module inputs, the gradients of the mean loss
    in nats per token, and a random generator for the metric alone (`rng`). `MaskSpace.sum_weights`, `sum_columns` and
    `sum_entries` add up values over what each unit owns.

    The method must leave the model as it found it: weights, hooks and training flags. PluginError is raised if it does
    not, if it draws from a global random generator, or if it returns something else. The cells of that metric then
    fail, and the other cells still run. A metric that gives every weight an importance is shorter as a plain function:
    see `polyprune_core.initializer`.

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
    """Yields search policies: each says how parameters become masks, and how the masks stay within the budget.

    An implementation has one method, and declares the defaults of its searches:

        optimizer: "sgd" or "adam", learning_rate: float, scope: "kind", "global" or "layer", independent_units: bool
        bind(given: PolicyStart) -> BoundPolicy

    `bind` is given the units, a metric's scores and the budget. It returns an object with six methods, all about
    parameters (P,) float32:

    - `start()` returns the first parameters.
    - `policy(parameters, sparsity, progress)` returns the distribution of masks.
    - `gradient(policy, gradient)` converts a gradient by the parameters of that distribution to one by the (P,) here.
    - `fisher(policy)` returns the diagonal of the Fisher information, by which a step may be divided.
    - `project(parameters, sparsity)` brings the parameters back within the budget.
    - `ranking(parameters)` returns (U,): the final selection keeps the units with the highest numbers.

    `independent_units` is True if every unit is drawn independently with its own keep probability, and these
    probabilities are the parameters of the `Policy` that is returned. Some estimators need such a policy.

    PluginError is raised if a vector is not float32 or not finite, and if a keep probability is not between 0 and 1.

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
    """Yields estimators: each estimates the gradient of the expected loss from masks and their losses.

    An implementation has two methods, and declares how it may be used:

        sample(policy: Policy, num_masks: int, rng: torch.Generator) -> MaskBatch
        gradient(policy: Policy, batch: MaskBatch, losses: Tensor, state: State) -> tuple[Tensor, State]
        min_masks: int, mask_multiple: int, unbiased: bool, precondition: str | None

    `sample` draws K = `num_masks` masks (K, U) bool that keep unit i with probability `policy.keep_prob[i]`. It may
    draw from `rng` only. `gradient` is given `losses` (K,) float32, the mean next-token loss in nats under each mask.
    It returns the estimate (P,) float32 of d E[loss] / d policy.parameters, and a state of numbers and tensors that is
    given to the next step. The state is None at the first step.

    The parameters of the default policy are not keep probabilities: P differs from U, and the units are not drawn
    independently. `policy.sample` draws masks from any policy, and `policy.score_function(batch)` returns the gradients
    (K, P) of log p(mask) for any policy. A formula such as psi = (m - s) / (s (1 - s)), with s = policy.keep_prob,
    holds for independent units only. An estimator with such a formula declares `independent_units = True`, and its
    users add `--policy probabilities`, or another policy that draws units independently.

    ConfigError is raised if the user asks for fewer masks than `min_masks`, or for a number of masks that is no
    multiple of `mask_multiple`. PluginError is raised if masks or gradients have another shape, and if a number is not
    finite.

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
    """Yields repairs: each changes the weights that stay, after it is decided which units go.

    An implementation has one method:

        repair(pruned: PrunedModel, calibration: Calibration) -> Mapping[str, Tensor]

    It returns new values of parameters, under their names in the dense model. A value has the shape that the pruned
    model has of that parameter (`pruned.shapes()`). It may also return a bias for a reader that has none
    (`pruned.possible_biases()`). Parameters that it does not name stay as they are.

    `pruned.cut_readers()` returns the modules that lost input features, with their dense weights and the features that
    stay. Each expert of a mixture is a reader of its own; it is `routed` and cannot have a bias. `calibration` has the
    text and the `moments` of each reader's inputs in the dense model, and it counts every pass over the text.
    `calibration.windows` are the windows of `--repair-samples`, however many the metric saw.

    A repair that adds biases declares `adds_biases = True`, as a property if that depends on an option. A format that
    cannot hold such biases is then refused before the search. A repair that starts from the result of another repair
    names that one in `start`.

    A repair that fits weights to the text puts "mix" in its provider's `needs`. A repair that back-propagates puts
    "gradients" there; a comparison then has a row of the dense model after the same training. A repair that trains for
    long keeps its state with `calibration.save`, and reads it back after an interruption with `calibration.saved`.

    The method must leave the dense model as it found it. PluginError is raised if it does not, if it uses a global
    random generator, and if a value has another shape, an unknown name, or numbers that are not finite.

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
    """Yields exporters: each writes a pruned model to a folder in one format, and reads it back.

    An implementation has two methods:

        export(pruned: PrunedModel, out_dir: Path) -> ExportReport
        load(path: Path, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False) -> LoadedModel

    `export` writes into the existing, empty folder `out_dir` and nowhere else. The files must not name a path of this
    machine, and the dense model must stay as it is. The weights that are written include what a repair changed
    (`pruned.updates`); `pruned.state_dict()` and `pruned.build()` include it already. The report that is returned has
    the SHA-256 of every file, the size in bytes, the number of parameters, and `reload`: Python code that leaves the
    model in a variable `model`, where the name DIR stands for the path of the folder.

    `load` reads the folder back as a model that is ready to run: in eval mode, without gradients and without a cache.
    The perplexity that users are shown is measured on the model that `load` returns. `trust_remote_code` says whether
    the user allows code that comes with the dense model to run.

    An exporter may declare more. `check(base: LoadedModel)` raises ModelError if no smaller form of a model can be
    written; it is called before anything is scored. `legal_shapes(layout: ModelLayout) -> LegalShapes` says which
    shapes the format can hold, and whether it can hold biases that a repair adds; the conformance kit then tries no
    other shapes. `runtime() -> Runtime` names the program in which `export --verify` runs the files. `rounding` is the
    largest relative error that the format makes in a weight. Anything else that a format cannot do is declared in the
    provider's `xfail`, for instance that it writes a dense checkpoint with zeros in place of removed units.

    PluginError is raised if `export` or `load` returns something else. The output folder then does not appear.

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
