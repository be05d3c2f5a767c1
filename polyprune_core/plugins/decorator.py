"""A metric as a plain function of a weight and its statistics, which returns the importance of each entry.

    @initializer("mean-contribution", summary="size of what each weight adds to its output")
    def mean_contribution(weight, input_norm, power=2.0):
        return (weight.abs() * input_norm) ** power

The entry point `mean-contribution = "module:mean_contribution"`, or the module alone, registers it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from polyprune_core.plugins.contracts import Initializer, Provider

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core.evaluation.calibration import Calibration
    from polyprune_core.pruning.space import MaskSpace

F = TypeVar("F", bound="Callable[..., Tensor]")
# What a function may ask for, and what that needs.
MEASURED: dict[str, frozenset[str]] = {
    "weight": frozenset(),
    "input_norm": frozenset({"calibration"}),
    "gradient": frozenset({"calibration", "gradients"}),
}
MARK = "polyprune_provider"


def initializer(
    name: str,
    *,
    summary: str = "",
    reference: str = "",
    matrices: Literal["all", "readers"] = "all",
    xfail: Mapping[str, str] | None = None,
) -> Callable[[F], F]:
    """Returns a decorator that registers a function of weights as an initializer, and leaves the function as it is.

    The function is called once for every parameter that a unit cuts: a matrix (out, in) or a bias (out,). It returns
    the importance of each entry, in the same shape; a higher importance means keep. The score of a unit is the sum over
    the entries that it owns. The names of the function's arguments say what it is given, and nothing else is computed:

        weight: the parameter in float32, a copy that may be changed.
        input_norm: (in,) float32, the root mean square of each input feature over the calibration tokens; 1 for a bias.
        gradient: the gradient of the mean loss in nats per token over the calibration text, in the shape of the weight.
            It needs back-propagation.

    All other arguments must have defaults. They are the options of the metric, which users set as `name:option=value`.
    The type of an option comes from its annotation, or else from its default. Gradients are off inside the function,
    and all tensors are on the model's device.

    Args:
        name: what users type to choose the metric: lower-case words joined by dashes.
        summary: one line for `polyprune plugins list`; by default the first line of the function's docstring.
        reference: paper and equation that the metric implements.
        matrices: "all" parameters that a unit cuts, or the "readers" only. Those are the columns of the attention
            output projection and of the MLP's down projection, as in Wanda-sp.
        xfail: checks of the conformance kit that this metric is right to fail, each with the reason.

    Raises:
        TypeError: an argument of the function has none of these three names, and no default.
    """

    def register(function: F) -> F:
        made = _factory(function, matrices)
        line = summary or (inspect.getdoc(function) or "").partition("\n")[0]
        wanted = [MEASURED[measured] for measured in _parameters(function) if measured in MEASURED]
        provider: Provider[Initializer] = Provider(
            name, line, made, frozenset().union(*wanted), reference, dict(xfail or {})
        )
        setattr(function, MARK, provider)
        return function

    return register


def provider_of(function: object) -> Provider[Initializer] | None:
    """Returns what `initializer` registered a function as, or None."""
    found = vars(function).get(MARK) if inspect.isfunction(function) else None
    return found if isinstance(found, Provider) else None


def providers_in(plugin: object) -> list[Provider[Initializer]]:
    """Returns the providers of a registered function, or of those that a module or package defines, in their order."""
    if not isinstance(plugin, ModuleType):
        found = [provider_of(plugin)]
    else:
        functions = {id(value): value for value in vars(plugin).values() if inspect.isfunction(value)}
        own = [f for f in functions.values() if f"{f.__module__}.".startswith(f"{plugin.__name__}.")]
        found = [provider_of(function) for function in own]
    return [provider for provider in found if provider is not None]


@dataclass(frozen=True)
class FunctionInitializer:
    """Scores units by a function of their weights; `options` are its further arguments."""

    function: Callable[..., Tensor]
    matrices: str
    options: tuple[tuple[str, Any], ...]

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        """Returns (U,) sums of the function's values over the entries that each unit owns."""
        import torch

        wanted = _parameters(self.function).keys() & MEASURED.keys()
        axes = [space.layout.axis[name] for name in space.axes]
        cuts = [cut for axis in axes for cut in (axis.cuts if self.matrices == "all" else (axis.reader_cut,))]
        gradients = calibration.gradients()[0] if "gradient" in wanted else {}
        modules = [cut.parameter.rpartition(".")[0] for cut in cuts] if "input_norm" in wanted else []
        norms = calibration.input_norms(modules) if modules else {}

        def importance(parameter: str) -> Tensor:
            weight = model.get_parameter(parameter).detach().to(torch.float32, copy=True)
            measured = {
                "weight": weight,
                "input_norm": norms.get(parameter.rpartition(".")[0]) if weight.dim() > 1 else weight.new_ones(1),
                "gradient": gradients.get(parameter),
            }
            found = self.function(**{name: measured[name] for name in wanted}, **dict(self.options))
            if not isinstance(found, torch.Tensor) or found.shape != weight.shape:
                got = tuple(found.shape) if isinstance(found, torch.Tensor) else f"a {type(found).__name__}"
                raise ValueError(f"for {parameter} it returned {got}; one number for each entry, {tuple(weight.shape)}")
            return found

        with torch.no_grad():
            if self.matrices == "all":
                return space.sum_weights(importance)
            cut_of = {axis.name: axis.reader_cut for axis in axes}

            def columns(axis: str, _: Tensor) -> Tensor:
                cut = cut_of[axis]
                return importance(cut.parameter).movedim(cut.dim, -1).sum(dim=0, dtype=torch.float64)

            return space.sum_columns(model, columns)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


def _factory(function: Callable[..., Tensor], matrices: str) -> Callable[..., Initializer]:
    """Returns the factory whose signature is the function's options."""
    if matrices not in ("all", "readers"):
        raise TypeError(f"matrices={matrices!r}; 'all' or 'readers' is needed.")
    signature = inspect.Signature([_option(function, p) for p in _parameters(function).values() if _is_option(p)])

    @functools.wraps(function)
    def make(**options: Any) -> Initializer:
        bound = signature.bind(**options)
        bound.apply_defaults()
        return FunctionInitializer(function, matrices, tuple(bound.arguments.items()))

    make.__signature__ = signature  # type: ignore[attr-defined]
    make.__annotations__ = {name: option.annotation for name, option in signature.parameters.items()}
    return make


def _is_option(parameter: inspect.Parameter) -> bool:
    """Tells options from what is measured.

    Raises:
        TypeError: it is neither.
    """
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise TypeError(f"parameter {str(parameter)!r} has no name that it could be given by.")
    if parameter.name in MEASURED:
        return False
    if parameter.default is parameter.empty:
        raise TypeError(
            f"parameter {parameter.name!r} is not one of {', '.join(MEASURED)}, and an option needs a default."
        )
    return True


def _option(function: Callable[..., Any], parameter: inspect.Parameter) -> inspect.Parameter:
    declared = parameter.annotation
    if declared is parameter.empty:
        declared = str if parameter.default is None else type(parameter.default)
    elif isinstance(declared, str):
        declared = eval(declared, function.__globals__)
    return parameter.replace(kind=parameter.KEYWORD_ONLY, annotation=declared)
