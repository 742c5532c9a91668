"""What a server needs, as data, and the fixed scripts that see to it, run here below a folder of the test only."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.firewall import firewall
from codeb_mcp.model.github_runner import runner_says
from codeb_mcp.model.server import ServerRole
from codeb_mcp.model.server_scripts import SCRIPTS, Kind, digest
from codeb_mcp.model.server_setup import DAEMON, firewall_items, items_of, merged

ME = f"{pwd.getpwuid(os.getuid()).pw_name}:{grp.getgrgid(os.getgid()).gr_name}"


def script(kind: Kind, mode: str, *words: str, content: str = "") -> tuple[int, str]:
    """Exit status and answer of one script."""
    argv = ["/bin/sh", "-c", SCRIPTS[kind], "codeb-setup", mode, *words]
    done = subprocess.run(argv, input=content.encode(), capture_output=True, timeout=20, check=False)
    return done.returncode, done.stdout.decode().strip()


@pytest.mark.parametrize("role", ServerRole)
def test_each_role_has_its_steps_in_order_and_each_name_once(role: ServerRole) -> None:
    names = [item.name for item in items_of(role, "ssh-ed25519 AAAA codeb")]
    assert names[:4] == ["packages", "user", "ssh_folder", "authorized_key"]
    assert len(set(names)) == len(names)
    assert "authorized_key" not in [item.name for item in items_of(role, None)]


@pytest.mark.parametrize("ports", [[22], [2222], [22, 2222]])
def test_the_firewall_never_shuts_out_the_ports_in_use(ports: list[int]) -> None:
    for role in ServerRole:
        lines = firewall(role, ports, ["192.0.2.7", "2001:db8::7"]).splitlines()
        public, *internal = [line for line in lines if "tcp dport" in line]
        named = public.partition("{")[2].partition("}")[0].strip().split(", ")
        assert {str(port) for port in ports} <= set(named)
        assert [line.split()[0] for line in internal] == ["ip", "ip6"]


@pytest.mark.parametrize("role", ServerRole)
@pytest.mark.real("systemd")
def test_the_units_are_what_systemd_understands(role: ServerRole, tmp_path: Path) -> None:
    items = [*items_of(role, None), *firewall_items("")]
    units = [item for item in items if item.words and item.words[0].endswith((".service", ".timer"))]
    units = [item for item in units if item.kind == "file"]
    for item in units:
        (tmp_path / Path(item.words[0]).name).write_text(item.content, encoding="utf-8")
    names = [str(tmp_path / Path(item.words[0]).name) for item in units]
    assert names
    words = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *names]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done


RUNNER = '\ufeff{"agentId": 7, "agentName": "app-1", "gitHubUrl": "https://github.com/acme/worb"}'


@pytest.mark.parametrize(
    ("seen", "said", "unsaid"),
    [
        (f"runner\nservice\n{RUNNER}", "app-1 is registered for https://github.com/acme/worb", "chown"),
        (f"root\nservice\n{RUNNER}", "belongs to root instead of runner", "svc.sh"),
        (f"runner\nnone\n{RUNNER}", "svc.sh install runner", "chown"),
        ("runner\nservice\n{", "cannot be read", "is registered"),
        ("", "cannot be read", "is registered"),
    ],
)
def test_the_runner_is_told_with_what_is_wrong_with_it(seen: str, said: str, unsaid: str) -> None:
    told = runner_says(seen)
    assert said in told
    assert unsaid not in told


@given(st.dictionaries(st.text(max_size=8), st.one_of(st.booleans(), st.integers(), st.text(max_size=8)), max_size=5))
def test_merging_sets_ours_keeps_theirs_and_is_settled_at_once(theirs: dict[str, object]) -> None:
    text = merged(json.dumps(theirs), DAEMON)
    assert json.loads(text) == {**theirs, **DAEMON}
    assert merged(text, DAEMON) == text


@pytest.mark.parametrize("text", ["{", "[]", "1"])
def test_what_is_no_object_is_not_merged(text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        merged(text, DAEMON)


def test_a_file_is_written_once_and_the_former_one_kept(tmp_path: Path) -> None:
    path, words = tmp_path / "deep" / "file", ("0640", ME, "replace")
    for content in ("one\n", "two\n"):
        sent = (str(path), *words, digest(content))
        assert script("file", "check", *sent, content=content) == (0, "change")
        assert script("file", "apply", *sent, content=content) == (0, "changed")
        assert script("file", "apply", *sent, content=content) == (0, "right")
    assert sorted(one.name for one in path.parent.iterdir()) == ["file", "file.before-codeb"]
    assert (path.read_text("utf-8"), path.with_name("file.before-codeb").read_text("utf-8")) == ("two\n", "one\n")


def test_content_that_was_cut_on_the_way_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("as it was", encoding="utf-8")
    for cut in ("", "half", "the whole and more"):
        sent = (str(path), "0640", "root:root", "replace", digest("the whole"))
        assert script("file", "apply", *sent, content=cut)[0] == 9
        assert script("line", "apply", str(path), "0640", "root:root", digest("the whole"), content=cut)[0] == 9
    assert path.read_text("utf-8") == "as it was"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("kind", ["file", "folder", "line"])
def test_links_are_refused(tmp_path: Path, kind: Kind) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    target.write_text("as it was", encoding="utf-8")
    link.symlink_to(target)
    words = (str(link), "0644", "root:root", *(("replace",) if kind == "file" else ()), digest("x"))
    assert script(kind, "apply", *words, content="x")[0] == 8
    assert target.read_text("utf-8") == "as it was"


def test_a_program_that_is_there_counts_as_its_package() -> None:
    assert script("packages", "check", "no-such-package:sh") == (0, "right")
    assert script("packages", "check", "no-such-package:no-such-program") == (0, "change")
    assert script("packages", "check", "no-such-package") == (0, "change")


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_what_root_made_is_given_to_the_installations_user_and_nothing_beyond(tmp_path: Path) -> None:
    outside, ours = tmp_path / "outside", tmp_path / "ours"
    (ours / "deep").mkdir(parents=True)
    outside.write_text("somebody else's", encoding="utf-8")
    (ours / "deep/a file").write_text("x", encoding="utf-8")
    (ours / "link").symlink_to(outside)
    words = ("nobody:nogroup", str(ours), str(tmp_path / "missing"))
    assert script("owners", "check", *words) == (0, "change")
    assert script("owners", "apply", *words) == (0, "changed")
    assert {path.lstat().st_uid for path in (ours, *ours.rglob("*"))} == {pwd.getpwnam("nobody").pw_uid}
    assert outside.stat().st_uid == 0
    assert script("owners", "apply", *words) == (0, "right")


def test_secrets_are_made_once_and_differ(tmp_path: Path) -> None:
    path = tmp_path / "secrets.env"
    assert script("secrets", "apply", str(path), ME, "A", "B") == (0, "changed")
    first = path.read_text("utf-8")
    values = [line.partition("=")[2] for line in first.splitlines()]
    assert len(set(values)) == 2
    assert all(len(value) == 64 for value in values)
    assert path.stat().st_mode & 0o777 == 0o600
    assert script("secrets", "apply", str(path), ME, "A", "B") == (0, "right")
    assert path.read_text("utf-8") == first
