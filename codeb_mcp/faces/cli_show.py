"""What a person sees: answers as short text and tables that fit 80 columns, errors, progress.

Nothing here knows an operation. An answer is shown by its shape: a headline, facts, lists of objects as tables, lists of
texts as lines. Text from outside loses its control characters before it reaches the terminal.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from codeb_mcp.faces.cli_flags import words
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.redaction import clean_text, redact_text

if TYPE_CHECKING:
    from rich.console import Console

    from codeb_mcp.operations.context import Event

WIDTH = 80
HEADLINES = ("summary", "message")
LOG_LINES = 15
LINE_SHOWN = 500
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
_MOMENT = re.compile(r"\b(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(?:\+00:00|Z)")
_DIGEST = re.compile(r"\b(sha256:[0-9a-f]{12})[0-9a-f]{52}\b")
_TOOL = re.compile(r"`?(?<![\w./-])([a-z]+(?:_[a-z]+)+)(?![\w./-]\w)`?")
_PAGE = {"data", "limit", "offset", "total", "nextOffset"}
_UNITS = {"duration": "ms"}
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def console(*, errors: bool = False, color: bool = True) -> Console:
    """A console on stdout or stderr: styles only on a terminal, 80 columns when nobody looks."""
    from rich.console import Console

    stream = sys.stderr if errors else sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        width=None if terminal else WIDTH,
        color_system="auto" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def text_of(value: Any) -> str:
    """One value as a person reads it: no control characters, moments to the second, digests short, lists with commas."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {text_of(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(text_of(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    text = _DIGEST.sub(r"\1", _UNSEEN.sub("", str(value)))
    return _MOMENT.sub(r"\1 \2Z", text)


def show(answer: Mapping[str, Any], out: Console) -> None:
    """Print an answer of any operation."""
    for name in HEADLINES:
        if answer.get(name):
            out.print(text_of(answer[name]), style="bold")
    if isinstance(answer.get("data"), list):
        _show_page(answer, out)
    _show_object(answer, out, skip={*HEADLINES, *(_PAGE if isinstance(answer.get("data"), list) else ())})


def _show_object(thing: Mapping[str, Any], out: Console, indent: str = "", skip: Set[str] = frozenset()) -> None:
    """Short facts first, then what needs lines of its own; empty values are left out."""
    said = {name: value for name, value in thing.items() if name not in skip and value not in _EMPTY}
    blocks = {name: value for name, value in said.items() if _is_block(name, value)}
    _show_facts({words(name): value for name, value in said.items() if name not in blocks}, out, indent)
    for name, value in blocks.items():
        if name in _VERBATIM:
            for line in [f"{words(name)}:", *value.splitlines()] if isinstance(value, str) else value:
                out.print(_UNSEEN.sub("", str(line)), soft_wrap=True)
        elif name == "warnings":
            for line in value:
                out.print(f"warning: {text_of(line)}", style="yellow")
        elif isinstance(value, Mapping):
            repeated = {key for key, item in value.items() if key in thing and thing[key] == item}
            out.print(f"{indent}{words(name)}:")
            _show_object(value, out, indent + "  ", repeated)
        else:
            out.print(f"{indent}{words(name)}:")
            _show_rows(value, out)


_VERBATIM = ("lines", "firewall")
"""What is shown line by line as it is."""


def _is_block(name: str, value: Any) -> bool:
    if isinstance(value, Mapping) or name == "firewall":
        return True
    return isinstance(value, list) and (name in ("lines", "warnings") or isinstance(value[0], Mapping))


def _show_facts(facts: Mapping[str, Any], out: Console, indent: str = "") -> None:
    wide = max((len(name) for name in facts), default=0)
    for name, value in facts.items():
        head = f"{indent}{name:<{wide}}  "
        for line in _folded(text_of(value), max(20, out.width - len(head))):
            out.print(head + line, soft_wrap=True)
            head = " " * len(head)


def _folded(text: str, width: int) -> list[str]:
    """Lines that fit, broken at spaces only: a key or a digest stays in one piece."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _show_page(answer: Mapping[str, Any], out: Console) -> None:
    rows = answer["data"]
    if rows:
        _show_rows(rows, out)
    elif not any(answer.get(name) for name in HEADLINES):
        out.print("nothing there")
    if answer.get("nextOffset") is not None:
        shown, total = len(rows), answer.get("total", len(rows))
        out.print(f"{shown} of {total}; go on with --offset {answer['nextOffset']}", style="dim")


def _show_rows(rows: Sequence[Any], out: Console) -> None:
    """As a table when it fits, without columns that are the same in every row when it does not, else as blocks."""
    items = [row if isinstance(row, Mapping) else {"value": row} for row in rows]
    names = list(dict.fromkeys(name for row in sorted(items, key=len, reverse=True) for name in row))
    columns = {name: ["" if row.get(name) in _EMPTY else text_of(row[name]) for row in items] for name in names}
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    if not _table(columns, out):
        same = {name: cells[0] for name, cells in columns.items() if len(rows) > 2 and len(set(cells)) == 1}
        if not same or not _table({name: cells for name, cells in columns.items() if name not in same}, out):
            _blocks(columns, out)
        else:
            out.print("all: " + ", ".join(f"{words(name)} {text}" for name, text in same.items()), style="dim")


def _table(columns: Mapping[str, list[str]], out: Console) -> bool:
    """Print the columns side by side; False when the console is too narrow. Heads of two words take two lines."""
    heads = {name: _UNITS.get(name, words(name)).split(" ", 1) for name in columns}
    wide = {name: max(map(len, [*heads[name], *cells])) for name, cells in columns.items()}
    if sum(wide.values()) + 2 * (len(wide) - 1) > out.width:
        return False
    high = max(map(len, heads.values()), default=1)
    for line in range(high):
        cells = {name: ([""] * (high - len(head)) + head)[line] for name, head in heads.items()}
        out.print(_line(cells, wide), style="bold", soft_wrap=True)
    for number in range(len(next(iter(columns.values()), []))):
        out.print(_line({name: cells[number] for name, cells in columns.items()}, wide), soft_wrap=True)
    return True


def _line(cells: Mapping[str, str], wide: Mapping[str, int]) -> str:
    return "  ".join(f"{cell:<{wide[name]}}" for name, cell in cells.items()).rstrip()


def _blocks(columns: Mapping[str, list[str]], out: Console) -> None:
    for number in range(len(next(iter(columns.values()), []))):
        if number:
            out.print()
        _show_facts({words(name): cells[number] for name, cells in columns.items() if cells[number]}, out)


def show_error(error: CodebError, out: Console) -> None:
    """`error:` and `hint:`, and for a failed run what each step came to and what its app said last."""
    out.print(f"error: {text_of(redact_text(error.message))}", style="red", soft_wrap=True)
    if error.hint:
        out.print(f"hint: {text_of(redact_text(in_commands(error.hint)))}", soft_wrap=True)
    steps = error.detail.get("steps")
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, Mapping) and step.get("error"):
            out.print(f"  {text_of(step.get('name'))}: {_harmless(step['error'])}", soft_wrap=True)
    _show_said(error.detail, out)


def in_commands(hint: str) -> str:
    """The hint with commands in the place of tools: whoever reads it types. A name of one word is a plain verb and stays."""
    from codeb_mcp.faces.tools import ToolList

    tools = frozenset(ToolList.load().names())

    def command(found: re.Match[str]) -> str:
        words_of = found[1].replace("_", " ", 1).replace("_", "-")
        return f"`codeb {words_of}`" if found[1] in tools else found[0]

    return _TOOL.sub(command, hint)


def _show_said(detail: Mapping[str, Any], out: Console) -> None:
    """The evidence that a hint points to: what the app answered, and its last lines."""
    if head := detail.get("bodyHead"):
        out.print(f"body: {_harmless(head)}", soft_wrap=True)
    lines = detail.get("logs")
    if isinstance(lines, list) and lines:
        out.print("logs:")
        for line in lines[-LOG_LINES:]:
            out.print(f"  {_harmless(line)}", soft_wrap=True)


def _harmless(text: Any) -> str:
    """Text of an app on one line: no terminal codes, no secrets."""
    return " ".join(clean_text(text_of(text), limit=LINE_SHOWN).split())


class Progress(Protocol):
    """Shows the news of a run while it lasts."""

    def hear(self, event: Event) -> None:
        """Take one piece of news."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


@dataclass(slots=True)
class Silence:
    """For machines."""

    def hear(self, event: Event) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@dataclass(slots=True)
class Lines:
    """One plain line for each step that begins or fails."""

    out: Console

    def hear(self, event: Event) -> None:
        """A line for the beginning and for a failure."""
        if event.status in ("started", "failed"):
            where = f"{event.position}/{event.total}" if event.total else f"{event.position}"
            said = [event.step, "failed" if event.status == "failed" else "", text_of(event.message)]
            self.out.print(f"[{where}] " + ": ".join(word for word in said if word), soft_wrap=True)

    def close(self) -> None:
        """Nothing to put back."""


class Bar:
    """A bar that moves on with each step and within those that know how far they are."""

    def __init__(self, out: Console) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            console=out,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._bar.start()

    def hear(self, event: Event) -> None:
        """Move on."""
        done = event.position - 1 + (event.fraction or 0.0)
        label = text_of(event.message or event.step)
        room = max(10, self._bar.console.width - 34)
        label = label if len(label) <= room else label[: room - 1] + "…"
        self._bar.update(self._task, completed=done, total=event.total or None, description=label)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


def progress(*, quiet: bool, color: bool) -> Progress:
    """A bar on a terminal, plain lines otherwise, nothing for machines."""
    if quiet:
        return Silence()
    out = console(errors=True, color=color)
    return Bar(out) if sys.stderr.isatty() else Lines(out)
