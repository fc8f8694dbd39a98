"""Volumes, tokens and users: what is stored, what is granted, how far it reaches."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import pytest

from mirrorkeep.errors import AlreadyExists, BadUsage, NotFound
from mirrorkeep.store.registry import Grant, Registry, Scope


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(tmp_path: Path, clock: Clock) -> Registry:
    made = Registry(str(tmp_path), clock)
    made.prepare()
    made.create_volume("laptop")
    return made


def test_volumes_come_and_go(registry: Registry) -> None:
    registry.create_volume("a.b-c_d")
    assert registry.volumes() == ["a.b-c_d", "laptop"]
    assert registry.has_volume("laptop")
    with pytest.raises(AlreadyExists):
        registry.create_volume("laptop")
    registry.delete_volume("laptop")
    assert registry.volumes() == ["a.b-c_d"]
    assert not registry.has_volume("laptop")
    with pytest.raises(NotFound):
        registry.delete_volume("laptop")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".hidden", "a b", "ü", "a\n", "x" * 65, "a\0"])
def test_a_name_that_could_leave_its_folder_is_refused(registry: Registry, name: str) -> None:
    with pytest.raises(BadUsage):
        registry.create_volume(name)
    assert not registry.has_volume(name)


def test_a_token_grants_its_part_and_is_stored_nowhere(registry: Registry, tmp_path: Path) -> None:
    token = registry.create_token("laptop", b"home/\xff")
    grant = registry.authenticate_token(token)
    assert grant is not None
    assert grant.kind == "agent"
    assert grant.scopes == (Scope("laptop", b"home/\xff", write=True),)
    for folder, _, files in os.walk(tmp_path):
        for file in files:
            path = Path(folder, file)
            assert token.encode() not in path.read_bytes()
            assert token not in str(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in grant.principal


@pytest.mark.parametrize("token", ["", "x", "../volumes/laptop", "\udcff", "a" * 10_000])
def test_what_is_no_token_grants_nothing(registry: Registry, token: str) -> None:
    assert registry.authenticate_token(token) is None


def test_a_token_is_no_option_of_the_tools_it_is_given_to(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter(["-starts-like-an-option", "_starts-with-a-line", "Z-starts-with-a-letter"])
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: next(drawn))
    assert registry.create_token("laptop") == "Z-starts-with-a-letter"


def test_a_token_ends_with_its_volume_and_does_not_open_a_namesake(registry: Registry) -> None:
    token = registry.create_token("laptop")
    assert registry.authenticate_token(token) is not None
    registry.delete_volume("laptop")
    assert registry.authenticate_token(token) is None
    registry.create_volume("laptop")
    assert registry.authenticate_token(token) is None
    with pytest.raises(NotFound):
        registry.create_token("nothing")


def test_scopes_end_at_whole_names() -> None:
    grant = Grant("token:x", "agent", (Scope("v", b"home", True), Scope("w", b"", False)))
    assert grant.may_write("v", b"home")
    assert grant.may_write("v", b"home/a")
    assert not grant.may_read("v", b"homes")
    assert not grant.may_read("v", b"")
    assert not grant.may_read("x", b"home")
    assert grant.may_read("w", b"anything")
    assert not grant.may_write("w", b"anything")


def test_users_have_rights_by_volume(registry: Registry) -> None:
    registry.create_user("ann/../x", "secret", {"laptop": "write", "other": "read"})
    assert registry.users() == ["ann/../x"]
    grant = registry.authenticate_user("ann/../x", "secret")
    assert grant is not None
    assert grant.may_write("laptop", b"x")
    assert grant.may_read("other", b"x")
    assert not grant.may_write("other", b"x")
    assert registry.authenticate_user("ann/../x", "wrong") is None
    assert registry.authenticate_user("nobody", "secret") is None
    assert registry.authenticate_user("", "") is None


def test_a_password_check_is_remembered_for_a_minute_and_for_this_record_only(
    registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mirrorkeep.store import registry as module

    asked = []
    derive = module._scrypt
    monkeypatch.setattr(module, "_scrypt", lambda *args: (asked.append(1), derive(*args))[1])
    registry.create_user("ann", "secret", {"laptop": "read"})
    asked.clear()
    for seconds, derivations in ((0, 1), (59, 1), (61, 2)):
        clock.now = seconds
        assert registry.authenticate_user("ann", "secret") is not None
        assert len(asked) == derivations
    registry.create_user("ann", "changed", {"laptop": "read"})
    assert registry.authenticate_user("ann", "secret") is None
    registry.delete_user("ann")
    assert registry.authenticate_user("ann", "changed") is None


@pytest.mark.parametrize(
    ("name", "rights"), [("", {}), ("token", {}), ("x" * 300, {}), ("ann", {"v": "admin"})]
)
def test_users_that_make_no_sense_are_refused(registry: Registry, name: str, rights: dict[str, str]) -> None:
    with pytest.raises(BadUsage):
        registry.create_user(name, "secret", rights)


def test_another_process_sees_changes_at_once(registry: Registry, tmp_path: Path) -> None:
    other = Registry(str(tmp_path))
    assert other.has_volume("laptop")
    token = registry.create_token("laptop")
    assert other.authenticate_token(token) is not None
    registry.delete_volume("laptop")
    assert not other.has_volume("laptop")
    assert other.authenticate_token(token) is None


def test_a_revoked_token_grants_nothing_and_the_others_stay(registry: Registry) -> None:
    registry.create_volume("other")
    first, second = registry.create_token("laptop"), registry.create_token("laptop", b"a/part")
    foreign = registry.create_token("other")
    rows = registry.tokens("laptop")
    assert [row["part"] for row in rows] == [b"", b"a/part"]
    granted = [registry.authenticate_token(token) for token in (first, second)]
    assert [f"token:{row['id']}" for row in rows] == [grant.principal for grant in granted if grant]
    registry.revoke_token("laptop", rows[0]["id"])
    assert registry.authenticate_token(first) is None
    registry.revoke_token("laptop", second)
    assert registry.tokens("laptop") == []
    for wrong in (foreign, registry.tokens("other")[0]["id"], "", "0" * 12):
        with pytest.raises(NotFound) as caught:
            registry.revoke_token("laptop", wrong)
        assert foreign not in str(caught.value)
    assert registry.authenticate_token(foreign) is not None


def test_rights_are_given_and_taken_volume_by_volume(registry: Registry) -> None:
    registry.create_volume("other")
    registry.create_user("ann", "secret", {"laptop": "read"})
    registry.grant_user("ann", "other", "write")
    grant = registry.authenticate_user("ann", "secret")
    assert grant is not None and grant.may_write("other", b"a") and grant.may_read("laptop", b"a")
    registry.grant_user("ann", "other", None)
    grant = registry.authenticate_user("ann", "secret")
    assert grant is not None and not grant.may_read("other", b"a")
    with pytest.raises(NotFound):
        registry.grant_user("nobody", "other", "read")
    with pytest.raises(BadUsage):
        registry.grant_user("ann", "other", "admin")


def test_a_volume_of_the_same_name_is_not_reached_by_who_reached_the_old_one(registry: Registry) -> None:
    registry.create_user("ann", "secret", {"laptop": "write"})
    token = registry.create_token("laptop")
    registry.delete_volume("laptop")
    registry.create_volume("laptop")
    grant = registry.authenticate_user("ann", "secret")
    assert grant is not None and not grant.may_read("laptop", b"a")
    assert registry.authenticate_token(token) is None
