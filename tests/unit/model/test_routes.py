"""The wanted proxy configuration, and how it is merged into one that has other people's routes."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import (
    Route,
    Site,
    flag_name,
    merge_routes,
    nobody_route,
    rival,
    rivals_before,
    route_hosts,
    site_from_route,
    site_key,
    site_problems,
    site_route,
)

SHOP = Site("shop-production", ("shop.test", "www.shop.test"), 4000, 4001, "b.preview.test", "g.preview.test")


def _handlers(route: Route) -> list[dict[str, Any]]:
    handled: list[dict[str, Any]] = route["handle"][-1]["routes"]
    return handled


def test_the_route_looks_for_green_first_then_for_off_and_ends_at_blue() -> None:
    route = site_route(SHOP, "/flags")
    tried = [inner["match"][0].get("file", {}).get("try_files") for inner in _handlers(route) if "match" in inner]
    assert tried == [None, None, ["/shop-production.green"], ["/shop-production.off"]]
    shown = [inner["handle"] for inner in _handlers(route)]
    shown = [handle[0]["routes"][0]["handle"] if handle[0]["handler"] == "subroute" else handle for handle in shown]
    dials = [handle[-1].get("upstreams", [{}])[0].get("dial") for handle in shown]
    assert dials == ["127.0.0.1:4000", "127.0.0.1:4001", "127.0.0.1:4001", None, "127.0.0.1:4000"]
    assert "match" not in _handlers(route)[-1]
    assert route["match"] == [{"host": ["shop.test", "www.shop.test", "b.preview.test", "g.preview.test"]}]


def test_a_site_without_previews_has_no_preview_routes() -> None:
    route = site_route(Site("a-staging", ("a.test",), 1, 2), "/flags")
    assert len(_handlers(route)) == 3
    assert list(route_hosts(route)) == ["a.test"]


def test_flags_and_ids_are_named_after_the_key() -> None:
    assert [flag_name("k", slot) for slot in (Slot.GREEN, None, Slot.BLUE)] == ["k.green", "k.off", None]
    assert site_key(site_route(SHOP, "/f")) == "shop-production"
    assert [site_key(route) for route in ({}, {"@id": 7}, {"@id": "theirs"})] == [None, None, None]


@pytest.mark.parametrize(
    ("site", "fields"),
    [
        (SHOP, []),
        (Site("A", ("a.test",), 1, 2), ["key"]),
        (Site("a", (), 1, 2), ["hosts"]),
        (Site("a", ("a.test", "a.test"), 1, 2), ["hosts"]),
        (Site("a", ("a",), 1, 2), ["hosts"]),
        (Site("a", ("a.test",), 0, 65536), ["blue_port", "green_port"]),
        (Site("a", ("a.test",), 5, 5), ["green_port"]),
        (Site("a", ("a.test",), 1, 2, "UPPER.test"), ["hosts"]),
    ],
)
def test_each_problem_of_a_site_names_its_field(site: Site, fields: list[str]) -> None:
    assert [problem["field"] for problem in site_problems(site)] == fields


def test_a_rival_is_another_route_with_the_same_name_and_not_a_wildcard() -> None:
    ours = site_route(SHOP, "/f")
    wild: Route = {"match": [{"host": ["*.test"]}]}
    foreign: Route = {"match": [{"path": ["/x"]}, {"host": ["other.test", "SHOP.test"]}]}
    assert rival([wild, ours, {}, {"match": None}], SHOP) is None
    assert rival([wild, ours, foreign], SHOP) == ("shop.test", "route 2")
    assert rival([{**foreign, "@id": "theirs"}], SHOP) == ("shop.test", "route theirs")
    assert rival([site_route(Site("b-staging", ("www.shop.test",), 1, 2), "/f")], SHOP) == (
        "www.shop.test",
        "site b-staging",
    )


KEYS = st.sampled_from(["a", "b", "c", "d", "e"])


def _ours(key: str, version: int) -> Route:
    return {"@id": f"codeb-site-{key}", "version": version}


ROUTES = st.lists(
    st.one_of(
        KEYS.map(lambda key: _ours(key, 0)),
        st.builds(lambda number, name: {"n": number, **({"@id": f"x{name}"} if name else {})}, st.integers(), st.integers(0, 2)),
    ),
    max_size=12,
    unique_by=lambda route: route.get("@id", id(route)),
)  # fmt: skip


@given(present=ROUTES, upsert=st.sets(KEYS), remove=st.sets(KEYS))
def test_a_merge_has_what_is_wanted_and_leaves_foreign_routes_as_they_were(
    present: list[Route], upsert: set[str], remove: set[str]
) -> None:
    remove -= upsert
    merged = merge_routes(present, [_ours(key, 1) for key in sorted(upsert)], remove)
    assert [route for route in merged if site_key(route) is None] == [r for r in present if site_key(r) is None]
    had = {site_key(route) for route in present} - {None}
    assert {site_key(route) for route in merged} - {None} == (had | upsert) - remove
    assert all(route["version"] == int(str(site_key(route)) in upsert) for route in merged if site_key(route))
    assert merge_routes(merged, [_ours(key, 1) for key in sorted(upsert)], remove) == merged
    fresh = [route for route in merged if site_key(route) in upsert - had]
    assert merged[: len(fresh)] == fresh


NOBODY = nobody_route("apps.test", "preview.test")


@given(present=ROUTES, upsert=st.sets(KEYS), remove=st.sets(KEYS), former=st.none() | st.integers(0, 12))
def test_the_route_for_nobody_is_the_last_as_long_as_there_is_a_site(
    present: list[Route], upsert: set[str], remove: set[str], former: int | None
) -> None:
    remove -= upsert
    wanted = [_ours(key, 1) for key in sorted(upsert)]
    plain = merge_routes(present, wanted, remove)
    if former is not None:
        present = [*present[:former], {**NOBODY, "of": "an earlier version"}, *present[former:]]
    merged = merge_routes(present, wanted, remove, NOBODY)
    assert merged == ([*plain, NOBODY] if any(map(site_key, plain)) else plain)
    assert merge_routes(merged, wanted, remove, NOBODY) == merged


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("shop-staging-blue.preview.my-own.test", True),
        ("Any.Thing.PREVIEW.my-own.test.", True),
        ("shop-pr-12-preview.my-own.test", True),
        ("shop-staging.my-own.test", True),
        ("preview.my-own.test", False),
        ("shop.my-own.test", False),
        ("api.my-own.test", False),
        ("a.b-staging.my-own.test", False),
        ("shop-stagings.my-own.test", False),
        ("xpreview.my-own.test", False),
        ("a.preview.my-own.test.evil.test", False),
        ("shop-staging.my-ownxtest", False),
    ],
)
def test_only_names_that_can_be_nobody_elses_are_answered_for_nobody(host: str, is_ours: bool) -> None:
    pattern = nobody_route("my-own.test", "preview.my-own.test")["match"][0]["vars_regexp"]["{http.request.host}"]
    assert bool(re.search(pattern["pattern"], host)) is is_ours


def test_the_route_for_nobody_names_no_host_that_would_get_a_certificate() -> None:
    assert list(route_hosts(NOBODY)) == []
    assert site_key(NOBODY) is None


def test_a_route_that_stands_twice_is_left_once() -> None:
    merged = merge_routes([_ours("a", 0), {"n": 1}, _ours("a", 0)], [_ours("a", 1)], [])
    assert merged == [_ours("a", 1), {"n": 1}]


def test_security_headers_are_added_only_where_an_answer_has_none_and_can_be_left_out() -> None:
    added = [one["response"] for one in site_route(SHOP, "/f")["handle"] if one["handler"] == "headers"]
    assert [list(one["set"]) for one in added] == [["X-Content-Type-Options"], ["Referrer-Policy"], ["X-Frame-Options"]]
    assert all(set(one["set"]) <= set(one["require"]["headers"]) for one in added)
    plain = site_route(replace(SHOP, security_headers=False), "/f")
    assert [one["handler"] for one in plain["handle"]] == ["subroute"]


def test_hsts_is_for_tls_only_and_for_no_name_below() -> None:
    hsts = site_route(SHOP, "/f")["handle"][3]["routes"]
    assert [route["match"] for route in hsts] == [[{"protocol": "https"}]]
    assert "includeSubDomains" not in str(hsts)


@pytest.mark.parametrize("headers", [True, False])
def test_a_site_is_told_from_its_route_with_or_without_security_headers(headers: bool) -> None:
    wanted = replace(SHOP, security_headers=headers)
    assert site_from_route(site_route(wanted, "/f")) == wanted


def test_a_site_is_told_from_a_route_of_an_earlier_version() -> None:
    route = site_route(SHOP, "/f")
    for inner in route["handle"][-1]["routes"]:
        if inner["handle"][0]["handler"] == "subroute":
            inner["handle"] = inner["handle"][0]["routes"][0]["handle"]
    assert site_from_route(route) == SHOP


OURS = site_route(Site("shop-production", ("shop.test", "www.shop.test"), 4000, 4001), "/flags")
ANSWER = [{"handler": "static_response"}]


@pytest.mark.parametrize(
    ("route", "taken"),
    [
        ({"match": [{"host": ["shop.test"]}], "handle": ANSWER}, ["shop.test"]),
        ({"match": [{"host": ["SHOP.test"], "path": ["/health"]}], "handle": ANSWER}, ["shop.test"]),
        ({"match": [{"host": ["a.test"]}, {"host": ["*.shop.test"]}], "handle": ANSWER}, ["www.shop.test"]),
        ({"handle": ANSWER}, ["shop.test", "www.shop.test"]),
        ({"match": [{"host": ["shop.test"]}], "terminal": True}, ["shop.test"]),
        ({"match": [{"host": ["shop.test"]}], "handle": [{"handler": "subroute", "routes": [{"handle": ANSWER}]}]}, ["shop.test"]),
        ({"match": [{"host": ["shop.test"]}], "handle": [{"handler": "headers"}]}, []),
        ({"match": [{"path": ["/static/*"]}], "handle": ANSWER}, []),
        ({"match": [{"host": ["*.test.shop"]}], "handle": ANSWER}, []),
        ({"match": [{"host": ["*"]}], "handle": ANSWER}, ["shop.test", "www.shop.test"]),
    ],
    ids=str,
)  # fmt: skip
def test_a_route_before_ours_that_answers_for_our_hosts_is_a_rival(route: Route, taken: list[str]) -> None:
    assert [one.host for one in rivals_before([route, OURS], "srv0")] == taken
    assert rivals_before([OURS, route], "srv0") == []
    assert {one.where for one in rivals_before([route, OURS], "srv0")} <= {"route 0 of the proxy's server srv0"}


def test_a_route_of_ours_is_nobodys_rival() -> None:
    other = site_route(Site("shop-staging", ("shop.test",), 4002, 4003), "/flags")
    nobody = nobody_route("apps.test", "preview.test")
    assert rivals_before([other, nobody, OURS], "srv0") == []
