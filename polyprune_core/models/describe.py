"""Reads a live model's layout with what its family says; shapes are enough, so it may be on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from polyprune_core.errors import ModelError
from polyprune_core.models.families import Family, family_of
from polyprune_core.models.layout import Axis, Cut, ModelLayout, Stack

# What a second way to divide a sublayer takes from the first.
OF_THE_SUBLAYER = {"module", "within", "has", "lacks", "norm", "adds", "reader", "entry_width", "whole", "outputs"} | {
    "returns",
    "whole_where",
    "stack",
}


def describe(model: Any) -> ModelLayout:
    """Returns the layout of a causal language model.

    Raises:
        ModelError: the family is unknown, or a module that it names is missing.
    """
    family = family_of(model_type_of(model))
    for setting, needed in family.requires.items():
        found = getattr(family.decoder(model.config), setting, None)
        if found != needed:
            raise ModelError(
                f"this {model_type_of(model)} model has {setting}={found}; only those with {needed} can be cut."
            )
    layers = _find(model, family.layers)
    if not isinstance(layers, nn.ModuleList):
        raise ModelError(f"this {model_type_of(model)} model has no layers {family.layers}, as {_told(family)} says.")
    if not layers:
        raise ModelError(f"this {model_type_of(model)} model has 0 layers, so that nothing of it can be removed.")
    axes: list[Axis] = []
    views: list[Axis] = []
    for index, layer in enumerate(layers):
        for kind in family.axes:
            says = _filled(family, kind)
            if _applies(layer, says):
                described = _Sublayer(model, family, kind, says, index).axis()
                (views if described.of else axes).append(described)
    return ModelLayout(
        family=model_type_of(model),
        layers=family.layers,
        num_layers=len(layers),
        axes=tuple(_own(model, axis, axes) for axis in axes),
        total_parameters=sum(p.numel() for p in model.parameters()),
        views=tuple(views),
        mixers=tuple(
            f"{name} ({what})" for name, what in family.mixers.items() if any(_has(layer, name) for layer in layers)
        ),
        fixed=tuple(
            index
            for index, layer in enumerate(layers)
            if family.layers_by_number or any(_has(layer, name) for name in family.mixers)
        ),
    )


def model_type_of(model: Any) -> str:
    """Returns the model type that a family knows it by; of polyprune's own classes that of the dense model."""
    return str(getattr(model.config, "base_model_type", None) or model.config.model_type)


def _told(family: Family) -> str:
    return f"family {family.name!r} of {family.source}"


def _filled(family: Family, kind: str) -> dict[str, Any]:
    """Returns what a family says of a kind, with what it takes from the one it is `of`."""
    says = dict(family.axes[kind])
    base = {key: value for key, value in family.axes.get(says.get("of", ""), {}).items() if key in OF_THE_SUBLAYER}
    return {"norm": [], "entry_width": 1, "outputs": 1, "cache": 0, **base, **says}


def _applies(layer: nn.Module, says: Mapping[str, Any]) -> bool:
    sublayer = _find(layer, says["module"])
    if not isinstance(sublayer, nn.Module):
        return False
    present = "has" not in says or _has(sublayer, says["has"])
    return present and not ("lacks" in says and _has(sublayer, says["lacks"]))


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(_find(module, name), (nn.Module, nn.Parameter))


def _find(owner: Any, name: str) -> Any:
    """Returns what a dotted name leads to, None where there is nothing; "." is the owner itself."""
    for part in filter(None, name.split(".")):
        owner = getattr(owner, part, None)
    return owner


def _own(model: nn.Module, axis: Axis, axes: list[Axis]) -> Axis:
    """Returns the axis without the parameters of other axes whose sublayers lie in its own."""
    inner = [other.module for other in axes if other.module.startswith(f"{axis.module}.")]
    return replace(axis, module_parameters=axis.module_parameters - sum(_numel(_find(model, name)) for name in inner))


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@dataclass
class _Rows:
    """A parameter whose dimension `dim` belongs to entries: parts (start, length).

    `beside`: how many entry widths that belong to none come after those of every block of entries.
    """

    parameter: str
    dim: int
    parts: list[tuple[int, int]]
    beside: int = 0


class _Sublayer:
    """What a family says of one sublayer, looked up in a model."""

    def __init__(self, model: nn.Module, family: Family, kind: str, says: dict[str, Any], layer: int) -> None:
        self.model, self.family, self.kind, self.says, self.index = model, family, kind, says, layer
        self.prefix = f"{family.layers}.{layer}"
        self.layer = model.get_submodule(self.prefix)
        self.name = f"{self.prefix}.{says['module']}"
        self.path = self._path(says.get("within", says["module"]))
        self.home = model.get_submodule(self.path)
        width = says["entry_width"]
        self.width = width if isinstance(width, int) else self._number(width)

    def axis(self) -> Axis:
        says, reader = self.says, self.says.get("reader")
        whole = self._is_whole()
        size = 1 if whole else self._count(says["counted_on"])
        blocks = 1 if whole else self._blocks()
        owned = [*self._rows(), *self._scales()]
        if reader:
            linear = self._linear(reader)
            dim = in_dim(linear)
            owned.append(_Rows(f"{self._path_of(reader)}.weight", dim, [(0, linear.weight.shape[dim])]))
        cuts = [self._cut(rows, start, length, size, blocks) for rows in owned for start, length in rows.parts]
        norms = [f"{self.prefix}.{name}" for name in self._present(self.layer, says["norm"])]
        shared = tuple(f"{n}.{p}" for n in norms for p, _ in self.model.get_submodule(n).named_parameters())
        entry = sum(self._owned(cut) for cut in cuts)
        inside = _numel(self.model.get_submodule(self.name))
        adds = [f"{self.prefix}.{name}" for name in self._present(self.layer, [says["adds"]])] if "adds" in says else []
        of = says.get("of", "")
        return Axis(
            name=f"layers.{self.index}.{self.kind}",
            kind=self.kind,
            layer=self.index,
            size=size,
            module=self.name,
            reader=self._path_of(reader) if reader else None,
            cuts=tuple(cuts),
            module_only=shared,
            entry_parameters=entry,
            module_parameters=inside - entry * size + sum(self.model.get_parameter(name).numel() for name in shared),
            outputs=says["outputs"],
            config_counts=tuple((self._field(f), self._count(n) // size) for f, n in says.get("config", {}).items()),
            cached_values=says["cache"] * self.width * (self._count(says["counted_on"]) if whole else 1),
            of=f"layers.{self.index}.{of}" if of else "",
            within=None if self.path == self.name else self.path,
            adds=adds[0] if adds else None,
            router=self._path_of(says["router"]) if "router" in says else None,
            experts=self._path_of(says["experts"]) if "experts" in says else None,
            scaled=self._path_of(says["scaled"]) if "scaled" in says else None,
            at_least=self._number(says.get("at_least", says.get("chosen", 0))) * blocks,
            chosen=self._number(says.get("chosen", 0)),
            multiple=says.get("multiple", 1),
            blocks=blocks,
            whole=whole,
            returns=says.get("returns"),
            attributes=tuple(f"{self.path}.{name}" for name in self._present(self.home, says.get("attributes", ()))),
            capped=tuple(f"{self.path}.{name}" for name in self._present(self.home, says.get("capped", ()))),
            stack=self._stack(cuts) if "stack" in says else None,
            buffers=tuple(f"{self.path}.{name}" for name in self._present(self.home, says.get("buffers", ()))),
        )

    def _field(self, name: str) -> str:
        """Returns what the configuration itself calls a field, which it may answer to by other names."""
        config: Any = self.model.config
        config = getattr(config, self.family.text) if self.family.text else config
        found: str = (getattr(config, "attribute_map", None) or {}).get(name, name)
        return found

    def _path(self, name: str) -> str:
        return f"{self.prefix}.{name}" if name != "." else self.prefix

    def _path_of(self, name: str) -> str:
        return f"{self.path}.{name}"

    def _stack(self, cuts: list[Cut]) -> Stack:
        name = self._path_of(self.says["stack"])
        found = [cut for cut in cuts if cut.parameter == name]
        parameter = _find(self.home, self.says["stack"])
        if not found or not isinstance(parameter, nn.Parameter) or parameter.dim() != 3:
            raise self._error(f"{self.says['stack']} is no parameter of three dimensions among its rows")
        return Stack(name, parameter.shape[0], parameter.shape[2], found[0].dim)

    def _is_whole(self) -> bool:
        config = self.family.decoder(self.model.config)
        return any(_has(self.home, name.rstrip("?")) for name in self.says.get("whole", ())) or any(
            getattr(config, name, None) == value for name, value in self.says.get("whole_where", {}).items()
        )

    def _blocks(self) -> int:
        """Returns the number of blocks that keep equally many entries; a name with ? may stand for nothing."""
        name = self.says.get("blocks", "")
        if not name or (name.endswith("?") and not _find(self.home, name.rstrip("?"))):
            return 1
        return self._count(name.rstrip("?"))

    def _cut(self, rows: _Rows, start: int, length: int, size: int, blocks: int) -> Cut:
        gap = rows.beside * self.width
        length -= gap * blocks
        share, rest = divmod(length, size)
        if rest or (share > self.width and share % self.width):
            raise self._error(
                f"the {length} rows of {rows.parameter} cannot be shared out among {size} entries of {self.width}"
            )
        return Cut(rows.parameter, rows.dim, start, share, size // blocks if gap else 1, gap)

    def _owned(self, cut: Cut) -> int:
        parameter = self.model.get_parameter(cut.parameter)
        return parameter.numel() // parameter.shape[cut.dim] * cut.width

    def _rows(self) -> Iterator[_Rows]:
        for row in self.says["rows"]:
            told = row if isinstance(row, dict) else {"name": row}
            name = told["name"].rstrip("?")
            target = _find(self.home, name)
            if target is None and told["name"].endswith("?"):
                continue
            if isinstance(target, nn.Parameter):
                tensors = [(self._path_of(name), told.get("dim", 0), target)]
            else:
                linear = self._linear(name)
                tensors = [
                    (f"{self._path_of(name)}.{part}", 1 - in_dim(linear) if p.dim() > 1 else 0, p)
                    for part, p in linear.named_parameters()
                ]
            for parameter, dim, tensor in tensors:
                parts = self._parts(told, tensor.shape[dim], name)
                own = [part for i, part in enumerate(parts) if i in told.get("owned", [i])]
                yield _Rows(parameter, dim, own, told.get("beside", 0))

    def _parts(self, told: Mapping[str, Any], length: int, name: str) -> list[tuple[int, int]]:
        parts = told.get("parts", 1)
        lengths = [length // parts] * parts if isinstance(parts, int) else [self._count(p) * self.width for p in parts]
        if sum(lengths) != length:
            raise self._error(f"{name} has {length} rows, and its parts make up {sum(lengths)}")
        return [(sum(lengths[:i]), part) for i, part in enumerate(lengths)]

    def _scales(self) -> Iterator[_Rows]:
        for name in self._present(self.home, self.says.get("scales", ())):
            for part, parameter in _find(self.home, name).named_parameters():
                yield _Rows(f"{self._path_of(name)}.{part}", 0, [(0, parameter.shape[0])])

    def _count(self, name: str) -> int:
        """Returns a number of entry widths: of a linear's rows, of the reader's columns, or an attribute."""
        target = _find(self.home, name)
        if is_linear(target):
            dim = in_dim(target) if name == self.says.get("reader") else 1 - in_dim(target)
            return int(target.weight.shape[dim]) // self.width
        return self._number(name)

    def _number(self, name: str | int) -> int:
        value = _find(self.home, name) if isinstance(name, str) else name
        if not isinstance(value, int):
            raise self._error(f"it has no number {name}")
        return value

    def _linear(self, name: str) -> Any:
        found = _find(self.home, name)
        if not is_linear(found):
            raise self._error(f"it has no linear {name}")
        return found

    def _present(self, owner: nn.Module, names: Any) -> list[str]:
        """Returns the names that lead to something, without their question marks; raises ModelError for others."""
        found = []
        for name in names:
            bare = name.rstrip("?")
            if _find(owner, bare) is not None:
                found.append(bare)
            elif not name.endswith("?"):
                raise self._error(f"there is no {bare}")
        return found

    def _error(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path} of this {model_type_of(self.model)} model is not as {_told(self.family)} says (axes."
            f"{self.kind}): {what}. Give the model a family of its own: polyprune plugins new NAME --kind family."
        )


def is_linear(module: Any) -> bool:
    """Whether a module is a linear map with a weight (out, in) or, like Conv1D of transformers, (in, out)."""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Module) and isinstance(weight, Tensor) and weight.dim() == 2


def in_dim(linear: Any) -> int:
    """Returns the dimension of a linear map's weight that holds its input features."""
    return 0 if hasattr(linear, "nf") else 1
