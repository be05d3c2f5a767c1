"""What a model offers for cutting: axes that can be shortened, as plain data without tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from polyprune_core.errors import ModelError


def expert_of(name: str, number: int) -> str:
    """Returns what one expert is called of a mixture that an axis or a module names: NAME[number]."""
    return f"{name}[{number}]"


def split_expert(name: str) -> tuple[str, int | None]:
    """Returns the axis or module that a name means, and the number of the expert if it means one alone."""
    whole, _, number = name.partition("[")
    return whole, int(number.removesuffix("]")) if number else None


@dataclass(frozen=True)
class Cut:
    """Entry i of an axis owns [start + i * width, start + (i + 1) * width) of dimension `dim` of one parameter.

    Several cuts of one parameter, each with its own `start`, are parts of a fused projection. With a `gap`, that many
    rows which belong to no entry come after every `run` entries.
    """

    parameter: str
    dim: int
    start: int
    width: int
    run: int = 1
    gap: int = 0


@dataclass(frozen=True)
class Stack:
    """Linear maps in one `parameter` (maps, out, width), the weighted outputs of which are added up.

    They are one map of maps * width features, those of the first map first. Entries of an axis are maps where `dim` is
    0, and where it is 2 the features at one place in all of them.
    """

    parameter: str
    maps: int
    width: int
    dim: int

    @property
    def module(self) -> str:
        """The module that runs the maps, on those tokens that each is chosen for."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Axis:
    """A dimension shared by several parameters of one sublayer that can be shortened without touching anything else.

    `reader` is the linear module that takes the entries in, if there is one; its weight is among the `cuts`, which may
    cut a parameter several times, along one dimension. `entry_parameters` is what one entry costs; `module_parameters`
    is what goes besides when the whole sublayer goes (its norm). `config_counts` are (configuration field, count per
    entry). `cached_values` is how many numbers one entry adds to the KV cache for every token.

    `of` names the axis that this one divides a second time, in another way: only one of the two is cut at a time.
    Where `router` names a module, it chooses among the entries, and without one of them it chooses among the others;
    `experts` is then the module that is given tokens, choices and weights, and `stack` what reads the entries in place
    of a `reader`; `chosen` entries run for a token, or all where that is 0. `scaled` is a parameter that is multiplied
    by gates where no module reads the axis. At least `at_least` entries are kept, in multiples of `multiple`, or the
    model's kernels do not run. `whole`: the entries are one, because something in the sublayer looks at all of them at
    once. The entries are in `blocks` of equal size, each of which has to keep as many as the others, and at least
    `at_least`. `returns`: the argument, by place, that the sublayer adds its output to by itself. `attributes` count
    entries while the sublayer runs, and `capped` may not exceed their number. `buffers` hold a number for each entry
    along their first dimension, and are no parameters. Without `config_counts` a layer is resized after it is made.
    """

    name: str
    kind: str
    layer: int
    size: int
    module: str
    reader: str | None
    cuts: tuple[Cut, ...]
    module_only: tuple[str, ...]
    entry_parameters: int
    module_parameters: int
    outputs: int
    config_counts: tuple[tuple[str, int], ...]
    cached_values: int = 0
    of: str = ""
    within: str | None = None
    adds: str | None = None
    router: str | None = None
    experts: str | None = None
    scaled: str | None = None
    at_least: int = 0
    chosen: int = 0
    multiple: int = 1
    blocks: int = 1
    whole: bool = False
    returns: int | None = None
    attributes: tuple[str, ...] = ()
    capped: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    stack: Stack | None = None

    @property
    def runs_in(self) -> str:
        """The module around whose forward the axis is cut."""
        return self.module if self.within is None else self.within

    @property
    def added(self) -> str:
        """The module whose output is added to the residual stream."""
        return self.adds or self.module

    @cached_property
    def reader_cut(self) -> Cut:
        """The cut of the reader's weight; its dimension is that of the input features.

        Raises:
            ModelError: nothing reads the axis.
        """
        found = [cut for cut in self.cuts if cut.parameter == f"{self.reader}.weight"]
        if not found:
            raise ModelError(f"no linear module reads {self.name}, so what it takes in cannot be measured or gated.")
        return found[0]

    @property
    def reader_module(self) -> str:
        """The name of the module that reads the axis; raises ModelError where nothing does."""
        if self.stack is not None:
            return self.stack.module
        return self.reader_cut.parameter.removesuffix(".weight")

    @property
    def is_read(self) -> bool:
        """Whether a linear module, or a stack of linear maps, takes the entries in."""
        return self.reader is not None or self.stack is not None

    @property
    def reader_width(self) -> int:
        """Input features of the reader that belong to one entry."""
        return self.reader_cut.width


@dataclass(frozen=True)
class ModelLayout:
    """All axes of a model, layer by layer; `layers` is the dotted path of its decoder layers.

    `views` are second ways to divide what an axis divides. `mixers` name what the layers hold that cannot be cut.
    `fixed` are layers that are never removed: those which hold a mixer, or all where a layer's number says what it is.
    """

    family: str
    layers: str
    num_layers: int
    axes: tuple[Axis, ...]
    total_parameters: int
    views: tuple[Axis, ...] = ()
    mixers: tuple[str, ...] = ()
    fixed: tuple[int, ...] = ()

    @cached_property
    def axis(self) -> dict[str, Axis]:
        """Axes and views by name."""
        return {axis.name: axis for axis in (*self.axes, *self.views)}

    @property
    def cached_values(self) -> int:
        """Numbers in the KV cache for every token and sequence."""
        return sum(axis.size * axis.cached_values for axis in self.axes)

    def divided(self, names: Iterable[str]) -> tuple[Axis, ...]:
        """The axes, and in place of each that one of the named views divides another way, that view."""
        instead = {self.axis[name].of: self.axis[name] for name in names if self.axis[name].of}
        return tuple(instead.get(axis.name, axis) for axis in self.axes)

    def of_kind(self, *kinds: str) -> list[Axis]:
        """Axes and views of the given kinds, in layer order."""
        found = [axis for axis in self.axis.values() if axis.kind in kinds]
        return sorted(found, key=lambda axis: axis.layer)
