"""Starts services in a lab host as systemd would, from the very unit files that are enabled there.

A lab host has no systemd, so what a boot does is done here: the main command of a unit with its user, its groups, its
variables, its kernel rights and its log. Sandboxing (ProtectSystem and the like) is not.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from tests.lab.daemons import LabError
from tests.lab.hosts import LabHosts

FOLDERS = ("/etc/systemd/system", "/lib/systemd/system")
START = r"""
log=$1; shift; setsid "$@" >>"$log" 2>&1 </dev/null & echo $!
"""


def enabled(lab: LabHosts, host: str, unit: str) -> bool:
    """Whether a boot starts it."""
    return lab.exec(host, "systemctl", "-q", "is-enabled", unit, check=False).returncode == 0


def start(lab: LabHosts, host: str, unit: str) -> str:
    """Start an enabled unit; answers where its output goes."""
    if not enabled(lab, host, unit):
        raise LabError(f"{host}: {unit} is not enabled")
    service = dict(_service(lab, host, unit))
    words = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG=C.UTF-8"]
    words += shlex.split(service.get("Environment", ""))
    if "EnvironmentFile" in service:
        words += lab.exec(host, "cat", service["EnvironmentFile"]).stdout.decode().split()
    if user := service.get("User"):
        uid, gid, home = _account(lab, host, user)
        if folder := service.get("RuntimeDirectory"):
            lab.exec(host, "install", "-d", "-o", uid, "-g", gid, f"/run/{folder}")
        rights = [one.lower() for one in service.get("AmbientCapabilities", "").split()]
        kept = ",".join(f"+{one.removeprefix('cap_')}" for one in rights)
        who = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--init-groups"]
        words = [*who, *([f"--inh-caps={kept}", f"--ambient-caps={kept}"] if kept else []), *words, f"HOME={home}"]
    kind, _, log = service.get("StandardOutput", "").partition(":")
    log = log if kind == "append" else f"/var/log/{unit}.log"
    for command in (service[name] for name in ("ExecStartPre", "ExecStart") if name in service):
        words_of = [*words, *shlex.split(command)]
        if command == service["ExecStart"]:
            lab.exec(host, "sh", "-c", f"umask {service.get('UMask', '0022')}; {START}", "start", log, *words_of)
        else:
            lab.exec(host, *words_of)
    return log


def _account(lab: LabHosts, host: str, user: str) -> tuple[str, str, str]:
    fields = lab.exec(host, "getent", "passwd", user).stdout.decode().strip().split(":")
    return fields[2], fields[3], fields[5]


def _service(lab: LabHosts, host: str, unit: str) -> Iterator[tuple[str, str]]:
    """The settings of `[Service]`, with what its drop-ins change; an empty value takes back what was said."""
    files = " ".join(f'"{folder}/$0"' for folder in FOLDERS)
    look = f'for f in {files}; do [ ! -e "$f" ] || {{ cat "$f"; break; }}; done; cat "{FOLDERS[0]}/$0.d/"*.conf 2>/dev/null'
    text = lab.exec(host, "sh", "-c", look, unit, check=False).stdout.decode()
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif section == "Service" and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            if value:
                yield name.strip(), value.strip()
