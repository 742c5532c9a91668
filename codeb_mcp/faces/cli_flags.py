"""From a request model to command-line flags, and from what was typed back to the wire.

Names are those of the wire in kebab-case, nested models are flattened (`healthCheck.path` is `--health-check-path`). The
project and every required id are positional. What may be just on or have fields of its own is a flag and theirs (`--redis`,
`--redis-placement own`). Only what was typed is sent: defaults and checks stay in one place, the model's.
"""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo

WirePath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Flag:
    """One field of a request on the command line. `path` leads to it in the wire's JSON; a `secret` one is typed as the name
    of a file that holds it."""

    path: WirePath
    parameter: click.Parameter
    secret: bool = False

    @property
    def typed(self) -> str:
        """How a person types it: `--health-check-path` or `PROJECT`."""
        if isinstance(self.parameter, click.Argument):
            return str(self.parameter.make_metavar(click.Context(click.Command("x"))))
        return self.parameter.opts[0]


def any_json(text: str) -> Any:
    """A JSON value, for fields that no simple flag can say; raises ValueError for text that is none."""
    return json.loads(text)


def flags_of(model: type[BaseModel]) -> list[Flag]:
    """Every field of the model as an argument or option, in the order of declaration, arguments first."""
    flags = list(_flags(model, (), defaults=True))
    return sorted(flags, key=lambda flag: isinstance(flag.parameter, click.Option))


def wire_arguments(flags: list[Flag], typed: Mapping[str, Any]) -> dict[str, Any]:
    """What was typed, as the wire's JSON; what was not typed is left out. Reads the files that hold secrets."""
    arguments: dict[str, Any] = {}
    for flag in flags:
        value = typed.get(flag.parameter.name or "")
        if value is None or value == ():
            continue
        target = arguments
        for name in flag.path[:-1]:
            if not isinstance(target.get(name), dict):
                target[name] = {}  # also where the flag alone has said true
            target = target[name]
        value = secret_file(value) if flag.secret else value
        target[flag.path[-1]] = list(value) if isinstance(value, tuple) else value
    return arguments


def kebab(name: str) -> str:
    """`healthCheck` as `health-check`."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"-\1", name).replace("_", "-").lower()


def words(name: str) -> str:
    """`healthCheck` as `health check`."""
    return kebab(name).replace("-", " ")


def _flags(model: type[BaseModel], above: WirePath, *, defaults: bool) -> Iterator[Flag]:
    for name, field in model.model_fields.items():
        path = (*above, field.alias or name)
        plain, optional = plain_type(field.annotation)
        own = own_fields(field.annotation)
        if not above and path[0] in getattr(model, "secret", ()):
            yield Flag(path, _secret_option(path, field), secret=True)
        elif own is not None:
            help_text = field.description or words(path[-1]).capitalize()
            yield Flag(
                path,
                click.Option(
                    [_parameter_name(path), f"--{kebab(path[-1])}"], is_flag=True, default=None, help=help_text
                ),
            )
            yield from _flags(own, path, defaults=False)
        elif isinstance(plain, type) and issubclass(plain, BaseModel):
            yield from _flags(plain, path, defaults=defaults and not optional)
        elif not above and is_positional(path[0], field):
            yield Flag(path, _argument(path, field, plain))
        else:
            yield Flag(path, _option(path, field, plain, defaults=defaults))


def own_fields(annotation: Any) -> type[BaseModel] | None:
    """The model of a field that takes true or an object; None for any other field."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return models[0] if len(kinds) == 2 and bool in kinds and models else None


def is_positional(name: str, field: FieldInfo) -> bool:
    """Whether the field is typed without a flag: the project, and ids that must be given."""
    return name == "projectName" or (field.is_required() and name.endswith(("Id", "Ids")))


def plain_type(annotation: Any) -> tuple[Any, bool]:
    """The type without `Annotated` and `None`, and whether None was allowed."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return plain_type(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        if len(kinds) < len(get_args(annotation)):
            return (plain_type(kinds[0])[0] if len(kinds) == 1 else object), True
    return annotation, False


def _argument(path: WirePath, field: FieldInfo, plain: Any) -> click.Argument:
    metavar = kebab(path[-1]).upper().replace("-", "_").removesuffix("_NAME")
    several = _member(plain)
    if several is not None:
        metavar = metavar.removesuffix("S") + "..."
    return click.Argument(
        [_parameter_name(path)],
        type=_click_type(plain if several is None else several),
        required=field.is_required(),
        nargs=1 if several is None else -1,
        metavar=metavar if field.is_required() else f"[{metavar}]",
    )


def _option(path: WirePath, field: FieldInfo, plain: Any, *, defaults: bool) -> click.Option:
    flag = "--" + "-".join(kebab(name) for name in path)
    help_text = (field.description or words(path[-1]).capitalize()) + (_default_said(field) if defaults else "")
    names = [_parameter_name(path)]
    if plain is bool:
        both = field.default is not False
        names.append(f"{flag}/--no-{flag[2:]}" if both else flag)
        return click.Option(names, default=None, is_flag=True, help=help_text, required=field.is_required())
    several = _member(plain)
    return click.Option(
        [*names, flag],
        type=_click_type(plain if several is None else several),
        multiple=several is not None,
        help=help_text + ("" if several is None else "; may be repeated"),
        required=field.is_required() and path[-1] != CONFIRM,
    )


def _secret_option(path: WirePath, field: FieldInfo) -> click.Option:
    """Secrets are read from a file or stdin: what is typed on a command line is in the process list and the history."""
    said = f"File with {field.description or words(path[-1])}: NAME=value lines or a JSON object; - is stdin"
    names = [_parameter_name(path), f"--{kebab(path[-1])}"]
    return click.Option(names, type=click.STRING, metavar="FILE", help=said, required=field.is_required())


def secret_file(path: str) -> Any:
    """The variables in a file or, for `-`, on stdin; raises BadParameter, which repeats nothing of the content."""
    from codeb_mcp.model.env import parse

    try:
        raw = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        text = raw.decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise click.BadParameter(f"the file cannot be read: {reason}") from None
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except ValueError:
            raise click.BadParameter("the file is no JSON object") from None
    found = parse(text)
    if found.unread:
        raise click.BadParameter(f"lines that are no assignments: {', '.join(map(str, found.unread[:20]))}")
    return dict(found.values)


CONFIRM = "confirm"
"""A field that repeats a name; the command asks for it rather than refusing."""


def _parameter_name(path: WirePath) -> str:
    return "__".join(kebab(name).replace("-", "_") for name in path)


def _member(plain: Any) -> Any:
    """The type of one member of a list, or None for a type that is no list."""
    if get_origin(plain) in (tuple, list, set, frozenset):
        return plain_type(get_args(plain)[0])[0]
    return None


def _click_type(plain: Any) -> Any:
    if get_origin(plain) is Literal:
        return click.Choice([str(one) for one in get_args(plain)])
    if isinstance(plain, type) and issubclass(plain, Enum):
        return click.Choice([str(one.value) for one in plain])
    simple = {int: click.INT, float: click.FLOAT, str: click.STRING, timedelta: click.STRING}
    return simple.get(plain, any_json)


def _default_said(field: FieldInfo) -> str:
    said = default_text(field)
    described = (field.description or "").lower()
    return f" [{said}]" if said and said.lower() not in described else ""


def default_text(field: FieldInfo) -> str:
    """The field's default as a person would type it; empty for none, required, and flags."""
    default = None if field.is_required() or field.default_factory is not None else field.default
    if default is None or isinstance(default, bool):
        return ""
    if isinstance(default, timedelta):
        return f"{default.days}d"
    if isinstance(default, Enum):
        return str(default.value)
    if isinstance(default, tuple | list):
        return ", ".join(str(one.value if isinstance(one, Enum) else one) for one in default)
    return f"{default:g}" if isinstance(default, float) else str(default)
