"""Dataclasses as groups of command-line options: one declaration for the command and for the Python API.

A group is a dataclass whose fields carry ``typer.Option`` in ``Annotated``:

    @dataclass(frozen=True)
    class Workload:
        concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 1

    @option_groups
    def serve(model: str, workload: Workload) -> None: ...

Typer then offers ``--concurrency`` and ``serve`` receives a ``Workload``. A field without ``typer.Option`` exists in
Python only. A group may name its panel of the help text in a class variable ``help_panel``.

Groups that are only known at run time, and may share names, go into a ``dict`` parameter marked with ``AnyOf``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from typing import Annotated, Any

from typer.models import OptionInfo


@dataclasses.dataclass(frozen=True)
class AnyOf:
    """Marks a ``dict[str, Any]`` parameter that receives the options of several groups that the user gave.

    Attributes:
        groups: gives (owner, dataclass) pairs; an option's help names its owners and their default.
        help_panel: of the help text.
    """

    groups: Callable[[], Iterable[tuple[str, type[Any]]]]
    help_panel: str | None = None


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` with the options of its dataclass parameters in their place, as Typer needs them.

    Raises:
        TypeError: two groups have an option of the same name.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    flat: dict[str, inspect.Parameter] = {}
    groups: dict[str, tuple[Callable[..., Any], list[str]]] = {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        added = [parameter.replace(annotation=hint)]
        if dataclasses.is_dataclass(hint):
            added = list(_options(typing.cast("type[Any]", hint)))
            groups[parameter.name] = typing.cast("type[Any]", hint), [option.name for option in added]
        any_of = next((mark for mark in typing.get_args(hint)[1:] if isinstance(mark, AnyOf)), None)
        if any_of is not None:
            added = list(_any_of(any_of))
            groups[parameter.name] = _given, [option.name for option in added]
        for option in added:
            if option.name in flat:
                raise TypeError(f"{command.__name__}: two options are called {option.name}")
            # Keyword-only, since options without a default may follow those that have one.
            flat[option.name] = option.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    @functools.wraps(command)
    def call(**values: Any) -> None:
        built = {name: group(**{key: values.pop(key) for key in keys}) for name, (group, keys) in groups.items()}
        command(**values, **built)

    call.__signature__ = inspect.Signature(list(flat.values()))  # type: ignore[attr-defined]
    call.__annotations__ = {name: option.annotation for name, option in flat.items()}
    return call


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _any_of(mark: AnyOf) -> Iterator[inspect.Parameter]:
    """One parameter per option name, None where the user does not give it."""
    owners: dict[str, list[str]] = {}
    found: dict[str, inspect.Parameter] = {}
    for owner, group in mark.groups():
        for option in _options(group):
            owners.setdefault(option.name, []).append(owner)
            kind, info = typing.get_args(option.annotation)
            default = "" if option.default is None else f" [default: {option.default}]"
            info.rich_help_panel = info.rich_help_panel or mark.help_panel
            info.help = f"{' and '.join(owners[option.name])}: {info.help}{default}"
            found[option.name] = option.replace(default=None, annotation=Annotated[kind | None, info])
    yield from found.values()


def sort_into(groups: Iterable[type[Any]], given: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Keyword options by the group that defines them, and those that none does; None counts as not given."""
    left = {name: value for name, value in given.items() if value is not None}
    return [{f.name: left.pop(f.name) for f in dataclasses.fields(g) if f.name in left} for g in groups], left


def _options(group: type[Any]) -> Iterator[inspect.Parameter]:
    """The fields of a dataclass that are options, as parameters."""
    hints = typing.get_type_hints(group, include_extras=True)
    for field in dataclasses.fields(group):
        if typing.get_origin(hints[field.name]) is not Annotated:
            continue
        kind, *marks = typing.get_args(hints[field.name])
        option = next((mark for mark in marks if isinstance(mark, OptionInfo)), None)
        if option is None:
            continue
        option = copy(option)
        if option.parser is not None:
            # Typer takes no unions; the parser sees text whatever the field's type is.
            kind = str | None
        option.rich_help_panel = option.rich_help_panel or getattr(group, "help_panel", None)
        default: Any = inspect.Parameter.empty
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            default = field.default
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
        )
