"""The axes of a model that can be shortened, as plain data without tensors."""

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
    """Says which part of one parameter belongs to each entry of an axis.

    Entry i owns the indices [start + i * width, start + (i + 1) * width) of dimension `dim`. A fused projection has
    several cuts of one parameter, each with its own `start`. If `gap` is not 0, then `gap` indices that belong to no
    entry follow after every `run` entries.
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
    """A dimension that several parameters of one sublayer share, and that can be shortened without other changes.

    An axis of kind "mlp" has one entry for each channel of an MLP, for example.

    Attributes:
        name: the axis' own name, such as `layers.0.mlp`.
        kind: what its entries are, such as "attention" or "mlp".
        layer: the number of the decoder layer, counted from 0.
        size: the number of entries.
        module: the sublayer. Its output is zero if no entry is left.
        reader: the linear module whose input features are the entries, or None. Its weight is among the `cuts`.
        cuts: which parts of which parameters belong to the entries.
        module_only: parameters that go only when the whole sublayer goes, such as its norm.
        entry_parameters: the number of parameters that one entry owns.
        module_parameters: the number of parameters in `module_only`.
        outputs: 1 if the sublayer returns a tensor, more if it returns a tuple of that length.
        config_counts: pairs of a configuration field and its count for each entry. If there are none, the modules of a
            layer are resized after the layer is made.
        cached_values: how many numbers one entry adds to the KV cache for every token.
        of: the name of the axis whose parameters this one divides in another way. Only one of the two is cut at a time.
        within: the module around whose forward the axis is cut, if that is not `module`.
        adds: the module whose output is added to the residual stream, if that is not `module`.
        router: the module that chooses among the entries, which are then experts. It chooses among those that are left.
        experts: the module that is given tokens, the experts chosen for each token, and their weights.
        scaled: a parameter that gates multiply, if no module reads the axis.
        at_least: the fewest entries that the model's code runs with; of every block if there are `blocks`.
        chosen: how many entries run for one token; 0 if all run.
        multiple: the number of kept entries has to be a multiple of this for the model's kernels to run.
        blocks: the number of blocks of equal size that the entries are in. All blocks have to keep equally many.
        whole: whether all entries stay or go together, because a part of the sublayer looks at all of them at once.
        returns: the place of the argument that the sublayer itself adds its output to, or None.
        attributes: attributes of modules that hold the number of entries while the sublayer runs.
        capped: attributes of modules that may not exceed the number of entries.
        buffers: tensors that are no parameters and have one number for each entry along their first dimension.
        stack: the linear maps that read the entries in place of a `reader`.
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
        """The name of the module around whose forward the axis is cut."""
        return self.module if self.within is None else self.within

    @property
    def added(self) -> str:
        """The name of the module whose output is added to the residual stream."""
        return self.adds or self.module

    @cached_property
    def reader_cut(self) -> Cut:
        """The cut of the reader's weight, along the dimension of its input features.

        Raises:
            ModelError: the axis has no reader.
        """
        found = [cut for cut in self.cuts if cut.parameter == f"{self.reader}.weight"]
        if not found:
            raise ModelError(
                f"no linear module reads {self.name}, so its entries can be neither measured nor gated; "
                "choose another granularity or metric."
            )
        return found[0]

    @property
    def reader_module(self) -> str:
        """The name of the module that reads the axis.

        Raises:
            ModelError: the axis has no reader.
        """
        if self.stack is not None:
            return self.stack.module
        return self.reader_cut.parameter.removesuffix(".weight")

    @property
    def is_read(self) -> bool:
        """Whether a linear module, or a stack of linear maps, reads the entries."""
        return self.reader is not None or self.stack is not None

    @property
    def reader_width(self) -> int:
        """The number of the reader's input features that belong to one entry."""
        return self.reader_cut.width


@dataclass(frozen=True)
class ModelLayout:
    """All axes of a model, layer by layer.

    Attributes:
        family: the name of the model's family.
        layers: the dotted path of the list of decoder layers within the model.
        num_layers: the number of decoder layers.
        axes: the axes in layer order.
        total_parameters: the number of parameters of the model, tied ones counted once.
        views: axes that divide the parameters of another axis in another way, such as single query heads.
        mixers: in plain words, the parts of layers that cannot be cut.
        fixed: the numbers of layers that are never removed as a whole. They hold a mixer, or the model's configuration
            says what a layer is by its number.
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
        """All axes and views by name."""
        return {axis.name: axis for axis in (*self.axes, *self.views)}

    @property
    def cached_values(self) -> int:
        """How many numbers the KV cache of the dense model holds for each token of a sequence."""
        return sum(axis.size * axis.cached_values for axis in self.axes)

    def divided(self, names: Iterable[str]) -> tuple[Axis, ...]:
        """Returns the axes, where each view in `names` replaces the axis whose parameters it divides."""
        instead = {self.axis[name].of: self.axis[name] for name in names if self.axis[name].of}
        return tuple(instead.get(axis.name, axis) for axis in self.axes)

    def of_kind(self, *kinds: str) -> list[Axis]:
        """Returns the axes and views of these kinds, in layer order."""
        found = [axis for axis in self.axis.values() if axis.kind in kinds]
        return sorted(found, key=lambda axis: axis.layer)
