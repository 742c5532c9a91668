"""The cables of the lab hosts: a bridge on the machine, one network namespace and one pair of interfaces per host.

Among themselves the hosts are 198.51.100.N, which is a documentation range: without the lab nothing can reach a stranger.
From the machine a host is 127.0.0.N on every port. All firewall rules stand in chains of our own, so that they can be
taken away as a whole.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.lab.daemons import LabError

BRIDGE = "cbhost0"
NETWORK = "198.51.100"
CHAIN = "CODEB_HOSTS"
COMMAND_SECONDS = 20


def namespace(host: str) -> str:
    """The name of a host's network namespace."""
    return f"cbh-{host}"


def cable(number: int) -> str:
    """The machine's end of a host's cable."""
    return f"cbh{number}"


def plug(hosts: dict[str, int]) -> None:
    """Have the bridge, the namespaces, the cables and the rules for these hosts; `unplug` goes before."""
    _refuse_foreign_network()
    lines = [
        f"link add {BRIDGE} type bridge",
        f"address add {NETWORK}.1/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
        f"route add unreachable {NETWORK}.0/24 metric 4000",
    ]
    for host, number in hosts.items():
        lines += [
            f"netns add {namespace(host)}",
            f"link add {cable(number)} type veth peer name eth0 netns {namespace(host)}",
            f"link set {cable(number)} master {BRIDGE} up",
        ]
    _run(["ip", "-batch", "-"], "\n".join(lines))
    for host, number in hosts.items():
        inside = f"address add {NETWORK}.{number}/24 dev eth0\nlink set eth0 up\nlink set lo up\n"
        _run(["ip", "-netns", namespace(host), "-batch", "-"], inside)
    Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet").write_text("1", encoding="utf-8")
    _run(["iptables-restore", "--noflush", "-w", "10"], _rules(hosts.values()))


def _rules(numbers: Iterable[int]) -> str:
    to_hosts = [f"-A {CHAIN} -d 127.0.0.{number} -j DNAT --to-destination {NETWORK}.{number}" for number in numbers]
    return "\n".join(
        [
            "*nat",
            f":{CHAIN} - [0:0]",
            *to_hosts,
            f"-I OUTPUT -j {CHAIN}",
            f":{CHAIN}_OUT - [0:0]",
            f"-A {CHAIN}_OUT -s 127.0.0.0/8 -o {BRIDGE} -j MASQUERADE",
            f"-I POSTROUTING -j {CHAIN}_OUT",
            "COMMIT",
            "*filter",
            f":{CHAIN} - [0:0]",
            f"-A {CHAIN} -i {BRIDGE} -o {BRIDGE} -j ACCEPT",
            f"-I FORWARD -j {CHAIN}",
            "COMMIT",
            "",
        ]
    )


def unplug(hosts: dict[str, int]) -> None:
    """Take all of it away. Harmless when it is not there."""
    for table, hooks in (
        ("nat", (("OUTPUT", CHAIN), ("POSTROUTING", f"{CHAIN}_OUT"))),
        ("filter", (("FORWARD", CHAIN),)),
    ):
        for hook, chain in hooks:
            if _iptables(table, "-F", chain):
                while _iptables(table, "-D", hook, "-j", chain):
                    pass
                _iptables(table, "-X", chain)
    lines = [f"netns delete {namespace(host)}" for host in hosts if Path("/run/netns", namespace(host)).exists()]
    lines += [f"link delete {cable(number)}" for number in hosts.values() if _there(cable(number))]
    if _there(BRIDGE):
        lines.append(f"link delete {BRIDGE}")
    lines.append(f"route delete unreachable {NETWORK}.0/24 metric 4000")
    _run(["ip", "-force", "-batch", "-"], "\n".join(lines), check=False)


def set_cable(number: int, *, plugged: bool) -> None:
    """Pull or plug a host's cable."""
    _run(["ip", "link", "set", cable(number), "up" if plugged else "down"])


def inside(host: str, *argv: str, check: bool = True) -> None:
    """Run a command of the machine in a host's network, also while its power is off."""
    _run(["nsenter", f"--net=/run/netns/{namespace(host)}", "--", *argv], check=check)


def _there(interface: str) -> bool:
    return Path("/sys/class/net", interface).exists()


def _refuse_foreign_network() -> None:
    shown = json.loads(_run(["ip", "-json", "address"]))
    for interface in shown:
        for address in interface.get("addr_info", ()):
            if str(address.get("local", "")).startswith(f"{NETWORK}."):
                raise LabError(
                    f"{interface['ifname']} of this machine already has {address['local']}: another lab runs here; "
                    "take it down, or leave these tests out with CODEB_TEST_WITHOUT=hosts"
                )


def _iptables(table: str, *words: str) -> bool:
    done = subprocess.run(
        ["iptables", "-w", "10", "-t", table, *words], capture_output=True, timeout=COMMAND_SECONDS, check=False
    )
    return done.returncode == 0


def _run(argv: list[str], stdin: str = "", *, check: bool = True) -> str:
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    if check and done.returncode:
        raise LabError(f"{' '.join(argv)} -> {done.returncode}: {done.stderr.strip()[:500]}")
    return done.stdout
