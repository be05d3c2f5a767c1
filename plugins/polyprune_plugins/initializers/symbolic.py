"""Symbolic: scores weights by an expression that you write, and sums it over the weights of a unit.

An expression may use W, the weight matrix; X, the root mean square of each input feature (1 for a bias); G, the
gradient of the mean loss over the calibration text; and S, the root mean square of the gradients of its windows. It may
use numbers, + - * / **, and the functions abs, sqr, sqrt, log, exp, tanh, norm, mms (scales a matrix to between 0 and
1) and zsn (standardises it).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import add, mul, neg, sub, truediv
from typing import TYPE_CHECKING, Any, Literal

from polyprune_core import ConfigError, Initializer, Provider, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polyprune_core import Calibration, MaskSpace

NAMED = {"pruner-zero": "abs(W * W) * mms(S)", "wanda": "abs(W) * X", "taylor": "abs(W * G)"}
VARIABLES = ("W", "X", "G", "S")
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: add,
    ast.Sub: sub,
    ast.Mult: mul,
    ast.Div: truediv,
    ast.Pow: pow,
    ast.USub: neg,
}
FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "abs": lambda x: abs(x),
    "sqr": lambda x: x * x,
    "sqrt": lambda x: abs(x) ** 0.5,
    "log": lambda x: (x.abs() + 1e-3).log(),
    "exp": lambda x: x.clamp(max=80).exp(),
    "tanh": lambda x: x.tanh(),
    "norm": lambda x: x.norm(),
    "mms": lambda x: (x - x.min()) / (x.max() - x.min()).clamp(min=1e-38),
    "zsn": lambda x: (x - x.mean()) / x.std().clamp(min=1e-38),
}
LONGEST = 500


@dataclass(frozen=True)
class Symbolic:
    """Scores units by an expression.

    Options:
        expression: an expression such as abs(W)*X, or the name of one: `wanda` is abs(W) * X, `taylor` is abs(W * G),
            and `pruner-zero` is abs(W * W) * mms(S), which Pruner-Zero found (arXiv 2406.02924, released code).
        matrices: `all` matrices that a unit owns a part of, or the `readers` only.
    """

    expression: str = "pruner-zero"
    matrices: Literal["all", "readers"] = "all"

    def __post_init__(self) -> None:
        if not self.tree_names & set(VARIABLES):
            raise refusal(self.expression, "names none of W, X, G and S")

    @property
    def tree(self) -> ast.expr:
        """The expression, checked."""
        return parsed(NAMED.get(self.expression, self.expression))

    @property
    def tree_names(self) -> set[str]:
        """Variables and functions of the expression."""
        return {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}

    def score(self, model: nn.Module, space: MaskSpace, calibration: Calibration) -> Tensor:
        axes = [space.layout.axis[name] for name in space.axes]
        cuts = [cut for axis in axes for cut in (axis.cuts if self.matrices == "all" else (axis.reader_cut,))]
        wanted = self.tree_names
        modules = [cut.parameter.rpartition(".")[0] for cut in cuts]
        norms = calibration.input_norms(modules) if "X" in wanted else {}
        gradient, square = calibration.gradients(squares="S" in wanted) if wanted & {"G", "S"} else ({}, {})

        def importance(parameter: str) -> Tensor:
            weight = model.get_parameter(parameter).detach().float()
            values = {"W": weight, "G": gradient.get(parameter), "X": weight.new_ones(1)}
            if weight.dim() > 1 and norms:
                values["X"] = norms[parameter.rpartition(".")[0]]
            if "S" in wanted:
                values["S"] = square[parameter].sqrt()
            found = value_of(self.tree, values)
            if not bool(found.isfinite().all()):
                raise refusal(self.expression, f"is not finite for {parameter}")
            whole: Tensor = found.expand_as(weight)
            return whole

        if self.matrices == "all":
            return space.sum_weights(importance)
        names = {axis.name: axis.reader_cut for axis in axes}

        def columns(axis: str, _: Tensor) -> Tensor:
            return importance(names[axis].parameter).movedim(names[axis].dim, -1).double().sum(dim=0)

        return space.sum_columns(model, columns)


def refusal(expression: str, what: str) -> ConfigError:
    """Returns the error for an expression, with what may stand in one."""
    return ConfigError(
        f"symbolic: expression={expression} {what}; give {', '.join(NAMED)}, or one of {', '.join(VARIABLES)} with "
        f"numbers, + - * / **, brackets and {', '.join(FUNCTIONS)}, such as abs(W)*X."
    )


def parsed(expression: str) -> ast.expr:
    """Returns the tree of an expression; raises ConfigError for anything but numbers, variables and calls by name."""
    try:
        tree = ast.parse(expression if len(expression) <= LONGEST else "", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise refusal(expression, "is no expression") from error
    check(tree, expression)
    return tree


def check(node: ast.expr, expression: str) -> None:
    """Raises ConfigError for what has no meaning here."""
    match node:
        case ast.Constant(value=bool()) | ast.Name():
            known = isinstance(node, ast.Name) and node.id in VARIABLES
        case ast.Constant():
            known = isinstance(node.value, int | float) and abs(node.value) < 1e6
        case ast.BinOp():
            known = type(node.op) in OPERATORS
            check(node.left, expression)
            check(node.right, expression)
        case ast.UnaryOp():
            known = type(node.op) in OPERATORS
            check(node.operand, expression)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
            known = name in FUNCTIONS
            check(argument, expression)
        case _:
            known = False
    if not known:
        raise refusal(expression, f"has {ast.unparse(node)!r}")


def value_of(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Returns what a checked expression comes to."""
    match node:
        case ast.Name():
            return values[node.id]
        case ast.BinOp():
            return OPERATORS[type(node.op)](value_of(node.left, values), value_of(node.right, values))
        case ast.UnaryOp():
            return -value_of(node.operand, values)
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return FUNCTIONS[name](tensor(value_of(argument, values), values))
        case ast.Constant():
            return node.value
    raise AssertionError(ast.dump(node))


def tensor(value: Any, values: Mapping[str, Any]) -> Tensor:
    """Returns a number as a tensor, as functions take it."""
    found: Tensor = values["W"].new_tensor(float(value)) if isinstance(value, int | float) else value
    return found


@hookimpl
def polyprune_initializers() -> Iterator[Provider[Initializer]]:
    yield Provider(
        "symbolic",
        "any expression of weight, input norm and gradient",
        Symbolic,
        needs=frozenset({"calibration", "gradients"}),
        reference="Pruner-Zero, arXiv 2406.02924; released code",
    )
