"""`codeb ssh-key`: the key by which this installation logs in to its servers. No tool: only on the machine itself."""

from __future__ import annotations

import click

from codeb_mcp.faces.cli_call import Manner, Surroundings, print_answer


@click.command("ssh-key", short_help="Make this installation's SSH key and show its public line.")
@click.option("--json", "as_json", is_flag=True, help="Answer JSON")
@click.pass_obj
def ssh_key(around: Surroundings, *, as_json: bool) -> None:
    """Have the key by which the servers are logged in to, and print the line for their authorized_keys.

    The key is made once (ed25519, mode 0600, below CODEB_ROOT unless the settings say otherwise) and never replaced.
    """
    from codeb_mcp.drivers.ssh_keygen import have_key

    pair = have_key(around.settings().ssh_key)
    if as_json:
        shown = {"path": str(pair.path), "made": pair.made, "fingerprint": pair.fingerprint, "authorizedKey": pair.line}
        print_answer(shown, Manner(json=True))
        return
    click.echo(f"{pair.path}: {'made' if pair.made else 'is there already'} ({pair.fingerprint})", err=True)
    click.echo(pair.line)
