"""The firewall of a server by its role: rules of nftables from the table of ports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from codeb_mcp.model.server import ServerRole

R = ServerRole
PUBLIC: Mapping[ServerRole, str] = {R.APPLICATION: "80, 443", R.STREAMING: "80, 443", R.DATABASE: "", R.BACKUP: ""}
"""Ports that everybody reaches, besides that of sshd."""
INTERNAL: Mapping[ServerRole, str] = {
    R.APPLICATION: "9101",
    R.STREAMING: "8000",
    R.DATABASE: "5432-5499, 6379-6499",
    R.BACKUP: "9090",
}
"""Ports that only our other servers reach."""


def firewall(role: ServerRole, ssh_ports: Sequence[int], peers: Sequence[str] = ()) -> str:
    """The rules as one file for `nft -f`, which takes them over as a whole or not at all: the ports of sshd in use and what is
    public; what is internal for the other servers (`peers`, IP addresses) only; all else that comes from outside is dropped.
    Only the table `inet codeb` is replaced; rules of others stay."""
    ports = ", ".join(text for text in (*map(str, sorted(set(ssh_ports))), PUBLIC[role]) if text)
    ours = [
        f"    {family} saddr {{ {', '.join(some)} }} tcp dport {{ {INTERNAL[role]} }} accept\n"
        for family, some in (
            ("ip", [one for one in peers if ":" not in one]),
            ("ip6", [one for one in peers if ":" in one]),
        )
        if some
    ]
    quic = "    udp dport 443 accept\n" if PUBLIC[role] else ""
    return (
        "table inet codeb\ndelete table inet codeb\n"
        "table inet codeb {\n  chain input {\n    type filter hook input priority 0; policy drop;\n"
        '    ct state established,related accept\n    iif "lo" accept\n    meta l4proto { icmp, ipv6-icmp } accept\n'
        "    ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept\n"
        f"    tcp dport {{ {ports} }} accept\n{quic}{''.join(ours)}  }}\n}}\n"
    )
