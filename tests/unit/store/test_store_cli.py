"""``mirrorkeep store``, ``volume`` and ``doctor``: what scripts rely on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirrorkeep.cli.main import program
from mirrorkeep.cli.store import parse_size
from mirrorkeep.errors import AlreadyExists, BadUsage, EngineMissing, MirrorkeepError, NotFound
from mirrorkeep.store import runs
from mirrorkeep.store.pool import Store
from tests.unit.store.part_at_work import close, manifest_of


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(program, [str(argument) for argument in arguments])
    if isinstance(result.exception, MirrorkeepError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def row(*arguments: str | Path) -> dict[str, object]:
    return json.loads(run(*arguments, "--json").stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    run("store", "init", tmp_path / "data", "--driver", "dir", "--size", "20G", "--encrypt", "none")
    return tmp_path / "data"


def test_init_says_what_was_made(tmp_path: Path) -> None:
    made = row("store", "init", tmp_path / "data", "--driver", "dir")
    assert (made["driver"], made["encryption"]) == ("dir", "unencrypted")
    with pytest.raises(AlreadyExists):
        run("store", "init", tmp_path / "data", "--driver", "dir")


def test_init_warns_about_storage_that_nothing_encrypts(tmp_path: Path) -> None:
    result = run("store", "init", tmp_path / "data", "--driver", "dir")
    assert "not encrypted" in result.stderr
    with pytest.raises(EngineMissing):
        run("store", "init", tmp_path / "other", "--driver", "dir", "--encrypt", "luks")
    assert not (tmp_path / "other").exists()


def test_volume_create_prints_where_and_with_what(data: Path) -> None:
    Store.open(str(data)).remember_address("127.0.0.1:9443")
    made = row("volume", "create", "laptop", "--data", data)
    assert made["url"] == "https://127.0.0.1:9443/volumes/laptop"
    assert Path(str(made["ca"])).read_bytes().startswith(b"-----BEGIN CERTIFICATE")
    grant = Store.open(str(data)).registry.authenticate_token(str(made["token"]))
    assert grant is not None
    assert grant.may_write("laptop", b"any")
    with pytest.raises(AlreadyExists):
        run("volume", "create", "laptop", "--data", data)


def test_volume_path_prints_the_native_directories(data: Path) -> None:
    run("volume", "create", "laptop", "--data", data)
    tip = run("volume", "path", "laptop", "--data", data).stdout.strip()
    assert tip == str(data / "pool" / "volumes" / "laptop" / "tip")
    part = Store.open(str(data)).volume("laptop").part(b"", create=True)
    name = close(part, runs.begin_run(part, "", {}), manifest_of([b"a"])).snapshot
    for wanted in (str(name), "latest"):
        frozen = run("volume", "path", "laptop", "--data", data, "--snapshot", wanted).stdout.strip()
        assert frozen == str(data / "pool" / "volumes" / "laptop" / "snapshots" / str(name))
        assert os.path.isdir(frozen)
    with pytest.raises(NotFound):
        run("volume", "path", "laptop", "--data", data, "--snapshot", "never")
    with pytest.raises(NotFound):
        run("volume", "path", "nothing", "--data", data)


def test_volume_path_of_a_part(data: Path) -> None:
    run("volume", "create", "laptop", "--data", data)
    part = Store.open(str(data)).volume("laptop").part(b"home/ann", create=True)
    close(part, runs.begin_run(part, "", {}), manifest_of([b"a"]))
    said = run("volume", "path", "laptop", "--data", data, "--part", "home/ann", "--snapshot", "latest")
    assert said.stdout.strip() == part.snapshot_root("latest")
    assert run("volume", "path", "laptop", "--data", data, "--part", "home/ann").stdout.strip() == part.root


def test_a_part_that_is_not_there_is_not_found_and_those_that_are_there_are_named(data: Path) -> None:
    run("volume", "create", "laptop", "--data", data)
    store = Store.open(str(data))
    for path in (b"home/ann", b"home/bob", b"etc"):
        store.volume("laptop").part(path, create=True)
    with pytest.raises(NotFound, match=r"^not found: nope in the tip of volume laptop$"):
        run("volume", "path", "laptop", "--data", data, "--part", "nope")
    expected = "not found: part / of volume laptop; its parts are /etc, /home/ann, /home/bob"
    with pytest.raises(NotFound, match=f"^{expected}$"):
        store.volume("laptop").part(b"")
    with pytest.raises(NotFound) as inside:  # a token that reaches no further shall not see the others
        store.volume("laptop").part(b"home")
    assert "/home/ann" in str(inside.value) and "etc" not in str(inside.value)


def test_volume_list_and_delete(data: Path) -> None:
    for name in ("one", "two"):
        run("volume", "create", name, "--data", data)
    part = Store.open(str(data)).volume("one").part(b"p", create=True)
    runs.begin_run(part, "", {})
    lines = [json.loads(line) for line in run("volume", "list", "--data", data, "--json").stdout.splitlines()]
    assert [line["name"] for line in lines] == ["one", "two"]
    assert lines[0]["parts"][0]["dirty"] is True
    assert "p" in run("volume", "list", "--data", data).stdout
    with pytest.raises(BadUsage, match="--yes"):
        run("volume", "delete", "one", "--data", data)
    run("volume", "delete", "one", "--data", data, "--yes")
    assert Store.open(str(data)).registry.volumes() == ["two"]


def test_stop_without_a_service_lets_go_of_the_pool(data: Path) -> None:
    assert row("store", "stop", data) == {"stopped": None, "detached": True}


def test_stop_takes_no_negative_wait(data: Path) -> None:
    done = CliRunner().invoke(program, ["store", "stop", str(data), "--wait", "-1"])
    assert done.exit_code == 2 and "--wait" in done.output


@pytest.mark.root
@pytest.mark.btrfs
def test_stop_says_that_it_unmounted_the_pool_of_a_service_that_is_gone(tmp_path: Path) -> None:
    run("store", "init", tmp_path / "data", "--driver", "btrfs", "--size", "200M", "--encrypt", "none")
    assert run("store", "stop", tmp_path / "data").stdout == "not running; unmounted its pool\n"


@pytest.mark.root
@pytest.mark.btrfs
def test_a_pool_that_is_too_small_is_bad_usage(tmp_path: Path) -> None:
    with pytest.raises(BadUsage, match="at least"):
        run("store", "init", tmp_path / "data", "--driver", "btrfs", "--size", "1M", "--encrypt", "none")


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("20G", 20 << 30), ("512", 512), ("1.5MiB", 3 << 19), ("2tb", 2 << 40), (None, None)],
)
def test_sizes(text: str | None, size_bytes: int | None) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "0", "20X", "nanG", "infG"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(BadUsage):
        parse_size(text)


def test_doctor_says_what_a_store_here_would_get(tmp_path: Path) -> None:
    lines = run("doctor", "--data", tmp_path / "not" / "yet", "--json").stdout.splitlines()
    checks = {check["check"]: check for check in map(json.loads, lines)}
    assert {"python", "place", "driver", "encryption", "root", "librsync"} <= checks.keys()
    assert all(check["status"] in ("ok", "better", "missing") for check in checks.values())
    assert all(check["remedy"] for check in checks.values() if check["status"] != "ok")
    assert "auto takes" in run("doctor").stdout


@pytest.mark.parametrize(
    "command", ["store init", "store serve", "store stop", "volume create", "volume path"]
)
def test_every_command_helps_with_an_example(command: str) -> None:
    assert "Example: mirrorkeep" in run(*command.split(), "--help").stdout


def fed(text: str, *arguments: str | Path) -> dict[str, object]:
    words = [*map(str, arguments), "--json"]
    result = CliRunner().invoke(program, words, input=text)
    if isinstance(result.exception, MirrorkeepError):
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def test_tokens_are_made_listed_and_revoked(data: Path) -> None:
    run("volume", "create", "laptop", "--data", data)
    token = str(row("volume", "token", "create", "laptop", "--part", "/a/b/", "--data", data)["token"])
    listed = run("volume", "token", "list", "laptop", "--data", data, "--json").stdout
    rows = [json.loads(line) for line in listed.splitlines()]
    assert [one["part"] for one in rows] == ["", "a/b"]
    assert token not in listed and str(rows[1]["created"]).startswith("20")
    registry = Store.open(str(data)).registry
    grant = registry.authenticate_token(token)
    assert grant is not None and grant.may_write("laptop", b"a/b/c") and not grant.may_read("laptop", b"a/c")
    fed(token + "\n", "volume", "token", "revoke", "laptop", "-", "--data", data)
    assert registry.authenticate_token(token) is None
    run("volume", "token", "revoke", "laptop", rows[0]["id"], "--data", data)
    with pytest.raises(NotFound):
        run("volume", "token", "revoke", "laptop", rows[0]["id"], "--data", data)
    with pytest.raises(NotFound):
        run("volume", "token", "create", "nothing", "--data", data)


def test_people_get_rights_with_a_password_from_standard_input(data: Path) -> None:
    run("volume", "create", "laptop", "--data", data)
    fed("secret\n", "volume", "user", "allow", "laptop", "ann", "--data", data)
    registry = Store.open(str(data)).registry
    grant = registry.authenticate_user("ann", "secret")
    assert grant is not None and grant.may_read("laptop", b"") and not grant.may_write("laptop", b"")
    fed("", "volume", "user", "allow", "laptop", "ann", "--write", "--data", data)
    assert row("volume", "user", "list", "--data", data) == {"user": "ann", "volumes": {"laptop": "write"}}
    run("volume", "user", "deny", "laptop", "ann", "--data", data)
    assert registry.users() == []
    with pytest.raises(BadUsage):
        fed("\n", "volume", "user", "allow", "laptop", "bob", "--data", data)


def test_a_snapshot_on_demand_is_made_and_validated(data: Path) -> None:
    run("volume", "create", "laptop", "--data", data)
    with pytest.raises(BadUsage):
        run("volume", "snapshot", "laptop", "--data", data)  # nothing was mirrored yet
    part = Store.open(str(data)).volume("laptop").part(b"", create=True)
    info = runs.begin_run(part, "host", {})
    with pytest.raises(BadUsage):
        run("volume", "snapshot", "laptop", "--data", data)
    close(part, info, manifest_of([]))
    before = [one.name for one in part.snapshots()]
    made = row("volume", "snapshot", "laptop", "--data", data)
    assert [one.name for one in part.snapshots()] == [*before, made["snapshot"]]
    assert made["sequence"] == part.snapshot("latest").sequence
