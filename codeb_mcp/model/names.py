"""Names that are checked once, at the border, and trusted afterwards.

Every pattern is deliberately narrow: a value that passes can stand in a file name, a container name, a host name or an
argument list without quoting (OWASP: allow-list validation).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

PROJECT_PATTERN = r"^[a-z0-9][a-z0-9-]{0,39}$"
LABEL_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
VERSION_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$"
IMAGE_PATTERN = (
    r"^(?:(?P<registry>[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?)/)?"
    r"(?P<path>[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[a-f0-9]{64}))?$"
)


HTTP_PATH_PATTERN = r"^/[A-Za-z0-9._~/%?&=-]{0,200}$"
DISPLAY_PATTERN = r"^\w([\w .@+-]{0,78}[\w.@+-])?$"
REPOSITORY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9-]{0,38}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
IDENTIFIER_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
KEY_PATTERN = r"^[A-Za-z0-9_:.-]{1,128}$"
PATTERNS = {
    PROJECT_PATTERN: "must be 1 to 40 lower-case letters, digits and hyphens, beginning with a letter or digit",
    VERSION_PATTERN: "must be 1 to 128 letters, digits, dots, hyphens and underscores, like a tag",
    IMAGE_PATTERN: "must be an image reference like ghcr.io/acme/shop:v2",
    HTTP_PATH_PATTERN: "must be a path like /health",
    DISPLAY_PATTERN: "must be 1 to 80 letters, digits, spaces and . @ + - _",
    REPOSITORY_PATTERN: "must be owner/name of a repository, like acme/shop",
    IDENTIFIER_PATTERN: "must be 1 to 64 letters, digits, hyphens and underscores",
    KEY_PATTERN: "must be 1 to 128 letters, digits and _ : . -",
}
"""What each pattern asks for, in words for people."""


class Environment(StrEnum):
    """One isolated copy of a project."""

    PRODUCTION = "production"
    STAGING = "staging"
    PREVIEW = "preview"


class Slot(StrEnum):
    """One of the two places of an environment."""

    BLUE = "blue"
    GREEN = "green"

    @property
    def other(self) -> Slot:
        """The opposite place."""
        return Slot.GREEN if self is Slot.BLUE else Slot.BLUE


_DERIVED = re.compile(rf"^(?P<project>.+?)-(?P<end>(?:{'|'.join(Environment)})(?:-(?:{'|'.join(Slot)}))?)$")


def _full_domain(value: str) -> str:
    labels = value.split(".")
    if len(labels) < 2 or not all(re.fullmatch(LABEL_PATTERN, label) for label in labels):
        raise ValueError("must be a full domain name of lower-case labels, like shop.example.com")
    if labels[-1].isdigit():
        raise ValueError("must be a name, not an address")
    return value


def _no_trailing_hyphen(value: str) -> str:
    if value.endswith("-"):
        raise ValueError("must not end with a hyphen")
    return value


def _plain_path(value: str) -> str:
    if "//" in value or "/.." in value:
        raise ValueError("must be a plain path without '//' or '..'")
    return value


ProjectName = Annotated[
    str, StringConstraints(pattern=PROJECT_PATTERN, max_length=40), AfterValidator(_no_trailing_hyphen)
]
TeamId = Annotated[str, StringConstraints(pattern=PROJECT_PATTERN, max_length=40), AfterValidator(_no_trailing_hyphen)]
Version = Annotated[str, StringConstraints(pattern=VERSION_PATTERN, max_length=128)]
ImageRef = Annotated[str, StringConstraints(pattern=IMAGE_PATTERN, max_length=400)]
Domain = Annotated[str, StringConstraints(max_length=253), AfterValidator(_full_domain)]
HttpPath = Annotated[str, StringConstraints(pattern=HTTP_PATH_PATTERN), AfterValidator(_plain_path)]
DisplayName = Annotated[str, StringConstraints(pattern=DISPLAY_PATTERN, max_length=80)]
Identifier = Annotated[str, StringConstraints(pattern=IDENTIFIER_PATTERN, max_length=64)]
Repository = Annotated[str, StringConstraints(pattern=REPOSITORY_PATTERN, max_length=140)]
IdempotencyKey = Annotated[str, StringConstraints(pattern=KEY_PATTERN, max_length=128)]
Port = Annotated[int, Field(ge=1, le=65535)]


def environment_key(project: str, environment: Environment | str) -> str:
    """`{project}-{environment}`: the name of an environment in files, flags and routes.

    Unambiguous because the last word always is one of the three environments.
    """
    return f"{project}-{environment}"


def container_name(project: str, environment: Environment | str, slot: Slot | str) -> str:
    """`{project}-{environment}-{slot}` (the name existing users know)."""
    return f"{project}-{environment}-{slot}"


def split_environment_key(key: str) -> tuple[str, Environment]:
    """The inverse of `environment_key`; raises ValueError for a text that is none."""
    project, _, environment = key.rpartition("-")
    if not project:
        raise ValueError(f"{key!r} is no environment key")
    return project, Environment(environment)


def derived_name(project: str) -> tuple[str, str] | None:
    """`(other project, end)` when the name is what that project's environment or slot is called: `shop-staging` is
    `("shop", "staging")`, `shop-staging-blue` is `("shop", "staging-blue")`. None for a name that a new project may have.

    Default hosts, keys, containers and preview hosts of projects with such names would be those of others' environments.
    """
    found = _DERIVED.match(project)
    return (found["project"], found["end"]) if found else None


def lease_name(project: str, environment: str | None) -> str:
    """The lease that a run of this project or environment holds."""
    return f"environment/{environment_key(project, environment)}" if environment else f"project/{project}"


def image_parts(reference: str) -> tuple[str, str | None, str | None]:
    """`(repository, tag, digest)` of an image reference; the repository keeps its registry host.

    Like the engine does, a first component counts as a registry only if it has a dot, a colon or is `localhost`.
    """
    name, _, digest = reference.partition("@")
    head, _, tail = name.rpartition("/")
    last, _, tag = tail.partition(":")
    return (f"{head}/{last}" if head else last), tag or None, digest or None


def image_registry(reference: str) -> str:
    """The registry host of an image reference; `docker.io` when it names none."""
    first = reference.split("/", 1)[0] if "/" in reference else ""
    return first if "." in first or ":" in first or first == "localhost" else "docker.io"
