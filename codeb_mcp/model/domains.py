"""Domains of a project as its document `domains/{project}` has them, and what they need before they can serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from codeb_mcp.model.names import Environment, environment_key

PROOF_PATH = "/.well-known/codeb-proof"
"""Where our proxy shows over plain HTTP that it is ours."""
Status = Literal["pending", "active"]
PENDING: Status = "pending"
ACTIVE: Status = "active"


@dataclass(frozen=True, slots=True)
class Domain:
    """One entry. `routed`: it is in the proxy's route of its environment. Entries of earlier versions say only domain and
    environment; they are served and kept as they are. `provider` None: that of the zone in the settings."""

    name: str
    project: str
    environment: Environment
    provider: str | None = None
    routed: bool = True
    status: Status = ACTIVE
    problems: tuple[str, ...] = ()
    added_at: str | None = None
    checked_at: str | None = None

    @property
    def key(self) -> str:
        """Its environment, `{project}-{environment}`."""
        return environment_key(self.project, self.environment)


def domain_of(entry: Mapping[str, Any], project: str) -> Domain:
    """The entry in the model's words; raises ValueError for one that names no domain or an unknown environment."""
    name = entry.get("domain")
    if not isinstance(name, str) or not name:
        raise ValueError("an entry names no domain")
    return Domain(
        name=name,
        project=project,
        environment=Environment(entry.get("environment", Environment.PRODUCTION.value)),
        provider=entry.get("provider"),
        routed=entry.get("routed") is not False,
        status=PENDING if entry.get("status") == PENDING else ACTIVE,
        problems=tuple(str(one) for one in entry.get("problems", ())),
        added_at=entry.get("addedAt"),
        checked_at=entry.get("checkedAt"),
    )


def entries_of(doc: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The entries of a document, as they are."""
    found = doc.get("domains", []) if doc is not None else []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def domains_in(doc: Mapping[str, Any] | None, project: str) -> Iterator[Domain]:
    """All domains of a document that can be read."""
    for entry in entries_of(doc):
        try:
            yield domain_of(entry, project)
        except ValueError:
            continue


def with_entry(doc: Mapping[str, Any] | None, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The document in which the entry of that name says this as well; keys that it does not name stay. A value of None takes
    the key away."""
    entries = entries_of(doc)
    former = next((entry for entry in entries if entry.get("domain") == name), {"domain": name})
    changed = {key: value for key, value in {**former, **said}.items() if value is not None}
    here = any(entry is former for entry in entries)
    listed = [changed if entry is former else entry for entry in entries]
    if not here:
        listed.append(changed)
    return {**(doc or {}), "domains": listed}


def without_entry(doc: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """The document without that entry."""
    return {**(doc or {}), "domains": [entry for entry in entries_of(doc) if entry.get("domain") != name]}
