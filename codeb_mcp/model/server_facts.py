"""What a server's own words say about it: socket tables, disks, sshd's configuration. Text in, judgement out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from codeb_mcp.model.server import ServerRole

LISTEN = "0A"
SKEW_WARN_SECONDS = 1.0
SKEW_FAIL_SECONDS = 10.0
"""Leases, grace periods and certificates compare times of different servers."""
FREE_WARN, FREE_FAIL = 0.15, 0.05
"""Part of a file system that should at least be free."""


class Health(StrEnum):
    """How a check ended. `unknown`: it could not be asked, which is not the same as bad."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was found, and what to do about it unless it is well."""

    check: str
    status: Health
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening TCP socket. `loopback`: only the server itself reaches it."""

    port: int
    address: str

    @property
    def loopback(self) -> bool:
        """Whether only the server itself reaches it."""
        return ipaddress.ip_address(self.address).is_loopback


PRIVATE: tuple[tuple[range, str], ...] = (
    (range(2019, 2020), "Caddy's admin API"),
    (range(2375, 2377), "the container engine"),
    (range(3000, 3500), "a system service"),
    (range(4000, 5432), "an app's slot"),
    (range(9101, 9102), "the control plane's API"),
)
"""Ports of the guide's table that only the server itself should reach: users come by way of the proxy."""
WITHIN: tuple[tuple[range, str], ...] = (
    (range(5432, 5500), "PostgreSQL"),
    (range(6379, 6500), "Redis"),
    (range(9090, 9091), "Prometheus"),
    (range(9187, 9188), "the PostgreSQL exporter"),
    (range(9121, 9122), "the Redis exporter"),
)
"""Ports that other servers of ours may reach, and nobody else."""


def listeners(table: str) -> Iterator[Listener]:
    """The listening sockets of `/proc/net/tcp`, `/proc/net/tcp6` or `ss -Htln`; lines that are none are passed over."""
    for line in table.splitlines():
        fields = line.split()
        if len(fields) > 3 and fields[3] == LISTEN and ":" in fields[1]:
            address, _, port = fields[1].rpartition(":")
            yield Listener(int(port, 16), _address(address))
        elif len(fields) > 3 and fields[0] == "LISTEN" and ":" in fields[3]:
            address, _, port = fields[3].rpartition(":")
            # `*` is every address of both families; `%` begins the interface.
            bare = address.strip("[]").partition("%")[0].strip("[]")
            yield Listener(int(port), _unmapped(ipaddress.ip_address("::" if bare == "*" else bare)))


def _address(text: str) -> str:
    """The kernel writes each 32-bit word of an address with its bytes turned round (little-endian machines)."""
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    return _unmapped(ipaddress.ip_address(b"".join(words)))


def _unmapped(found: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The address, as IPv4 when it only carries one."""
    return str(getattr(found, "ipv4_mapped", None) or found)


def judge_listeners(found: Sequence[Listener]) -> list[Finding]:
    """Which ports are open that should be private. What listens on every address counts as open: a firewall in front may
    close it, but a published container port goes round most firewalls."""
    findings = []
    for port, address in sorted({(one.port, one.address) for one in found if not one.loopback}):
        if name := _named(PRIVATE, port):
            hint = f"Bind it to 127.0.0.1; {name} must not be reached from outside."
            findings.append(Finding("exposed_ports", Health.FAIL, f"{name} listens on {address}:{port}", hint))
        elif (name := _named(WITHIN, port)) and ipaddress.ip_address(address).is_unspecified:
            hint = "Bind it to the private address, or let the firewall admit only your own servers."
            findings.append(Finding("exposed_ports", Health.WARN, f"{name} listens on every address ({port})", hint))
    return findings or [Finding("exposed_ports", Health.OK, "nothing private is open")]


def _named(table: Sequence[tuple[range, str]], port: int) -> str:
    return next((name for ports, name in table if port in ports), "")


def judge_disks(df: str) -> list[Finding]:
    """Free space from `df -P -B1`: one finding, about the fullest file system."""
    rows = [line.split(None, 5) for line in df.splitlines()[1:]]
    sizes = [(row[5], int(row[1]), int(row[3])) for row in rows if len(row) == 6 and row[1].isdigit() and int(row[1])]
    if not sizes:
        return [Finding("disk", Health.UNKNOWN, "df gave no sizes")]
    mount, size, free = min(sizes, key=lambda one: one[2] / one[1])
    part = free / size
    said = f"{mount}: {free >> 20} MiB of {size >> 20} MiB free ({part:.0%})"
    if part < FREE_FAIL:
        return [Finding("disk", Health.FAIL, said, "Free space now: images, backups and logs stop when it is full.")]
    if part < FREE_WARN:
        return [Finding("disk", Health.WARN, said, "Free space soon, or enlarge the disk.")]
    return [Finding("disk", Health.OK, said)]


def judge_clock(skew_seconds: float, uncertainty_seconds: float) -> Finding:
    """How far the server's clock is from ours; `uncertainty_seconds` is half the time that asking took."""
    said = f"{skew_seconds:+.3f} s against the control plane (±{uncertainty_seconds:.3f})"
    off = max(0.0, abs(skew_seconds) - uncertainty_seconds)
    hint = "Run a time service (chrony or systemd-timesyncd) on both."
    if off > SKEW_FAIL_SECONDS:
        return Finding("clock", Health.FAIL, said, hint)
    return Finding("clock", Health.WARN, said, hint) if off > SKEW_WARN_SECONDS else Finding("clock", Health.OK, said)


def judge_root_login(config: str) -> Finding:
    """Whether root may log in with a password, from sshd's configuration. The first value counts, as for sshd itself
    (sshd_config(5)); its default is `prohibit-password`."""
    said = "prohibit-password"
    for line in config.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0].lower() == "match":
            break
        if len(words) >= 2 and words[0].lower() == "permitrootlogin":
            said = words[1].lower()
            break
    if said == "yes":
        hint = "Set `PermitRootLogin prohibit-password`, or `no`, in /etc/ssh/sshd_config and reload sshd."
        return Finding("root_login", Health.FAIL, "root may log in with a password", hint)
    return Finding("root_login", Health.OK, f"PermitRootLogin {said}")


def judge_registered_ports(found: Sequence[Listener], expected: dict[int, str]) -> list[Finding]:
    """Ports that the registry says are in use (`expected`: port to what it belongs to) and on which nobody listens."""
    open_now = {one.port for one in found}
    missing = [f"{port} ({name})" for port, name in sorted(expected.items()) if port not in open_now]
    if not missing:
        return [Finding("registered_ports", Health.OK, f"{len(expected)} of {len(expected)} answer")]
    hint = "Run registry_check, which tells what differs and how to repair it."
    return [Finding("registered_ports", Health.FAIL, f"nobody listens on {', '.join(missing[:10])}", hint)]


ROLE_PORTS: dict[ServerRole, tuple[tuple[int, str], ...]] = {
    ServerRole.APPLICATION: ((80, "HTTP"), (443, "HTTPS")),
    ServerRole.STREAMING: ((8000, "Centrifugo"),),
    ServerRole.DATABASE: ((5432, "PostgreSQL"), (6379, "Redis")),
    ServerRole.BACKUP: ((9090, "Prometheus"),),
}
"""What the guide's servers offer, by role."""
