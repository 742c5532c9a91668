"""No two environments of projects that can be created share a name anywhere."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from codeb_mcp.model.names import (
    Environment,
    ProjectName,
    Slot,
    container_name,
    derived_name,
    environment_key,
    split_environment_key,
)
from codeb_mcp.model.project import EnvironmentSettings, preview_host, public_host

BASE = "apps.test"
SUFFIXES = st.lists(st.sampled_from([*Environment, *Slot, "shop", "stagings"]), max_size=3)
PROJECTS = st.builds(
    lambda first, more: "-".join([first, *more]), st.sampled_from(["shop", "a", "1-x", "pr"]), SUFFIXES
)
PLACES = st.tuples(PROJECTS, st.sampled_from(Environment), st.sampled_from(Slot))
# The other one's name mostly begins with the first one's: by chance alone such pairs are rare.
PAIRS = st.builds(
    lambda one, more, rest: (one, ("-".join([one[0], *more]), *rest[1:])), PLACES, SUFFIXES, PLACES
) | st.tuples(PLACES, PLACES)  # fmt: skip
NAME: TypeAdapter[str] = TypeAdapter(ProjectName)
Place = tuple[str, Environment, Slot]


def _creatable(name: str) -> bool:
    try:
        NAME.validate_python(name)
    except ValidationError:
        return False
    return derived_name(name) is None


def _hosts(place: Place, preview_domain: str) -> set[str]:
    project, environment, slot = place
    first = public_host(project, environment, EnvironmentSettings(), BASE)
    return {first, preview_host(project, environment, slot, preview_domain)}


@settings(max_examples=1000)
@given(pair=PAIRS, preview_domain=st.sampled_from([f"preview.{BASE}", "preview.test", BASE]))
def test_different_places_never_share_a_key_a_host_or_a_container(
    pair: tuple[Place, Place], preview_domain: str
) -> None:
    one, other = pair
    assume(one != other and _creatable(one[0]) and _creatable(other[0]))
    assert container_name(*one) != container_name(*other)
    if one[:2] != other[:2]:
        assert environment_key(*one[:2]) != environment_key(*other[:2])
        assert not _hosts(one, preview_domain) & _hosts(other, preview_domain)
    # An environment's or container's name is no project's name either, nor one of the other kind.
    assert environment_key(*one[:2]) not in (other[0], container_name(*other))
    assert container_name(*one) != other[0]


@given(PLACES)
def test_a_key_is_taken_apart_as_it_was_put_together(place: Place) -> None:
    project, environment, _ = place
    assume(project)
    assert split_environment_key(environment_key(project, environment)) == (project, environment)


@pytest.mark.parametrize("environment", Environment)
def test_the_name_of_an_environment_or_slot_says_whose_it_is(environment: Environment) -> None:
    assert derived_name(f"shop-{environment}") == ("shop", environment)
    for slot in Slot:
        assert derived_name(f"shop-{environment}-{slot}") == ("shop", f"{environment}-{slot}")


@pytest.mark.parametrize(
    "name", ["shop", "staging", "blue", "staging-shop", "navy-blue", "evergreen", "shop-stagings", "shopstaging"]
)
def test_other_names_are_free(name: str) -> None:
    assert derived_name(name) is None
