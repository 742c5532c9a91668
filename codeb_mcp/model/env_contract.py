"""What an app wants of its variables: required names, patterns, secrets, each with the environments it is for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_core import SchemaError

from codeb_mcp.model.env import EnvName, sounds_secret
from codeb_mcp.model.names import Environment
from codeb_mcp.model.redaction import redact_text

LARGEST_CONTRACT = 10_000


@lru_cache(maxsize=512)
def _matcher(pattern: str) -> TypeAdapter[str]:
    """Patterns run in pydantic's regex engine, which takes time in proportion to the text whatever the pattern is."""
    return TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])


def _is_pattern(text: str) -> str:
    try:
        _matcher(text)
    except SchemaError:
        raise ValueError("must be a regular expression without look-around and back-references") from None
    return text


def _no_secret(text: str) -> str:
    """A contract is shown to everybody who may look at the project."""
    if redact_text(text) != text:
        raise ValueError("looks like it holds a secret; a contract says what is wanted, not what it is")
    return text


class EnvRule(BaseModel):
    """What is wanted of one variable. Without `environments` it is wanted in all of them."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    required: bool = False
    pattern: Annotated[str, Field(max_length=200), AfterValidator(_is_pattern), AfterValidator(_no_secret)] | None = (
        Field(None, description="Regular expression that the whole value has to match")
    )
    secret: bool | None = Field(None, description="Whether it is a secret; default: judged by its name")
    description: Annotated[str, AfterValidator(_no_secret)] = Field(
        "", max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f]*$"
    )
    environments: tuple[Environment, ...] | None = Field(None, max_length=3)

    def is_for(self, environment: Environment | str) -> bool:
        """Whether the rule holds there."""
        return self.environments is None or environment in self.environments

    def allows(self, value: str) -> bool:
        """Whether the whole value matches."""
        if self.pattern is None:
            return True
        try:
            _matcher(rf"\A(?:{self.pattern})\z").validate_python(value)
        except (ValidationError, SchemaError):
            return False
        return True


def _not_too_large(contract: dict[str, EnvRule]) -> dict[str, EnvRule]:
    said = {name: rule.model_dump(mode="json", exclude_defaults=True) for name, rule in contract.items()}
    if len(json.dumps(said)) > LARGEST_CONTRACT:
        raise ValueError(f"must not be larger than {LARGEST_CONTRACT} characters of JSON")
    return contract


EnvContract = Annotated[dict[EnvName, EnvRule], Field(max_length=200), AfterValidator(_not_too_large)]


@dataclass(frozen=True, slots=True)
class Breach:
    """One variable that is not as the contract wants it: `missing` or `violates`."""

    name: str
    problem: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"name": self.name, "problem": self.problem}


def breaches(
    contract: Mapping[str, EnvRule], values: Mapping[str, str], environment: Environment | str
) -> list[Breach]:
    """Everything that keeps these variables from being deployed, sorted by name. An empty value of a required name counts
    as missing."""
    found = []
    for name, rule in sorted(contract.items()):
        if not rule.is_for(environment):
            continue
        value = values.get(name)
        if rule.required and not value:
            found.append(Breach(name, "missing"))
        elif value is not None and not rule.allows(value):
            found.append(Breach(name, "violates"))
    return found


def is_secret(contract: Mapping[str, EnvRule], name: str) -> bool:
    """Whether the contract says so, else whether the name sounds like it."""
    rule = contract.get(name)
    return sounds_secret(name) if rule is None or rule.secret is None else rule.secret
