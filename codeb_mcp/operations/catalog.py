"""The catalog: each operation declared once, found by name or alias, called the same way by every face."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import UnknownTool
from codeb_mcp.model.redaction import clean_text

if TYPE_CHECKING:
    from codeb_mcp.operations.context import Context

ANSWER_LIMIT = 20_000
"""No answer is longer than this, in characters of its JSON."""


class Effect(StrEnum):
    """What an operation does to the world."""

    READ = "read"
    CHANGE = "change"
    DESTROY = "destroy"


class Request(BaseModel):
    """What a caller says: camelCase on the wire, unknown parameters refused by name.

    `secret` names the wire's parameters that are there to carry secrets: they may hold what elsewhere would be refused, and
    nothing of their values is kept in the audit trail. `about` names the environments that a request without such a
    parameter is about; none means all of the project.
    """

    secret: ClassVar[frozenset[str]] = frozenset()
    about: ClassVar[tuple[str, ...]] = ()

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        defer_build=True,
    )


class Result(BaseModel):
    """What a caller gets: camelCase on the wire, keys without a value left out."""

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        defer_build=True,
    )

    def wire(self) -> dict[str, Any]:
        """The JSON object that every face sends."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def exit_code(self) -> int:
        """What a command line that got this result exits with; not 0 when the answer is bad news."""
        return 0


class PageRequest(Request):
    """A request for a part of a list."""

    limit: int = Field(50, ge=1, le=200, description="Rows to answer at most")
    offset: int = Field(0, ge=0, le=1_000_000, description="Rows to skip")


class Page(Result):
    """A part of a list under `data`. `next_offset` is there when there is more."""

    data: list[Any]
    total: int
    limit: int
    offset: int
    next_offset: int | None = None

    @classmethod
    def of(cls, rows: Sequence[Any], request: PageRequest, *, total: int | None = None) -> Self:
        """The page that the request asks for. With `total`, `rows` are the page already; else they are the whole list."""
        shown = list(rows) if total is not None else list(rows[request.offset : request.offset + request.limit])
        count = len(rows) if total is None else total
        end = request.offset + len(shown)
        return cls(
            data=shown,
            total=count,
            limit=request.limit,
            offset=request.offset,
            next_offset=end if end < count else None,
        )


Run = Callable[["Context", Any], Awaitable[Result]]
Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Result]])


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that callers can ask for. `summary` is the first line of its docstring, `description` all of it."""

    name: str
    effect: Effect
    role: Role
    reach: Reach
    request: type[Request]
    result: type[Result]
    run: Run
    description: str
    aliases: tuple[str, ...] = ()
    idempotent: bool = True
    long: bool = False
    joins: bool = False

    @property
    def summary(self) -> str:
        """The first line."""
        return self.description.partition("\n")[0]

    @property
    def permission(self) -> str:
        """The name of the right, `noun.verb`, as 403 answers give it."""
        noun, _, verb = self.name.rpartition("_")
        return f"{noun}.{verb}" if noun else f"slot.{self.name}"


class Catalog(Mapping[str, Operation]):
    """Operations by their one true name, sorted; `find` also knows the old names."""

    def __init__(self) -> None:
        self._operations: dict[str, Operation] = {}
        self._aliases: dict[str, str] = {}

    def __getitem__(self, name: str) -> Operation:
        return self._operations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._operations))

    def __len__(self) -> int:
        return len(self._operations)

    @property
    def aliases(self) -> Mapping[str, str]:
        """Old name to true name."""
        return self._aliases

    def add(self, operation: Operation) -> None:
        """Register; a name that is taken is a mistake of ours and raises ValueError."""
        for name in (operation.name, *operation.aliases):
            if name in self._operations or name in self._aliases:
                raise ValueError(f"{name} is declared twice")
        self._operations[operation.name] = operation
        self._aliases.update(dict.fromkeys(operation.aliases, operation.name))

    def find(self, name: str) -> Operation:
        """The operation of that name or old name; raises UnknownTool with the nearest names."""
        operation = self._operations.get(self._aliases.get(name, name))
        if operation is not None:
            return operation
        near = difflib.get_close_matches(name[:64], [*self._operations, *self._aliases], n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "List the tools to see what there is."
        raise UnknownTool(f"there is no tool {clean_text(name, limit=64)!r}", hint=hint, nearest=near)


CATALOG = Catalog()


def operation(  # noqa: PLR0913 - a declaration: each argument is a column of the catalog
    *,
    effect: Effect,
    role: Role,
    reach: Reach,
    aliases: tuple[str, ...] = (),
    idempotent: bool = True,
    long: bool = False,
    joins: bool = False,
) -> Callable[[Handler], Handler]:
    """Declare an operation: name, types and text come from the function itself.

    `long`: it may run for more than a second, so faces offer progress. `joins`: the same request again joins the run of
    the first, also without an idempotency key.
    """

    def declare(handler: Handler) -> Handler:
        hints = get_type_hints(handler, localns=_context_type())
        declared = Operation(
            name=handler.__name__,
            effect=effect,
            role=role,
            reach=reach,
            request=cast("type[Request]", hints["request"]),
            result=cast("type[Result]", hints["return"]),
            run=handler,
            description=inspect.getdoc(handler) or "",
            aliases=aliases,
            idempotent=idempotent,
            long=long,
            joins=joins,
        )
        CATALOG.add(declared)
        return handler

    return declare


def _context_type() -> dict[str, Any]:
    from codeb_mcp.operations.context import Context

    return {"Context": Context}


def load_all() -> Catalog:
    """The full catalog: imports every module that declares operations."""
    from codeb_mcp.operations import declared

    declared.load()
    return CATALOG
