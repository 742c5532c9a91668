"""Preview environments: one child project per pull request, with slots, ports, ENV and an end of its own.

The preview of pull request 12 of `shop` is the project `shop-pr-12` with the single environment `preview`. It is a project
like any other for deploy, promote, logs and slots; only its making, its end and its name are special.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from codeb_mcp.model.times import Moment

PullRequest = Annotated[int, Field(ge=1, le=9_999_999, description="Number of the pull request")]
_NAME = re.compile(r"^(?P<parent>[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)-pr-(?P<number>[1-9][0-9]{0,6})$")
LONGEST_NAME = 40


class Preview(BaseModel):
    """What makes a project a preview, under `preview` in its entry of `ssot.json`."""

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    of: str
    pull_request: PullRequest
    expires_at: Moment

    def is_over(self, now: datetime) -> bool:
        """Whether its time has come."""
        return now >= self.expires_at

    def dump(self) -> dict[str, Any]:
        """The JSON form."""
        return self.model_dump(mode="json", by_alias=True)


def preview_project(project: str, pull_request: int) -> str:
    """The name of the child project; raises ValueError when it would be too long."""
    name = f"{project}-pr-{pull_request}"
    if len(name) > LONGEST_NAME:
        raise ValueError(f"the name {name} has more than {LONGEST_NAME} characters")
    return name


def parent_of(name: str) -> str | None:
    """The parent that a preview's name tells; None for a name that is not a preview's."""
    found = _NAME.match(name)
    return found["parent"] if found else None


def previews_of(projects: Mapping[str, Any], parent: str | None = None) -> dict[str, Preview]:
    """The previews among the entries of `ssot.json`, by project name; those of one parent, or all."""
    found = {}
    for name, entry in projects.items():
        said = entry.get("preview") if isinstance(entry, Mapping) else None
        if isinstance(said, Mapping) and parent in (None, said.get("of")):
            found[name] = Preview.model_validate(dict(said))
    return found
