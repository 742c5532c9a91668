"""What a server of each role has to have, as data, in the order in which it is made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from codeb_mcp.model.server import ServerRole

Kind = Literal["packages", "user", "line", "folder", "file", "merge", "secrets"]
USER, ROOT = "codeb", "/opt/codeb"
R = ServerRole

PACKAGES: Mapping[ServerRole, tuple[str, ...]] = {
    R.APPLICATION: ("ca-certificates", "curl", "rsync", "docker.io:dockerd", "caddy:caddy"),
    R.STREAMING: ("ca-certificates", "curl"),
    R.DATABASE: ("rsync", "postgresql:pg_lsclusters", "redis-server:redis-server"),
    R.BACKUP: ("rsync", "prometheus:prometheus"),
}
"""Packages of Debian; one whose program (after the colon) is there already, from whatever source, is left alone."""
FOLDERS: Mapping[ServerRole, tuple[tuple[str, str], ...]] = {
    R.APPLICATION: (("registry", "0700"), ("env-backup", "0700"), ("projects", "0700"), ("traffic", "0755"), ("scripts", "0755")),
    R.STREAMING: (("scripts", "0755"),),
    R.DATABASE: (("scripts", "0755"),),
    R.BACKUP: (("env-backup", "0700"), ("wal-archive", "0700"), ("scripts", "0755")),
}  # fmt: skip
DAEMON: Mapping[str, Any] = {
    "live-restore": False,  # published loopback ports would be dead until the daemon is back
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m", "max-file": "3"},
    "no-new-privileges": True,
}
CADDY = {"admin": {"listen": "127.0.0.1:2019"}, "apps": {"http": {"servers": {}}}}
CENTRIFUGO = {"port": 8000, "health": True, "client_insecure": False, "admin": False}
UNIT = """[Unit]
Description=CodeB {what}
After=network-online.target docker.service
Wants=network-online.target

[Service]
User=codeb
Environment=CODEB_ROOT=/opt/codeb
ExecStart=/usr/bin/env codeb {command}
{more}
NoNewPrivileges=yes
{install}"""
TIMER = """[Unit]
Description=CodeB housekeeping, also while the server is down

[Timer]
OnUnitInactiveSec=5min
OnBootSec=2min

[Install]
WantedBy=timers.target
"""
LOGROTATE = "/var/log/codeb/*.log {\n  weekly\n  rotate 8\n  compress\n  missingok\n  notifempty\n  copytruncate\n}\n"


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


def _folder(name: str, path: str, mode: str) -> Item:
    return Item(name, "folder", (path, mode, f"{USER}:{USER}"), f"have the folder {path} ({USER}, {mode})")


def _file(name: str, path: str, content: str, *, mode: str = "0644", keep: bool = False) -> Item:
    says = f"write {path}" + (" unless there is one" if keep else "; a former one is kept as .before-codeb")
    return Item(name, "file", (path, mode, "root:root", "keep" if keep else "replace"), says, content)


def _unit(what: str, command: str, more: str, install: str = "") -> str:
    return UNIT.format(what=what, command=command, more=more, install=install)


_SERVE = ("Restart=always\nRestartSec=2", "\n[Install]\nWantedBy=multi-user.target\n")
_OF_ROLE: Mapping[ServerRole, tuple[Item, ...]] = {
    R.APPLICATION: (
        Item(
            "docker_settings", "merge", ("/etc/docker/daemon.json", "0644", "root:root", "replace"),
            "harden the engine in /etc/docker/daemon.json, keeping what it says besides; takes effect at its next restart",
            values=DAEMON,
        ),
        _file("caddy", "/etc/caddy/codeb.json", json.dumps(CADDY, indent=2) + "\n", keep=True),
        _file("unit_serve", "/etc/systemd/system/codeb.service", _unit("control plane", "serve", *_SERVE)),
        _file(
            "unit_housekeeping", "/etc/systemd/system/codeb-housekeeping.service",
            _unit("housekeeping", "housekeeping", "Type=oneshot"),
        ),
        _file("timer_housekeeping", "/etc/systemd/system/codeb-housekeeping.timer", TIMER),
        _file("logrotate", "/etc/logrotate.d/codeb", LOGROTATE),
    ),
    R.STREAMING: (
        Item("centrifugo_folder", "folder", ("/etc/centrifugo", "0755", "root:root"), "have the folder /etc/centrifugo"),
        _file("centrifugo", "/etc/centrifugo/config.json", json.dumps(CENTRIFUGO, indent=2) + "\n", keep=True),
        Item(
            "centrifugo_secrets", "secrets",
            ("/etc/centrifugo/secrets.env", "CENTRIFUGO_TOKEN_HMAC_SECRET_KEY", "CENTRIFUGO_API_KEY"),
            "make its token and API secrets in /etc/centrifugo/secrets.env (0600) unless they are there",
        ),
    ),
}  # fmt: skip


def merged(present: str, values: Mapping[str, Any]) -> str:
    """The JSON object with these keys set; others stay, and so does the text when nothing changes. Raises ValueError for a
    text that is no JSON object."""
    found = json.loads(present) if present.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("is no JSON object")
    wanted = {**found, **values}
    return present if wanted == found else json.dumps(wanted, indent=2) + "\n"


def digest(content: str) -> str:
    """What a script compares what it was sent with: a line that was cut must not become a file that is cut."""
    return hashlib.sha256(content.encode()).hexdigest()


_HEAD = "set -eu; umask 077; mode=$1; shift; export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive; "
_HEAD += 'change() { [ "$mode" = apply ] || { echo change; exit 0; }; }; right() { echo right; exit 0; }; '
_PLACE = """
  cat > "$1.codeb-new"
  printf '%s  %s\\n' "$5" "$1.codeb-new" | sha256sum -c --status - || { rm -f "$1.codeb-new"; echo cut >&2; exit 9; }
"""
_SETTLE = """
  chmod "$2" "$1.codeb-new"; chown "$3" "$1.codeb-new"; sync "$1.codeb-new"
  [ ! -e "$1" ] || [ -e "$1.before-codeb" ] || cp -a "$1" "$1.before-codeb"
  mv -fT "$1.codeb-new" "$1"; sync "$(dirname "$1")"; echo changed
"""
SCRIPTS: Mapping[Kind, str] = {
    "packages": _HEAD + """
missing=; for one; do
  name=${one%%:*}; [ "$name" = "$one" ] || ! command -v "${one#*:}" >/dev/null || continue
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing="$missing $name"
done
[ -n "$missing" ] || right
change; dpkg --configure -a >&2; apt-get update -q >&2 || true
apt-get install -q -y --no-remove --no-install-recommends $missing >&2; echo changed
""",
    "user": _HEAD + """
groups=; [ -z "$3" ] || ! getent group "$3" >/dev/null || groups=$3
if id -u "$1" >/dev/null 2>&1; then
  [ -z "$groups" ] || case " $(id -Gn "$1") " in *" $groups "*) ;; *) change; usermod -a -G "$groups" "$1"; echo changed; exit 0;; esac
  right
fi
change; useradd --create-home --home-dir "$2" --shell /bin/sh --password '*' ${groups:+-G "$groups"} "$1"; echo changed
""",
    "folder": _HEAD + """
[ ! -L "$1" ] || { echo "$1 is a link" >&2; exit 8; }
if [ -d "$1" ]; then [ "0$(stat -c %a "$1") $(stat -c %U:%G "$1")" != "$2 $3" ] || right
elif [ -e "$1" ]; then echo "$1 is no folder" >&2; exit 8; fi
change; mkdir -p "$1"; chown "$3" "$1"; chmod "$2" "$1"; sync "$(dirname "$1")"; echo changed
""",
    "line": _HEAD + """
line=$(cat); [ "$(printf '%s' "$line" | sha256sum | cut -d' ' -f1)" = "$4" ] || { echo cut >&2; exit 9; }
[ ! -L "$1" ] || { echo "$1 is a link" >&2; exit 8; }
if [ -f "$1" ] && grep -qxF -- "$line" "$1"; then right; fi
change; { [ ! -f "$1" ] || cat "$1"; printf '%s\\n' "$line"; } > "$1.codeb-new"
""" + _SETTLE,
    "file": _HEAD + """
[ ! -L "$1" ] || { echo "$1 is a link" >&2; exit 8; }
if [ -e "$1" ]; then
  [ "$4" != keep ] || right
  [ "$(sha256sum < "$1" | cut -d' ' -f1) 0$(stat -c '%a %U:%G' "$1")" != "$5 $2 $3" ] || right
fi
change; mkdir -p -m 0755 "$(dirname "$1")"
""" + _PLACE + _SETTLE,
    "secrets": _HEAD + """
file=$1; shift; [ ! -e "$file" ] || right
change; for one; do printf '%s=%s\\n' "$one" "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"; done > "$file.codeb-new"
sync "$file.codeb-new"; mv -fT "$file.codeb-new" "$file"; sync "$(dirname "$file")"; echo changed
""",
}  # fmt: skip
"""Fixed commands: arguments are words, contents come on stdin. The first argument is `check` or `apply`; the answer is right,
change or changed. Each has its effect as a whole, and a second time none."""


INTERNAL: Mapping[ServerRole, str] = {
    R.APPLICATION: "9101",
    R.STREAMING: "8000",
    R.DATABASE: "5432-5499, 6379-6499",
    R.BACKUP: "9090",
}


def firewall(role: ServerRole, ssh_port: int, peers: Sequence[str] = ()) -> str:
    """Rules of nftables for the role: the port of sshd in use and what is public; what is internal for the other servers
    (`peers`, IP addresses) only; all else from outside is dropped."""
    public = {R.APPLICATION: "80, 443", R.STREAMING: "80, 443", R.DATABASE: "", R.BACKUP: ""}[role]
    ports = ", ".join(text for text in (str(ssh_port), public) if text)
    ours = [
        f"    {family} saddr {{ {', '.join(some)} }} tcp dport {{ {INTERNAL[role]} }} accept\n"
        for family, some in (
            ("ip", [one for one in peers if ":" not in one]),
            ("ip6", [one for one in peers if ":" in one]),
        )
        if some
    ]
    return (
        "table inet codeb {\n  chain input {\n    type filter hook input priority 0; policy drop;\n"
        '    ct state established,related accept\n    iif "lo" accept\n    meta l4proto { icmp, ipv6-icmp } accept\n'
        f"    tcp dport {{ {ports} }} accept\n{''.join(ours)}  }}\n}}\n"
    )
