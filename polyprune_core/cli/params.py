"""What options take, how a shell completes it, and an option that reads its default from the settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import rich_click as click
from click.shell_completion import CompletionItem

from polyprune_core.utils.files import user_path


class UserPath(click.Path):
    """A path, with ~ for the home folder."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Returns the path; a text that can name none is refused."""
        if isinstance(value, Path):
            return value
        try:
            return user_path(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


class CommaList(click.ParamType):  # type: ignore[type-arg]  # generic in newer clicks only
    """A comma-separated list; "none" is the empty one."""

    name = "LIST"

    def __init__(self, item: Callable[[str], Any] = str) -> None:
        self.item = item

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Returns the items as a tuple."""
        if isinstance(value, tuple):
            return value
        if value.strip().lower() == "none":
            return ()
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if not parts:
            self.fail(f"{value!r} lists nothing; write none for an empty list.", param, ctx)
        try:
            return tuple(self.item(part) for part in parts)
        except ValueError:
            kind = "whole numbers" if self.item is int else "numbers"
            self.fail(f"{value!r} is not a comma-separated list of {kind}.", param, ctx)


class TextList(CommaList):
    """A comma-separated list of texts; a file whose own name has a comma is one text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Returns the names of texts as a tuple."""
        is_file = isinstance(value, str) and user_path(value).is_file()
        return (value,) if is_file else super().convert(value, param, ctx)


class WidthsList(CommaList):
    """Several KIND=N,… with / between them."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Returns the texts as a tuple."""
        if isinstance(value, tuple):
            return value
        return tuple(part.strip() for part in value.split("/") if part.strip())


class NameOf(click.Choice):  # type: ignore[type-arg]
    """One of `names()`, which are looked up where they are needed: in a value, a help text or a completion."""

    def __init__(self, names: Callable[[], Iterable[str]]) -> None:
        self.names, self.case_sensitive = names, True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names."""
        return tuple(self.names())


def completed(names: Callable[[], dict[str, str]]) -> Callable[..., list[CompletionItem]]:
    """Returns click's callback that completes the last of comma-separated, and joined, `names()` (with help texts)."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        cut = max(incomplete.rfind(","), incomplete.rfind("+")) + 1
        before = incomplete[:cut]
        taken = set(before.replace("+", ",").split(","))
        return [
            CompletionItem(before + name, help=text)
            for name, text in names().items()
            if name.startswith(incomplete[cut:]) and name not in taken
        ]

    return complete


def words(*names: str) -> Callable[..., list[CompletionItem]]:
    """Completes fixed names."""
    return completed(lambda: dict.fromkeys(names, ""))


def plugin_names(kind: str | None = None) -> Callable[..., list[CompletionItem]]:
    """Completes the names of installed plugins, of one kind or of all."""

    def names() -> dict[str, str]:
        from polyprune_core.plugins.registry import load_registry

        return {item.provider.name: item.provider.summary for item in load_registry().all(kind)}

    return completed(names)


def complete_model(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the names of the catalogue; where there is none, folders and files."""
    from polyprune_core.models.catalogue import catalogue

    known = [CompletionItem(e.name, help=e.summary) for e in catalogue().values() if e.name.startswith(incomplete)]
    return known or [CompletionItem(incomplete, type="file")]


def complete_text(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completes the built-in texts; for anything else files."""
    names = [name for name in ("builtin:pydocs", "builtin:prose", "builtin:mix") if name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


class Setting(click.Option):
    """An option whose default stands in the settings of its command; its help tells it in brackets.

    `unless`: what happens where it is not given and the settings have no default.
    """

    settings: tuple[str, ...] = ()

    def __init__(self, *names: Any, unless: str = "", **how: Any) -> None:
        self.unless = unless
        super().__init__(*names, **how)

    @property
    def help(self) -> str | None:
        """What the option is for, and its default."""
        default = "" if self.is_flag else self._default()
        return f"{self._told} [{default}]" if default else self._told

    @help.setter
    def help(self, told: str | None) -> None:
        self._told = told

    def _default(self) -> str:
        for name in self.settings:
            module = import_module(f"polyprune_core.config.{'settings' if name in GRIDS else 'requests'}")
            field = getattr(module, name).model_fields.get(self.name)
            value = None if field is None else field.default
            if isinstance(value, tuple) and (value or not self.unless):
                return ",".join(map(str, value)) or "none"
            if value is not None and not isinstance(value, tuple) and not repr(value).startswith("Pydantic"):
                return f"{value:g}" if isinstance(value, float) else str(value)
        return self.unless


GRIDS = ("Comparison", "Pruning")


def setting(*names: str, **how: Any) -> Callable[[Any], Any]:
    """Returns a decorator that adds a `Setting`, None where it is not given."""
    return click.option(*names, default=None, cls=Setting, **how)
