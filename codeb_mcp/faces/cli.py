"""`codeb`: one command per operation of the catalog, and the few that make and run an installation.

`slot_status` is `codeb slot status`, `deploy` is `codeb deploy`; the full tool name works as well. The catalog is read only
when a command needs it, and nothing of MCP, HTTP or the engine is imported before a command runs.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click

from codeb_mcp.faces import cli_audit, cli_setup
from codeb_mcp.faces.cli_call import Interrupted, Manner, Surroundings, Wanted, carry_out, wire_error
from codeb_mcp.faces.cli_env import reveal_env
from codeb_mcp.faces.cli_flags import CONFIRM, Flag, flags_of, wire_arguments
from codeb_mcp.model.errors import Bug, CodebError, Forbidden, InvalidRequest
from codeb_mcp.operations.catalog import Catalog, Effect, Operation, load_all

INTERRUPTED = 130
WIDTH = {"max_content_width": 80, "help_option_names": ["-h", "--help"]}


def run(argv: Sequence[str], around: Surroundings | None = None) -> int:
    """Run one command and answer its exit code; nothing but the answer goes to stdout."""
    manner = _manner_of(argv)
    try:
        with _usage_errors():
            said = ROOT.main(list(argv), prog_name="codeb", standalone_mode=False, obj=around or Surroundings())
            return said if isinstance(said, int) else 0
    except Interrupted as left:
        if left.run_id:
            sys.stderr.write(f"run {left.run_id} is left open: codeb operation resume {left.run_id}\n")
        return INTERRUPTED
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("stopped\n")
        return INTERRUPTED
    except CodebError as error:
        return _failed(error, manner)
    except PermissionError as error:
        hint = "Run it as the user that CODEB_ROOT belongs to."
        return _failed(Forbidden(f"{error.filename}: permission denied", hint=hint), manner)
    except OSError as error:
        return _failed(Bug(f"{error.filename or 'the system'}: {error.strerror}", hint="Check CODEB_ROOT."), manner)
    return 0


def _failed(error: CodebError, manner: Manner) -> int:
    from codeb_mcp.faces.cli_show import console, show_error

    if manner.json:
        sys.stdout.write(json.dumps(wire_error(error), ensure_ascii=False, separators=(",", ":"), default=str) + "\n")
    show_error(error, console(errors=True, color=manner.color))
    return error.exit_code


def _manner_of(argv: Sequence[str]) -> Manner:
    """How errors are to be shown, also those of a command line that cannot be parsed."""
    color = "--no-color" not in argv and not os.environ.get("NO_COLOR")
    return Manner(json="--json" in argv, color=color)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """A command line that does not fit is an invalid request like any other."""
    try:
        yield
    except click.NoSuchOption as error:
        hint = f"Did you mean {' or '.join(error.possibilities)}?" if error.possibilities else ""
        raise InvalidRequest(f"there is no flag {error.option_name}", hint=hint or _help_of(error)) from None
    except click.UsageError as error:
        message = error.format_message().strip().rstrip(".")
        raise InvalidRequest(message[:1].lower() + message[1:], hint=_help_of(error)) from None
    except click.ClickException as error:
        raise InvalidRequest(error.format_message(), hint="Correct it.") from None
    except click.exceptions.Exit:
        return


def _help_of(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "codeb"
    return f"See `{path} --help`."


# ── from the catalog to commands ────────────────────────────────────────────────────────────────────────────────


def command_words(name: str) -> tuple[str, ...]:
    """`slot_status` as `("slot", "status")`, `deploy` as `("deploy",)`."""
    noun, _, verb = name.partition("_")
    return (noun, verb.replace("_", "-")) if verb else (noun,)


Body = Callable[..., Any]


def manner_options(body: Body) -> Body:
    """The flags that every call has."""
    for option in (
        click.option("--no-color", is_flag=True, help="Plain text; so does NO_COLOR"),
        click.option("--connect", metavar="URL", envvar="CODEB_URL", help="Ask this server, not the local registry"),
        click.option("--json", "as_json", is_flag=True, help="Answer the wire's JSON"),
    ):
        body = option(body)
    return body


def _manner(*, as_json: bool, connect: str | None, no_color: bool) -> Manner:
    return Manner(as_json, connect or None, color=not no_color and not os.environ.get("NO_COLOR"))


def operation_command(operation: Operation) -> click.Command:
    """The friendly command of one operation."""
    flags = flags_of(operation.request)
    destroys = operation.effect is Effect.DESTROY

    @click.pass_context
    def body(
        ctx: click.Context, /, *, as_json: bool, connect: str | None, no_color: bool, yes: bool = False, **typed: Any
    ) -> int:
        arguments = wire_arguments(flags, typed)
        if destroys:
            arguments = confirmed(operation, flags, arguments, yes=yes)
        manner = _manner(as_json=as_json, connect=connect, no_color=no_color)
        return carry_out(Wanted(operation.name, arguments, operation), ctx.obj, manner)

    name = command_words(operation.name)[-1]
    command = click.command(name, help=operation.description, short_help=operation.summary, context_settings=WIDTH)(
        manner_options(body)
    )
    command.params = [flag.parameter for flag in flags] + command.params
    if destroys:
        command.params.append(click.Option(["--yes"], is_flag=True, help="Do not ask"))
    return command


WITH_CHECKOUT = frozenset({"workflow_init", "workflow_scan"})
"""Operations whose command also reads or writes the files of a checkout."""


def command_of(operation: Operation) -> click.Command:
    """The command of one operation, as its flags make it or with a checkout at hand."""
    if operation.name not in WITH_CHECKOUT:
        return operation_command(operation)
    from codeb_mcp.faces import cli_workflow

    return cli_workflow.command(operation, manner_options)


def confirmed(operation: Operation, flags: list[Flag], arguments: dict[str, Any], *, yes: bool) -> dict[str, Any]:
    """The arguments, once a person or `--yes` has agreed to lose something. Raises InvalidRequest when nobody can be
    asked, Abort when the person says no."""
    repeats = any(flag.path == (CONFIRM,) for flag in flags)
    name = next((str(arguments[key]) for key in ("projectName", "teamId") if key in arguments), "")
    if CONFIRM in arguments:
        return arguments
    if not yes and not sys.stdin.isatty():
        raise InvalidRequest(
            f"{operation.name} takes something away for good, and there is no terminal to ask on",
            hint="Repeat with --yes.",
        )
    if not repeats:
        if not yes:
            click.confirm(f"{operation.summary} Go on?", abort=True, err=True)
        return arguments
    if yes and name:
        return {**arguments, CONFIRM: name}
    if yes:
        raise InvalidRequest("confirm: is missing", hint="Repeat the name with --confirm NAME.")
    click.echo(operation.summary, err=True)
    return {**arguments, CONFIRM: click.prompt("Type the name to confirm", type=str, err=True)}


class Noun(click.Group):
    """`codeb slot`: everything that can be done with one thing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Sorted, as people look for them."""
        return sorted(super().list_commands(ctx))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command, or a usage error that names the nearest one."""
        found = super().get_command(ctx, name)
        if found is None:
            _point_to_nearest(ctx, name, super().list_commands(ctx))
        return found


def _point_to_nearest(ctx: click.Context, name: str, known: Sequence[str]) -> None:
    near = difflib.get_close_matches(name[:64], known, n=2, cutoff=0.5)
    if near:
        raise InvalidRequest(
            f"there is no command {name[:64]!r}",
            hint=f"Did you mean {' or '.join(near)}? See `{ctx.command_path} --help`.",
        )


class Root(click.Group):
    """All commands. Those of operations are made when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Operations and nouns of the catalog, and our own."""
        nouns = {command_words(name)[0] for name in load_all()}
        return sorted(nouns | set(super().list_commands(ctx)))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Our own commands need no catalog, so that a server starts without reading it twice."""
        own = super().get_command(ctx, name)
        if own is not None and not isinstance(own, Noun):
            return own
        found = _of_catalog(load_all(), name, own)
        if found is None:
            _point_to_nearest(ctx, name, self.list_commands(ctx))
        return found


def _of_catalog(catalog: Catalog, name: str, own: click.Command | None) -> click.Command | None:
    true_name = catalog.aliases.get(name, name)
    if true_name in catalog:
        return command_of(catalog[true_name])
    members = [one for one in catalog if command_words(one)[0] == name]
    if not members:
        return own
    extra: Mapping[str, click.Command] = own.commands if isinstance(own, click.Group) else {}
    verbs = {command_words(one)[1]: command_of(catalog[one]) for one in members}
    listed = ", ".join(sorted({*verbs, *extra}))
    return Noun(name, commands={**verbs, **extra}, short_help=listed, help=f"{name}: {listed}", context_settings=WIDTH)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value and not ctx.resilient_parsing:
        cli_setup.say_version()
        ctx.exit()


ROOT = Root(
    "codeb",
    help="Blue/green deployments on your own server.\n\nDeploy a release into the idle slot, promote it, roll back.",
    context_settings=WIDTH,
    params=[
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version"
        )
    ],
)


@ROOT.command("call", short_help="Call a tool by its name with JSON parameters.")
@click.argument("tool")
@click.argument("arguments", default="{}", metavar="[JSON]")
@manner_options
@click.pass_obj
def call(around: Surroundings, tool: str, arguments: str, *, as_json: bool, connect: str | None, no_color: bool) -> int:
    """Call a tool by its name, with parameters as the wire has them. `-` reads the JSON from stdin.

    Sends exactly what is said and asks no questions. Example: codeb call slot_status '{"projectName":"shop"}'
    """
    manner = _manner(as_json=as_json, connect=connect, no_color=no_color)
    said = parsed(sys.stdin.read() if arguments == "-" else arguments)
    catalog = load_all()
    true_name = catalog.aliases.get(tool, tool)
    operation = catalog.get(true_name)
    if operation is None and manner.connect is None:
        catalog.find(tool)
    return carry_out(Wanted(tool, said, operation), around, manner)


def parsed(text: str) -> dict[str, Any]:
    """Parameters from JSON text; raises InvalidRequest for anything but an object."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"the parameters are no JSON: {error}", hint='Quote them: \'{"projectName":"shop"}\'.'
        ) from None
    if not isinstance(said, dict):
        raise InvalidRequest("the parameters are no JSON object", hint='Quote them: \'{"projectName":"shop"}\'.')
    return said


for _command in cli_setup.COMMANDS:
    ROOT.add_command(_command)
ROOT.add_command(Noun("registry", commands={"rebuild": cli_setup.rebuild_registry}))
ROOT.add_command(Noun("env", commands={"reveal": reveal_env}))
ROOT.add_command(Noun("audit", commands={"seal": cli_audit.seal_audit}))
