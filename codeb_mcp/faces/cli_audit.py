"""`codeb audit seal`: how the owner of the machine goes on after the audit trail was damaged. No tool: only on the machine."""

from __future__ import annotations

import os
import pwd
from typing import Any

import click

from codeb_mcp.faces.cli_call import Manner, Surroundings, print_answer, with_services
from codeb_mcp.model.errors import RegistryDamaged


def somebody() -> str:
    """Who runs this command, as the system knows them."""
    number = os.getuid()
    try:
        name = pwd.getpwuid(number).pw_name
    except KeyError:
        name = "?"
    return f"{name} (uid {number}) on the machine"


@click.command("seal", short_help="Record what is broken in the trail, and begin a new segment of it.")
@click.option("--reason", default="", metavar="TEXT", help="Why it is broken, if that is known; goes into the record")
@click.option("--json", "as_json", is_flag=True, help="Answer JSON")
@click.pass_obj
def seal_audit(around: Surroundings, *, reason: str, as_json: bool) -> int:
    """Acknowledge damage that `codeb audit verify` finds: a record says what is broken, and a new segment begins with it.

    Nothing is removed or repaired. From then on `codeb audit verify` is ok for all that follows, lists the sealed damage
    for ever, and still notices any change to what lies before the seal. A trail that is whole is left alone.
    """
    from codeb_mcp.operations.audits import seal_trail

    async def work(services: Any) -> Any:
        return await seal_trail(services, by=somebody(), reason=reason)

    done = with_services(around, work)
    damage = [flaw.as_dict() for flaw in done.seal.flaws] if done.seal else []
    answer = {"sealed": done.seal is not None, "record": done.seal and done.seal.record, "data": damage}
    if as_json:
        print_answer({**answer, "ok": done.report.ok}, Manner(json=True))
    elif done.seal is None:
        click.echo("the audit trail is whole; nothing to seal" if done.report.ok else done.report.first_problem)
    else:
        print_answer({"data": damage}, Manner())
        click.echo(f"sealed by record {done.seal.record}; the trail is verified from there on")
    return 0 if done.report.ok else RegistryDamaged.exit_code
