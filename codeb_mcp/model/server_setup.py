"""What a server of each role has to have, as data, in the order in which it is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from codeb_mcp.model import centrifugo, github_runner
from codeb_mcp.model.server import ServerRole
from codeb_mcp.model.server_scripts import Kind

USER, ROOT = "codeb", "/opt/codeb"
FIREWALL = "/etc/codeb/firewall.nft"
R = ServerRole

PACKAGES: Mapping[ServerRole, tuple[str, ...]] = {
    R.APPLICATION: (
        "ca-certificates",
        "curl",
        "rsync",
        "nftables:nft",
        "logrotate:logrotate",
        "docker.io:dockerd",
        "caddy:caddy",
    ),
    R.STREAMING: ("ca-certificates", "curl", "nftables:nft"),
    R.DATABASE: ("rsync", "nftables:nft", "postgresql:pg_lsclusters", "redis-server:redis-server"),
    R.BACKUP: ("rsync", "nftables:nft", "prometheus:prometheus"),
}
"""Packages of Debian; one whose program (after the colon) is there already, from whatever source, is left alone."""
FOLDERS: Mapping[ServerRole, tuple[tuple[str, str], ...]] = {
    R.APPLICATION: (("registry", "0700"), ("env-backup", "0700"), ("projects", "0700"), ("traffic", "0755"), ("scripts", "0755")),
    R.STREAMING: (("scripts", "0755"),),
    R.DATABASE: (("scripts", "0755"),),
    R.BACKUP: (("env-backup", "0700"), ("wal-archive", "0700"), ("scripts", "0755")),
}  # fmt: skip
OWNED = ("codeb.toml", ".made-by-init", "registry", "keys", "ssh", "env-backup", "projects", "traffic", "run")
"""What the control plane has below its root: it was root's when it was begun as root."""
DAEMON: Mapping[str, Any] = {
    "live-restore": False,  # published loopback ports would be dead until the daemon is back
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m", "max-file": "3"},
    "no-new-privileges": True,
}
CADDY = {"admin": {"listen": "127.0.0.1:2019"}, "apps": {"http": {"servers": {}}}}
CADDY_UNIT = """[Service]
ExecStart=
ExecStart=/usr/bin/env caddy run --environ --resume --config /etc/caddy/codeb.json
"""
"""What Caddy's own caddy-api.service starts: what it had last, and at its very first start our configuration."""
UNIT = """[Unit]
Description=CodeB {what}
After=network-online.target docker.service caddy-api.service
Wants=network-online.target
ConditionPathExists=/opt/codeb/registry/ssot.json

[Service]
User=codeb
Environment=CODEB_ROOT=/opt/codeb
ExecStart=/usr/bin/env codeb {command}
StandardOutput=append:/var/log/codeb/{log}.log
StandardError=inherit
{more}
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/opt/codeb
PrivateTmp=yes
{install}"""
FIREWALL_UNIT = f"""[Unit]
Description=CodeB firewall
DefaultDependencies=no
After=nftables.service
PartOf=nftables.service
Before=network-pre.target shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target
ConditionPathExists={FIREWALL}

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/sbin/nft -f {FIREWALL}
ExecReload=/usr/sbin/nft -f {FIREWALL}
ExecStop=/usr/sbin/nft delete table inet codeb

[Install]
WantedBy=sysinit.target
"""
TIMER = """[Unit]
Description=CodeB housekeeping, also while the server is down

[Timer]
OnUnitInactiveSec=5min
OnBootSec=2min

[Install]
WantedBy=timers.target
"""
INIT = """#!/bin/sh
# Sets up the registry below CODEB_ROOT (default /opt/codeb). Safe to repeat: nothing that exists is erased or replaced.
set -eu
exec codeb init "$@"
"""
LOGROTATE = "/var/log/codeb/*.log {\n  weekly\n  maxsize 50M\n  rotate 8\n  compress\n  missingok\n  notifempty\n  copytruncate\n}\n"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to have. `words` are the arguments of its kind's script, `content` what that reads."""

    name: str
    kind: Kind
    words: tuple[str, ...]
    says: str
    content: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def items_of(role: ServerRole, key_line: str | None) -> tuple[Item, ...]:
    """Everything that a server of this role has to have. `key_line` is the control plane's line for `authorized_keys`,
    None when it logs in by an agent."""
    home, groups = f"/home/{USER}", "docker" if role is R.APPLICATION else ""
    keys = f"{home}/.ssh/authorized_keys"
    said = f"let the control plane's key in: {keys}"
    line = [Item("authorized_key", "line", (keys, "0600", f"{USER}:{USER}"), said, key_line)] if key_line else []
    return (
        Item("packages", "packages", PACKAGES[role], f"install what is missing of {_named(role)}"),
        Item("user", "user", (USER, home, groups), f"make the unprivileged user {USER}"),
        _folder("ssh_folder", f"{home}/.ssh", "0700"),
        *line,
        _folder("root", ROOT, "0755"),
        *(_folder(f"folder_{name}", f"{ROOT}/{name}", mode) for name, mode in FOLDERS[role]),
        *_OF_ROLE.get(role, ()),
    )


def _named(role: ServerRole) -> str:
    return ", ".join(one.partition(":")[0] for one in PACKAGES[role])


def _folder(name: str, path: str, mode: str, owner: str = f"{USER}:{USER}") -> Item:
    return Item(name, "folder", (path, mode, owner), f"have the folder {path} ({owner.partition(':')[0]}, {mode})")


def _file(
    name: str, path: str, content: str, *, mode: str = "0644", owner: str = "root:root", keep: bool = False
) -> Item:
    says = f"write {path}" + (" unless there is one" if keep else "; a former one is kept as .before-codeb")
    return Item(name, "file", (path, mode, owner, "keep" if keep else "replace"), says, content)


def _unit(what: str, command: str, more: str, install: str = "") -> str:
    return UNIT.format(what=what, command=command, log=command, more=more, install=install)


def _enabled(name: str, *units: str) -> Item:
    named = ", ".join(one.partition(":")[0] for one in units)
    return Item(name, "enable", units, f"enable {named} (whose program is there), and start them where systemd runs")


_SERVE = ("Restart=always\nRestartSec=2\nTimeoutStopSec=30", "\n[Install]\nWantedBy=multi-user.target\n")
_UNITS, _OURS = "/etc/systemd/system", f"{USER}:{USER}"
_OF_ROLE: Mapping[ServerRole, tuple[Item, ...]] = {
    R.APPLICATION: (
        Item(
            "owners", "owners", (_OURS, *(f"{ROOT}/{name}" for name in OWNED)),
            f"give {USER} what root made in the installation's own folders",
        ),
        Item(
            "docker_settings", "merge", ("/etc/docker/daemon.json", "0644", "root:root", "replace"),
            "harden the engine in /etc/docker/daemon.json, keeping what it says besides; takes effect at its next restart",
            values=DAEMON,
        ),
        _file("caddy", "/etc/caddy/codeb.json", json.dumps(CADDY, indent=2) + "\n", keep=True),
        _file("unit_caddy", f"{_UNITS}/caddy-api.service.d/codeb.conf", CADDY_UNIT),
        Item(
            "enable_caddy", "caddy", (),
            "have Caddy start as caddy-api.service, which keeps its configuration, unless its Caddyfile has sites",
        ),
        _folder("logs", "/var/log/codeb", "0755", "root:root"),
        _file("unit_serve", f"{_UNITS}/codeb.service", _unit("control plane", "serve", *_SERVE)),
        _file(
            "unit_housekeeping", f"{_UNITS}/codeb-housekeeping.service",
            _unit("housekeeping", "housekeeping", "Type=oneshot"),
        ),
        _file("timer_housekeeping", f"{_UNITS}/codeb-housekeeping.timer", TIMER),
        _enabled("enable_units", "codeb.service", "codeb-housekeeping.timer"),
        _file("logrotate", "/etc/logrotate.d/codeb", LOGROTATE),
        _file("init_script", f"{ROOT}/scripts/init-ssot-registry.sh", INIT, mode="0755"),
        Item(
            "runner_user", "user", (github_runner.USER, f"/home/{github_runner.USER}", "docker"),
            f"make the user {github_runner.USER} of the self-hosted runner, who may use the engine",
        ),
        _folder("runner_folder", github_runner.FOLDER, "0755", f"{github_runner.USER}:{github_runner.USER}"),
    ),
    R.STREAMING: (
        _folder("centrifugo_folder", centrifugo.FOLDER, "0750"),
        _file("centrifugo", centrifugo.CONFIG_PATH, centrifugo.initial_text(), mode="0640", owner=_OURS, keep=True),
        Item(
            "centrifugo_secrets", "secrets", (centrifugo.SECRETS_PATH, _OURS, *centrifugo.SECRET_NAMES),
            f"make its token and API secrets in {centrifugo.SECRETS_PATH} (0600) unless they are there",
        ),
        _file("unit_centrifugo", f"{_UNITS}/centrifugo.service", centrifugo.UNIT, keep=True),
        _enabled("enable_centrifugo", "centrifugo.service:centrifugo"),
    ),
}  # fmt: skip


def firewall_items(rules: str) -> tuple[Item, ...]:
    """What applies these rules and keeps them over a reboot."""
    return (
        _file("unit_firewall", f"{_UNITS}/codeb-firewall.service", FIREWALL_UNIT),
        Item(
            "firewall", "firewall", (FIREWALL,),
            "apply the firewall's rules; the former ones come back unless a new connection gets through", rules,
        ),
        _enabled("enable_firewall", "codeb-firewall.service"),
    )  # fmt: skip


def merged(present: str, values: Mapping[str, Any]) -> str:
    """The JSON object with these keys set; others stay, and so does the text when nothing changes. Raises ValueError for a
    text that is no JSON object."""
    found = json.loads(present) if present.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    wanted = {**found, **values}
    return present if wanted == found else json.dumps(wanted, indent=2) + "\n"
