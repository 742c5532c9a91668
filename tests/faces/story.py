"""A story in which every operation of the catalog is called at least once, and failures of several kinds are met."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.faces.ways import Outcome, Say
from tests.faces.world import IMPATIENT, PATIENT

Told = list[tuple[str, Outcome]]
Params = Mapping[str, Any] | Callable[[Told], Mapping[str, Any]]

LIVE = {"projectName": "shop", "environment": "production"}


def image(version: str) -> dict[str, str]:
    """A deploy of that version into production."""
    return {**LIVE, "image": f"ghcr.io/acme/shop:{version}"}


def _last(told: Told, tool: str) -> Outcome:
    return next(outcome for name, outcome in reversed(told) if name == tool)


def _run(told: Told) -> dict[str, str]:
    return {"operationId": _last(told, "deploy").body["operationId"]}


def _token(tool: str) -> Callable[[Told], dict[str, str]]:
    return lambda told: {"tokenId": _last(told, tool).body["token"]["id"]}


def _member(told: Told) -> dict[str, str]:
    return {"memberId": _last(told, "member_invite").body["member"]["id"]}


STORY: tuple[tuple[str, Params], ...] = (
    ("project_create", {"projectName": "shop", "healthCheck": IMPATIENT}),
    ("project_list", {}),
    ("port_list", {}),
    ("project_get", {"projectName": "shop"}),
    ("project_get", {"projectName": "nowhere"}),
    ("workflow_init", {"projectName": "shop", "type": "nextjs", "database": True}),
    ("workflow_init", {"projectName": "later", "type": "go", "runner": "github-hosted", "environment": "preview"}),
    ("workflow_init", {"projectName": "shop", "type": "go", "environment": "mars"}),
    ("workflow_scan", {"files": {"Dockerfile": "FROM node\nCMD node ."}, "projectName": "shop"}),
    ("project_update", {**LIVE, "graceHours": 12}),
    ("project_place", {**LIVE, "servers": ["mars"]}),
    ("promote", LIVE),
    ("deploy", image("v1")),
    ("deploy_project", image("v1")),
    ("promote", LIVE),
    ("deploy", image("sick")),
    ("deploy", {**image("v2"), "environment": "mars"}),
    ("deploy", image("v2")),
    ("slot_promote", LIVE),
    ("slot_status", LIVE),
    ("slot_status", {"projectName": "shop", "enviroment": "production"}),
    ("slot_list", {"limit": 1}),
    ("port_list", {}),
    ("logs_get", {**LIVE, "tail": 5}),
    ("health_check", {}),
    ("health_check", LIVE),
    ("rollback", {**LIVE, "reason": "v2 is slow"}),
    ("slot_cleanup", LIVE),
    ("slot_cleanup", {**LIVE, "force": True}),
    ("preview_create", {"projectName": "shop", "pullRequest": 12}),
    ("preview_list", {}),
    ("preview_delete", {"projectName": "shop", "pullRequest": 12}),
    ("domain_setup", {**LIVE, "domain": "www.example.com", "provider": "manual"}),
    ("domain_setup", {**LIVE, "domain": "*.example.com"}),
    ("domain_list", {}),
    ("domain_verify", {"domain": "www.example.com"}),
    ("ssl_status", {"domain": "www.example.com", "projectName": "shop"}),
    ("domain_delete", {"domain": "www.example.com", "projectName": "shop"}),
    ("domain_verify", {"domain": "www.example.com"}),
    ("registry_check", {}),
    ("registry_repair", {"driftIds": ["nothing"]}),
    ("operation_list", {"limit": 3}),
    ("operation_get", _run),
    ("operation_get", {"operationId": "op_unknown"}),
    ("project_update", {"projectName": "shop", "healthCheck": PATIENT}),
    ("deploy", {**image("sick"), "wait": False}),
    ("operation_cancel", _run),
    ("operation_resume", _run),
    ("team_create", {"teamId": "north", "name": "North"}),
    ("team_create", {"teamId": "north", "name": "North"}),
    ("team_list", {}),
    ("team_get", {}),
    ("team_get", {"teamId": "north"}),
    ("team_settings", {"name": "Home"}),
    ("team_delete", {"confirm": "default"}),
    ("member_invite", {"name": "Mia", "role": "member"}),
    ("member_list", {}),
    ("member_remove", _member),
    ("token_create", {"name": "ci", "role": "member", "scopes": ["project:shop"], "expiresIn": "12h"}),
    ("token_list", {}),
    ("token_rotate", _token("token_create")),
    ("token_revoke", _token("token_rotate")),
    ("audit_list", {"limit": 5}),
    ("audit_verify", {}),
    ("slot_stats", {}),
    ("server_add", {"serverKey": "here", "host": "127.0.0.1", "role": "backup", "connection": "local"}),
    ("server_list", {}),
    ("adopt", {}),
    ("server_check", {"serverKey": "nowhere"}),
    ("server_setup", {"serverKey": "nowhere"}),
    ("server_remove", {"serverKey": "here", "confirm": "here"}),
    ("env_set", {**LIVE, "values": {"LOG_LEVEL": "debug", "DATABASE_URL": "postgres://shop@db/shop"}}),
    ("env_set", {**LIVE, "values": {"LOG_LEVEL": "info", "DATABASE_URL": "postgres://other@db/shop"}}),
    ("env_set", {**LIVE, "values": {"API_KEY": "changeme"}}),
    ("env_get", LIVE),
    ("env_diff", {**LIVE, "fromVersion": "master"}),
    ("env_scan", LIVE),
    ("env_unset", {**LIVE, "names": ["LOG_LEVEL"]}),
    ("env_sync", LIVE),
    ("env_backup_list", {**LIVE, "limit": 2}),
    ("env_restore", {**LIVE, "to": "master"}),
    ("env_restore", {**LIVE, "to": "20200101T000000.000000Z"}),
    ("env_verify", LIVE),
    ("database_list", {}),
    ("database_create", {**LIVE, "kind": "postgres"}),
    ("database_rotate", {**LIVE, "kind": "redis"}),
    ("database_delete", {**LIVE, "kind": "redis", "confirm": "shop"}),
    ("streaming_setup", LIVE),
    ("streaming_remove", {**LIVE, "confirm": "shop"}),
    ("project_delete", {"projectName": "shop", "confirm": "shop"}),
)


async def tell(say: Say) -> Told:
    """Play the story through one face."""
    told: Told = []
    for tool, params in STORY:
        told.append((tool, await say(tool, params(told) if callable(params) else params)))
    return told


_CHANGING = (
    (re.compile(r"/[\w./-]*pytest-of-[^\s;`,]*"), "<folder>"),
    (re.compile(r"op_[0-9a-f]{24}"), "op_*"),
    (re.compile(r"\b(key|mem)_[0-9a-f]{12}"), r"\1_*"),
    (re.compile(r"codeb_[a-z-]+_[a-z]+_[A-Za-z0-9]{36}"), "codeb_*"),
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:*"),
    (re.compile(r"\d{4}-\d\d-\d\dT[0-9:.]+(?:Z|\+00:00)"), "<time>"),
    (re.compile(r"\b\d{8}T\d{6}\.\d{6}Z"), "<version>"),
    (re.compile(r"for \d+(?:\.\d+)? s"), "for * s"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<id>"),
)
_NUMBERS = frozenset({"duration", "durationMs", "records", "n"})
_ANY = frozenset({"last4", "hash", "prev", "mac"})


def settled(value: Any, key: str = "") -> Any:
    """The value without what differs from one run of the story to the next."""
    if isinstance(value, Mapping):
        return {name: settled(inner, name) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        return [settled(inner, key) for inner in value]
    if key in _ANY or (key in _NUMBERS and isinstance(value, int | float)):
        return "*"
    if isinstance(value, str):
        for pattern, instead in _CHANGING:
            value = pattern.sub(instead, value)
    return value


_SAME_ERROR = ("code", "hint", "retryable", "requiredRole", "nearest", "wouldLose", "steps")


def essence(told: Told) -> list[Any]:
    """What every face must answer alike: bodies of successes; code, hint and details of failures."""
    lines: list[Any] = []
    for tool, outcome in told:
        if outcome.ok:
            body = settled(outcome.body)
            lines.append((tool, _sifted(tool, body)))
        else:
            # How far a cancelled run got depends on the moment.
            said = [
                key for key in _SAME_ERROR if key in outcome.detail and (outcome.code, key) != ("cancelled", "steps")
            ]
            lines.append((tool, outcome.code, settled({key: outcome.detail[key] for key in said})))
    return lines


def _sifted(tool: str, body: dict[str, Any]) -> Any:
    """A cancel is answered while the run is still on its way: how far depends on the moment."""
    if tool in ("operation_cancel", "audit_list"):
        return sorted(body)
    return {key: value for key, value in body.items() if not (body.get("status") == "running" and key == "steps")}
