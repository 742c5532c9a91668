"""What the demo shows: a short account that reads the same on a terminal, in a log and in a picture."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from demo_app.parts import Parts

WIDTH = 92
BAR = 20
INDENT = " " * 6


class View:
    """The account. `record`: it is to be saved as a picture."""

    def __init__(self, *, record: bool = False) -> None:
        terminal = sys.stdout.isatty()
        self.console = Console(
            width=None if terminal and not record else WIDTH,
            record=record,
            force_terminal=True if record else None,
            color_system="truecolor" if record else "auto",
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._live = terminal and not record

    def title(self) -> None:
        """The headline."""
        self._say("\nCodeB: deploy, promote, roll back — a real container behind a real proxy\n", "bold")

    def chapter(self, text: str) -> None:
        """What comes now."""
        self._say(f"\n{text}", "bold cyan")

    def note(self, text: str) -> None:
        """A remark."""
        self._say(f"  {text}", "dim")

    def fact(self, name: str, text: str, *, style: str = "") -> None:
        """One line: what, and what about it."""
        line = Text("  ")
        line.append(f"{name:<20}", "dim")
        line.append(text, style)
        self.console.print(line, soft_wrap=True)

    def problem(self, text: str) -> None:
        """Why the demo ends."""
        Console(stderr=True, highlight=False, markup=False).print(f"demo: {text}", soft_wrap=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """A step with a name: a spinner on a terminal while it lasts, one line when it is done."""
        step = Step(self, name)
        with self._spinner(name) as step.status:
            yield step
        line = Text()
        line.append("  ✓ ", "green")
        line.append(f"{name:<18}{step.text}")
        line.append(f"  {step.seconds:.1f} s" if step.seconds >= 0.05 else "", "dim")
        self.console.print(line, soft_wrap=True)

    @contextlib.contextmanager
    def _spinner(self, name: str) -> Iterator[Status | None]:
        if not self._live:
            yield None
            return
        with self.console.status(f" {name}", spinner="dots") as status:
            yield status

    def run_steps(self, steps: Sequence[Mapping[str, Any]]) -> None:
        """The steps of a run and how many milliseconds each took, a few on a line."""
        line = Text(INDENT)
        for number, step in enumerate(steps):
            last = number == len(steps) - 1
            word, took = f"{step['name']} ", f"{step.get('duration') or 0:.1f}" + (" ms" if last else ", ")
            if line.cell_len + len(word + took) > WIDTH - 2:
                self.console.print(line, soft_wrap=True)
                line = Text(INDENT)
            line.append(word, "dim")
            line.append(took, "cyan")
        self.console.print(line, soft_wrap=True)

    def slots(self, status: Mapping[str, Any]) -> None:
        """Both slots of an environment."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for head in ("    slot", "state", "port", "version", "digest"):
            table.add_column(head)
        for name in ("blue", "green"):
            slot = status["data"][name]
            state = Text(slot["state"], "green" if slot["state"] == "active" else "")
            digest = str(slot.get("digest") or "-")[:19]
            table.add_row(f"    {name}", state, str(slot["port"]), str(slot.get("version") or "-"), digest)
        self.console.print(table)

    def total(self, text: str, *, good: bool) -> None:
        """The last line that counts."""
        self._say(f"\n{text}", "bold green" if good else "bold red")

    def staying(self, parts: Parts) -> None:
        """Where everything is, and how to use it."""
        key, url = parts.owner_key, parts.mcp_url
        self.chapter("Everything stays. Use it:")
        self.fact("the app", f"http://{parts.project}.codeb.localhost:{parts.public_port}/")
        self.fact("Claude Code", f'claude mcp add --transport http codeb-deploy {url} --header "X-API-Key: {key}"')
        inspector = "npx -y @modelcontextprotocol/inspector --cli"
        self.fact(
            "Inspector, Node 22", f'{inspector} --server-url {url} --header "X-API-Key: {key}" --method tools/list'
        )
        base = url.removesuffix("/mcp")
        self.fact("command line", f"CODEB_API_KEY={key} .venv/bin/codeb slot list --connect {base}")
        self.fact("end it", "./scripts/demo --stop")

    def save(self, path: Path) -> None:
        """The account as a picture. Fonts are those of the reader: nothing is fetched."""
        svg = self.console.export_svg(title="./scripts/demo")
        svg = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)
        path.write_text(svg, encoding="utf-8")

    def _say(self, text: str, style: str) -> None:
        self.console.print(Text(text, style), soft_wrap=True)


class Step:
    """A step under way."""

    def __init__(self, view: View, name: str) -> None:
        self._view = view
        self._name = name
        self._started = time.monotonic()
        self._ended: float | None = None
        self._shown = ""
        self.status: Status | None = None
        self.text = ""

    @property
    def seconds(self) -> float:
        """How long it took, or takes so far."""
        return (self._ended or time.monotonic()) - self._started

    def busy(self, text: str, done: float = 0, total: float = 0) -> None:
        """What is being done just now, and how far it is. In a log each thing is told once."""
        if self.status is not None:
            filled = round(BAR * done / total) if total else 0
            bar = f"{'━' * filled}{'╌' * (BAR - filled)} " if total else ""
            self.status.update(Text(f" {self._name}  {bar}{text}"[: self._view.console.width - 4]))
        elif not self._view.console.record and text.partition(":")[0] != self._shown:
            self._shown = text.partition(":")[0]
            where = f" [{min(int(done) + 1, int(total))}/{total:g}]" if total else ""
            self._view.note(f"… {self._name}{where} {text}")

    def says(self, text: str) -> None:
        """What came of it."""
        self._ended = time.monotonic()
        self.text = text
