"""The parts of Caddy's configuration that decide who is asked for certificates, and how others can tell our proxy."""

from __future__ import annotations

import copy
from typing import Any

from codeb_mcp.drivers.caddy_config import Acme, Edge, change, with_proof
from codeb_mcp.model.domains import PROOF_PATH
from codeb_mcp.model.routes import PROOF_ID, Site, proof_route

SHOP = Site("shop-production", ("shop.test", "www.shop.test"), 4000, 4001)
PROOF = proof_route(PROOF_PATH, "0123")
LAB = Acme("https://ca.test/dir", "/etc/ca.pem", "ops@shop.test", 8080)


def _edge(acme: Acme = LAB, *listen: str) -> Edge:
    return Edge("/flags", listen or (":443",), "acme", "codeb", None, acme)


def _policies(config: dict[str, Any]) -> Any:
    return config["apps"]["tls"]["automation"]["policies"]


def test_the_authority_is_asked_for_our_hosts_and_for_nobody_elses() -> None:
    foreign = {"subjects": ["theirs.test"], "issuers": [{"module": "internal"}]}
    before = {
        "apps": {
            "http": {"servers": {"theirs": {"listen": [":9"], "routes": [{"match": [{"host": ["theirs.test"]}]}]}}},
            "tls": {"automation": {"policies": [foreign]}},
        }
    }
    kept = copy.deepcopy(before)
    policies = _policies(change(before, _edge(), [SHOP], []))
    assert [one["subjects"] for one in policies] == [["shop.test", "www.shop.test"], ["theirs.test"]]
    assert policies[0]["issuers"] == [
        {
            "module": "acme", "ca": "https://ca.test/dir", "email": "ops@shop.test", "trusted_roots_pem_files": ["/etc/ca.pem"],
            "challenges": {"http": {"alternate_port": 8080}, "tls-alpn": {"disabled": True}},
        }
    ]  # fmt: skip
    assert before == kept


def test_without_an_authority_of_our_own_caddy_keeps_its_choice() -> None:
    assert "tls" not in change(None, _edge(Acme()), [SHOP], [])["apps"]


def test_the_proof_gets_a_server_of_its_own_or_comes_first_in_the_one_that_is_there() -> None:
    own = with_proof(None, _edge(LAB, "127.0.0.1:443"), PROOF)
    assert own["apps"]["http"]["http_port"] == 8080
    assert own["apps"]["http"]["servers"] == {"codeb-http": {"listen": ["127.0.0.1:8080"], "routes": [PROOF]}}
    foreign = {"match": [{"host": ["theirs.test"]}]}
    theirs = {"apps": {"http": {"servers": {"srv0": {"listen": [":80"], "routes": [foreign]}}}}}
    after = with_proof(theirs, _edge(Acme()), PROOF)
    assert after["apps"]["http"]["servers"] == {"srv0": {"listen": [":80"], "routes": [PROOF, foreign]}}


def test_the_same_proof_again_changes_nothing_and_another_one_replaces_it() -> None:
    once = with_proof(None, _edge(), PROOF)
    assert with_proof(once, _edge(), PROOF) == once
    other = with_proof(once, _edge(), proof_route(PROOF_PATH, "4567"))
    routes = [route for server in other["apps"]["http"]["servers"].values() for route in server["routes"]]
    assert [(route["@id"], route["handle"][0]["body"]) for route in routes] == [(PROOF_ID, "4567\n")]


def test_a_change_of_sites_leaves_the_proof_alone() -> None:
    config = change(with_proof(None, _edge(), PROOF), _edge(), [SHOP], [])
    config = change(config, _edge(), [], [SHOP.key])
    assert config["apps"]["http"]["servers"]["codeb-http"]["routes"] == [PROOF]
