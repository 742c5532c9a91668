"""The lists of moments at which the server is killed name every step that the machines have."""

from __future__ import annotations

from codeb_mcp.model import deploy, traffic
from codeb_mcp.model.deploy import Deploy
from tests.crash.test_kill_at_every_step import AUTO_PROMOTED, DEPLOY, FORGOTTEN, REROUTED, REVERTED, SWITCH
from tests.unit.model.plans import deploy_plan, switch_plan

DRAIN = ["drain:1"]
"""Stands there in a list of its own, for a promote that is asked to drain."""


def _names(listed: list[str]) -> set[str]:
    return {one.partition(":")[0] for one in listed}


def test_each_step_of_a_deploy_is_among_them() -> None:
    begun = Deploy(deploy_plan())
    made = {build(begun).name for build in deploy._ACTIONS.values()}
    assert _names(DEPLOY) | _names(FORGOTTEN) == made


def test_each_step_of_a_switch_is_among_them() -> None:
    plan = switch_plan()
    made = {build(plan).name for build in traffic._ACTIONS.values()}
    assert _names(SWITCH) | _names(REROUTED) | _names(REVERTED) | _names(AUTO_PROMOTED) | _names(DRAIN) == made
