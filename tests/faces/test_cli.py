"""The command line on a real registry and an outside world of fakes."""

from __future__ import annotations

import io
import json
import re
import stat
import sys
from pathlib import Path

import pytest

from codeb_mcp import __version__
from codeb_mcp.faces.cli_keys import configured_key, key_path, save_key
from codeb_mcp.faces.cli_show import console, in_commands, show, show_error
from codeb_mcp.model.errors import InvalidRequest, NotFound, Unauthenticated
from tests.faces.cli_world import CliWorld


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CliWorld:
    """An installation that is not initialised yet."""
    return CliWorld(tmp_path / "codeb", capsys)


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Somebody sits there and types this."""
    typed = io.StringIO(answer)
    typed.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", typed)


# ── init, keys ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_init_prints_the_first_key_once_and_how_to_keep_it(world: CliWorld) -> None:
    first, second = world("init"), world("init")
    keys = re.findall(r"codeb_default_owner_\w{36}", first.out)
    assert (first.code, len(keys)) == (0, 1)
    assert "codeb login" in first.out
    assert "CODEB_API_KEY" in first.out
    assert (second.code, "nothing was changed" in second.out) == (0, True)
    assert "codeb_default" not in second.out
    assert not key_path(world.environ).exists()
    assert world("slot", "list", environ={"CODEB_API_KEY": keys[0]}).code == 0


def test_a_second_init_changes_no_byte_of_the_registry(world: CliWorld) -> None:
    world.initialised().with_project()
    before = {path: path.read_bytes() for path in (world.root / "registry").glob("*.json")}
    assert before
    assert world("init", "--save-key").code == 0
    assert {path: path.read_bytes() for path in before} == before


def test_init_on_a_damaged_registry_refuses_and_leaves_it_alone(world: CliWorld) -> None:
    world.initialised()
    ssot = world.root / "registry" / "ssot.json"
    ssot.write_text("{broken", encoding="utf-8")
    said = world("init", environ={"CODEB_API_KEY": ""})
    assert said.code == 30
    assert ssot.read_text(encoding="utf-8") == "{broken"


def test_init_can_keep_the_key_where_only_its_owner_reads_it(world: CliWorld) -> None:
    said = world("init", "--save-key")
    path = key_path(world.environ)
    assert str(path) in said.out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert world("slot", "list").code == 0


def test_login_reads_the_key_from_stdin_and_stores_it(world: CliWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    key = world("init", "--json").json["ownerKey"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(key + "\n"))
    said = world("login")
    assert (said.code, key in said.out) == (0, False)
    assert stat.S_IMODE(key_path(world.environ).stat().st_mode) == 0o600
    assert world("project", "list").code == 0


@pytest.mark.parametrize("text", ["", "nonsense", "codeb_default_owner_" + "a" * 36, "x" * 10_000])
def test_login_refuses_what_is_no_key_and_keeps_the_former_one(
    text: str, world: CliWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world("init", "--save-key")
    before = key_path(world.environ).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert world("login").code == 10
    assert key_path(world.environ).read_bytes() == before


def test_without_a_key_the_answer_says_where_one_comes_from(world: CliWorld) -> None:
    world("init")
    said = world("slot", "list")
    assert said.code == 11
    assert said.err.startswith("error: there is no API key\nhint: ")
    assert "codeb login" in said.err
    assert said.out == ""


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    path = save_key("codeb_default_viewer_abcdefghijklmnop", environ)
    assert configured_key(environ).endswith("mnop")
    path.chmod(0o640)
    with pytest.raises(Unauthenticated, match="read by others"):
        configured_key(environ)


def test_a_key_is_stored_whole_or_not_at_all(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path)}
    path = key_path(environ)
    path.mkdir(parents=True)
    with pytest.raises(InvalidRequest):
        save_key("codeb_default_viewer_abcdefghijklmnop", environ)
    assert [one.name for one in path.parent.iterdir()] == ["key"]


def test_the_variable_wins_over_the_file(world: CliWorld) -> None:
    world("init", "--save-key")
    assert world("slot", "list", environ={"CODEB_API_KEY": "codeb_default_viewer_abcdefghijklmnop"}).code == 11


# ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_deploy_promote_and_roll_back_with_flags(world: CliWorld) -> None:
    world.initialised().with_project()
    for version in ("v1", "v2"):
        deployed = world("deploy", "shop", "--environment", "staging", "--image", f"ghcr.io/acme/shop:{version}")
        assert (deployed.code, f"{version} stands healthy" in deployed.out) == (0, True)
        assert (world("promote", "shop").code, world.edge.flags["shop-staging"] is not None) == (0, True)
    back = world("rollback", "shop", "--reason", "slow")
    assert (back.code, "v1 in slot blue serves shop staging" in back.out) == (0, True)
    assert "active slot   blue" in world("slot", "status", "shop").out


def test_json_is_one_compact_line_of_the_wires_object(world: CliWorld) -> None:
    world.initialised().with_live()
    said = world("slot", "status", "shop", "--json")
    assert said.err == ""
    assert said.out == json.dumps(said.json, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert said.json["activeSlot"] == "blue"
    assert world("call", "slot_status", '{"projectName":"shop"}', "--json").json == said.json


def test_progress_goes_to_stderr_as_lines_and_not_with_json(world: CliWorld) -> None:
    world.initialised().with_project()
    said = world("deploy", "shop", "--image", "ghcr.io/acme/shop:v1")
    assert "[1/6] pull_image: pull ghcr.io/acme/shop:v1\n" in said.err
    assert "[1/6]" not in said.out
    assert world("promote", "shop", "--json").err == ""


def test_a_failed_deploy_says_why_and_exits_with_its_own_code(world: CliWorld) -> None:
    world.initialised().with_live()
    said = world("deploy", "shop", "--image", "ghcr.io/acme/shop:sick")
    assert said.code == 17
    assert "error: GET /health answered 503" in said.err
    assert "\nhint: " in said.err
    assert "\nbody: " in said.err
    assert "\nlogs:\n  " in said.err
    machine = world("deploy", "shop", "--image", "ghcr.io/acme/shop:sick", "--json")
    assert machine.code == 17
    assert (machine.json["success"], machine.json["code"]) == (False, "release_unhealthy")
    assert world("slot", "status", "shop", "--json").json["data"]["green"]["state"] == "empty"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["promote", "nowhere"], 13, "has no project nowhere"),
        (["promote", "shop"], 14, "no deployed release"),
        (["operation", "get", "op_unknown"], 13, "op_unknown"),
        (["call", "slot_stats"], 13, "there is no tool 'slot_stats'"),
        (["slot", "stats", "shop"], 10, "there is no command 'stats'"),
        (["deploy"], 10, "missing argument 'PROJECT'"),
        (["deploy", "shop", "--imag", "x"], 10, "there is no flag --imag"),
        (["deploy", "shop", "--environment", "mars"], 10, "'mars' is not one of"),
        (["slot", "list", "--limit", "many"], 10, "many"),
        (["slot", "list", "--limit", "1000"], 10, "limit: "),
        (["deploy", "Shop!", "--image", "x"], 10, "projectName: "),
        (["call", "slot_list", "{"], 10, "no JSON"),
        (["call", "slot_list", "[]"], 10, "no JSON object"),
        (["call", "slot_list", "[" * 100_000], 10, "no JSON"),
        (["call", "slot_list", '{"limt":1}'], 10, "limt: unknown parameter"),
        (["slot"], 10, ""),
        (["slot", "list", "surplus"], 10, "unexpected extra argument"),
    ],
)
def test_what_does_not_fit_is_one_line_on_stderr_and_an_exit_code(
    words: list[str], code: int, said: str, world: CliWorld
) -> None:
    world.initialised().with_project()
    answer = world(*words)
    assert answer.code == code
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_a_wrong_name_is_answered_with_the_nearest_one(world: CliWorld) -> None:
    assert "Did you mean deploy?" in world("depoly").err
    assert "Did you mean status" in world("slot", "stats").err
    assert "--image" in world("deploy", "shop", "--imag", "x").err


def test_a_role_that_is_too_small_is_forbidden(world: CliWorld) -> None:
    world.initialised().with_project()
    made = world("token", "create", "--name", "look", "--role", "viewer", "--json").json
    environ = {"CODEB_API_KEY": made["token"]["key"]}
    assert world("slot", "list", environ=environ).code == 0
    assert world("promote", "shop", environ=environ).code == 12


def test_an_engine_that_is_away_is_its_own_exit_code(world: CliWorld) -> None:
    world.initialised().with_project()
    world.engine.away = True
    said = world("deploy", "shop", "--image", "ghcr.io/acme/shop:v1")
    assert said.code == 20
    assert "cannot be reached" in said.err


def test_a_key_in_the_wrong_place_is_masked(world: CliWorld) -> None:
    world.initialised()
    key = world.environ["CODEB_API_KEY"]
    said = world("operation", "get", key, "--json")
    assert key not in said.out + said.err


def test_old_names_of_tools_still_are_commands(world: CliWorld) -> None:
    world.initialised().with_project()
    assert world("deploy_project", "shop", "--image", "ghcr.io/acme/shop:v1").code == 0
    assert world("slot_promote", "shop").code == 0
    assert world("slot_status", "shop").code == 0


def test_call_reads_its_parameters_from_stdin(world: CliWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.initialised().with_project()
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"projectName": "shop"}'))
    assert world("call", "project_get", "-", "--json").json["projectName"] == "shop"


def test_a_run_that_nobody_waits_for_ends_before_the_command_does(world: CliWorld) -> None:
    world.initialised().with_project()
    begun = world("deploy", "shop", "--image", "ghcr.io/acme/shop:v1", "--no-wait", "--json").json
    assert begun["status"] == "running"
    assert world("operation", "get", begun["operationId"], "--json").json["status"] == "succeeded"


# ── what is taken away for good ─────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_destroyed_unasked_when_there_is_no_terminal(world: CliWorld) -> None:
    world.initialised().with_live()
    for words in (["project", "delete", "shop"], ["slot", "cleanup", "shop", "--force"]):
        said = world(*words)
        assert said.code == 10
        assert "--yes" in said.err
    assert world("project", "get", "shop").code == 0


def test_yes_answers_the_question_beforehand(world: CliWorld) -> None:
    world.initialised().with_project()
    assert world("project", "delete", "shop", "--yes").code == 0
    assert world("project", "get", "shop").code == 13


def test_a_repeated_name_is_an_answer_too(world: CliWorld) -> None:
    world.initialised().with_project()
    assert world("project", "delete", "shop", "--confirm", "shoe").code == 10
    assert world("project", "delete", "shop", "--confirm", "shop").code == 0


def test_yes_cannot_guess_a_name_that_was_not_said(world: CliWorld) -> None:
    world.initialised()
    said = world("team", "delete", "--yes")
    assert (said.code, "--confirm" in said.err) == (10, True)


@pytest.mark.parametrize(
    ("answer", "code", "left"), [("n\n", 130, "deployed"), ("y\n", 0, "empty"), ("", 130, "deployed")]
)
def test_on_a_terminal_the_question_is_asked(
    answer: str, code: int, left: str, world: CliWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.initialised().with_project()
    world("deploy", "shop", "--image", "ghcr.io/acme/shop:v1")
    on_a_terminal(monkeypatch, answer)
    said = world("slot", "cleanup", "shop", "--force")
    assert said.code == code
    assert "Go on?" in said.err
    assert world("slot", "status", "shop", "--json").json["data"]["blue"]["state"] == left


def test_on_a_terminal_the_name_has_to_be_typed(world: CliWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.initialised().with_project()
    on_a_terminal(monkeypatch, "shoe\n")
    assert world("project", "delete", "shop").code == 10
    on_a_terminal(monkeypatch, "shop\n")
    assert world("project", "delete", "shop").code == 0


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_answers_fit_80_columns(world: CliWorld) -> None:
    world.initialised().with_live()
    for words in (
        ["slot", "list"], ["slot", "status", "shop"], ["project", "get", "shop"], ["operation", "list"],
        ["token", "list"], ["audit", "list"], ["health", "check", "shop"], ["promote", "--help"],
    ):  # fmt: skip
        said = world(*words)
        assert said.code == 0
        assert [line for line in said.out.splitlines() if len(line) > 80] == [], words


def test_no_answer_for_people_has_colours_when_nobody_looks(world: CliWorld) -> None:
    world.initialised().with_live()
    said = world("slot", "list")
    failed = world("promote", "shop")
    assert "\x1b" not in said.out + failed.err


def test_lines_of_an_app_cannot_drive_the_terminal(world: CliWorld) -> None:
    world.initialised().with_live()
    container = world.engine.containers["shop-staging-blue"]
    container.say("before\x1b]0;owned\x07\x1b[2Jafter \u202eright to left")
    said = world("logs", "get", "shop")
    assert said.code == 0
    assert "after" in said.out
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said.out) is None


def test_text_of_a_server_cannot_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bad = "a\x1b[2Jb\x07c\u202ed\u200be\rf"
    shape = {
        "message": bad,
        "fact": bad,
        "lines": [bad],
        "warnings": [bad],
        "data": [{"name": bad}],
        "deep": {"x": {"y": bad}},
    }
    show(shape, console())
    show_error(NotFound(bad, hint=bad, steps=[{"name": bad, "error": bad}]), console(errors=True))
    said = capsys.readouterr()
    assert said.out.count("a[2Jbcdef") == 6
    assert said.err.count("a[2Jbcdef") == 4
    assert re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e]", said.out + said.err) is None


def test_the_version_is_the_packages(world: CliWorld) -> None:
    assert world("version").out == world("--version").out == f"codeb {__version__}\n"


def test_a_list_that_goes_on_says_how(world: CliWorld) -> None:
    world.initialised().with_project()
    assert "go on with --offset 1" in world("slot", "list", "--limit", "1").out


def test_bad_news_has_an_exit_code(world: CliWorld) -> None:
    world.initialised().with_live()
    assert world("audit", "verify").code == world("health", "check").code == 0
    world.engine.away = True
    sick = world("health", "check", "--json")
    assert (sick.code, sick.json["status"]) == (17, "unhealthy")
    world.engine.away = False
    trail = next(path for path in (world.root / "registry" / "audit").rglob("*.jsonl"))
    text = trail.read_text(encoding="utf-8")
    trail.write_text(text.replace("project_create", "project_update"), encoding="utf-8")
    broken = world("audit", "verify", "--json")
    assert (broken.code, broken.json["ok"]) == (30, False)
    assert world("call", "audit_verify").code == 30


# ── the operator's own commands ─────────────────────────────────────────────────────────────────────────────────


def test_housekeeping_does_one_round_without_a_key(world: CliWorld) -> None:
    world.initialised().with_live()
    environ = {"CODEB_API_KEY": ""}
    assert world("housekeeping", environ=environ).code == 0
    report = world("housekeeping", "--json", environ=environ).json
    assert report["problems"] == []
    world.edge.restart(keep=False)
    assert "shop-staging" in world("housekeeping", environ=environ).out


def test_a_damaged_registry_is_rebuilt_only_when_told_to(world: CliWorld) -> None:
    world.initialised().with_live()
    slots = world.root / "registry" / "slots" / "shop-staging.json"
    slots.write_text("{", encoding="utf-8")
    assert world("slot", "status", "shop").code == 30
    shown = world("registry", "rebuild", environ={"CODEB_API_KEY": ""})
    assert (shown.code, "slots/shop-staging" in shown.out, "--apply" in shown.out) == (0, True, True)
    assert slots.read_text(encoding="utf-8") == "{"
    assert world("registry", "rebuild", "--apply", "--json").json["applied"] is True
    assert world("slot", "status", "shop", "--json").json["activeSlot"] == "blue"
    assert "nothing to do" in world("registry", "rebuild").out


def _without_keys(world: CliWorld) -> Path:
    """The file of keys, damaged, and none of its kept versions left."""
    registry = world.root / "registry"
    for kept in (path for path in registry.rglob("*") if "api-keys" in str(path.relative_to(registry))):
        if kept.is_file() and kept != registry / "api-keys.json":
            kept.unlink()
    keys = registry / "api-keys.json"
    keys.write_text("{", encoding="utf-8")
    return keys


def test_lost_keys_are_made_anew_by_whoever_owns_the_machine(world: CliWorld) -> None:
    world.initialised().with_live()
    former = world.environ["CODEB_API_KEY"]
    refused = world("init", "--new-owner-key", "--yes")
    assert (refused.code, "not damaged" in refused.err) == (14, True)
    keys = _without_keys(world)
    rebuilt = world("registry", "rebuild", "--apply")
    assert rebuilt.code == 30
    assert "codeb init --new-owner-key" in " ".join(rebuilt.out.split())
    assert rebuilt.out.splitlines()[-1].endswith("api-keys")
    assert world("registry", "rebuild", "--json").json["lost"] == ["api-keys"]
    assert world("init").code == 30
    unasked = world("init", "--new-owner-key")
    assert (unasked.code, "--yes" in unasked.err, keys.read_text(encoding="utf-8")) == (10, True, "{")
    world.environ["CODEB_API_KEY"] = world("init", "--new-owner-key", "--yes", "--json").json["ownerKey"]
    assert world("slot", "status", "shop", "--json").json["activeSlot"] == "blue"
    assert world("slot", "status", "shop", environ={"CODEB_API_KEY": former}).code == 11
    assert [path.read_text() for path in (world.root / "registry" / ".damaged").glob("api-keys*")] == ["{"]
    rows = world("audit", "list", "--json").json["data"]
    assert [row["outcome"] for row in rows if row["tool"] == "owner_key_new"] == ["ok"]
    assert world("audit", "verify").code == 0
    assert "nothing to do" in world("registry", "rebuild").out
    assert world("init", "--new-owner-key", "--yes").code == 14


def test_keys_with_a_version_left_are_restored_and_not_made_anew(world: CliWorld) -> None:
    world.initialised()
    keys = world.root / "registry" / "api-keys.json"
    keys.write_text("{", encoding="utf-8")
    refused = world("init", "--new-owner-key", "--yes")
    assert (refused.code, "registry rebuild --apply" in refused.err) == (14, True)
    assert world("registry", "rebuild", "--apply").code == 0
    assert world("slot", "list").code == 0


def test_a_repair_that_mended_too_little_does_not_exit_with_success(world: CliWorld) -> None:
    world.initialised().with_live()
    world.edge.restart(keep=False)
    found = [row["id"] for row in world("registry", "check", "--json").json["data"] if row["repair"] != "none"]
    assert found
    some = world("registry", "repair", found[0], "drift_unknown", "--yes", "--json")
    assert (some.code, some.json["repaired"]) == (17, 1)
    world.edge.restart(keep=False)
    assert world("registry", "repair", found[0], "--yes").code == 0


def test_a_hint_names_commands_where_a_person_reads_it(world: CliWorld) -> None:
    world.initialised()
    said = world("operation", "get", "op_unknown")
    assert "List them with `codeb operation list`." in said.err
    machine = world("operation", "get", "op_unknown", "--json")
    assert "operation_list" in machine.out + machine.err
    assert in_commands("Use slot_cleanup, then deploy.") == "Use `codeb slot cleanup`, then deploy."
    assert (
        in_commands("Set server.slot_list or `env_backup_list`.") == "Set server.slot_list or `codeb env backup-list`."
    )
    assert in_commands("Set docker.min_free_mb.") == "Set docker.min_free_mb."


def test_settings_that_are_wrong_are_named(world: CliWorld) -> None:
    world.root.mkdir()
    (world.root / "codeb.toml").write_text("[server]\nprot = 1\n", encoding="utf-8")
    said = world("init")
    assert said.code == 10
    assert "server.prot" in said.err


def test_a_root_that_cannot_be_written_is_an_error_and_no_crash(world: CliWorld) -> None:
    said = world("init", environ={"CODEB_ROOT": "/proc/codeb"})
    assert said.code == 70
    assert said.err.startswith("error: /proc/codeb")
