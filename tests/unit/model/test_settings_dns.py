"""The settings of zones: what a provider needs is asked for by name, and no secret stands in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from codeb_mcp.model.errors import InvalidRequest
from codeb_mcp.settings import load

ZONE = '[dns.zones."example.com"]\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ZONE + 'provider = "rfc2136"\nserver = "192.0.2.53"', "needs key_name, secret_file"),
        (ZONE + 'provider = "powerdns"\nsecret_file = "/s"', "needs server"),
        (ZONE + 'provider = "cloudflare"', "needs secret_file"),
        (ZONE + 'provider = "rfc2136"\nserver = "ns.example.com"\nkey_name = "k"\nsecret_file = "/s"', "dns.zones"),
        (ZONE + 'provider = "powerdns"\nserver = "192.0.2.53"\nsecret_file = "/s"', "HTTP API"),
        (ZONE + 'provider = "manual"\nsecret = "c2VjcmV0"', "secret"),
        (ZONE + 'provider = "route53"', "dns.zones"),
        ('[dns.zones."*.com"]\nprovider = "manual"', "dns.zones"),
        ('[dns]\naddresses = ["here"]', "dns.addresses"),
        ('[dns]\nresolvers = ["192.0.2.1:0"]', "dns.resolvers"),
        ('[dns]\nresolvers = ["192.0.2.1:port"]', "dns.resolvers"),
        ('[proxy]\nacme_directory = "http://ca.test/dir"', "acme_directory"),
        ('[proxy]\nacme_email = "nobody"', "acme_email"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "codeb.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidRequest) as caught:
        load(tmp_path, {})
    assert problem in caught.value.message
    assert "c2VjcmV0" not in caught.value.message


def test_zones_and_addresses_are_read(tmp_path: Path) -> None:
    zone = 'provider = "rfc2136"\nserver = "[2001:db8::53]:5353"\nkey_name = "codeb"\nsecret_file = "/s"\nteams = ["acme"]\n'
    text = (
        '[dns]\naddresses = ["192.0.2.10", "2001:DB8:0::10"]\nresolvers = ["192.0.2.53", "2001:db8::53"]\n'
        + ZONE
        + zone
    )
    (tmp_path / "codeb.toml").write_text(text, encoding="utf-8")
    dns = load(tmp_path, {}).dns
    assert dns.addresses == ("192.0.2.10", "2001:db8::10")
    assert dns.zones["example.com"].teams == ("acme",)
