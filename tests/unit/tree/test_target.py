"""Target URLs and tokens as people type and paste them."""

from __future__ import annotations

import pytest

from mirrorkeep.errors import BadUsage
from mirrorkeep.tree.client import StoreClient
from mirrorkeep.tree.target import Target, clean_token

SECRET = "t-YSN37"


def test_a_target_has_a_host_a_port_a_volume_and_a_path() -> None:
    target = Target.parse("https://store.example/volumes/y/a%20b/c/")
    assert (target.host, target.port, target.volume, target.part) == ("store.example", 443, "y", b"a b/c")
    assert Target.parse("https://[::1]:8443/volumes/y").origin == "::1:8443"
    assert Target.parse("https://s:1/volumes/y/%3F%23").part == b"?#"


@pytest.mark.parametrize(
    "rest",
    [
        "h:99999/volumes/y",
        "h:abc/volumes/y",
        "h:0/volumes/y",
        "[::1/volumes/y",
        "h/volumes/y?x=1",
        "h/volumes/y#f",
        "h/volumes/../y",
        "h/volumes/y/../x",
        "h/volumes/y/%2e%2e/x",
        "h/volumes/y/a//b",
        "h/volumes/y/%00",
        "h/volumes",
    ],
)
def test_what_is_no_target_is_bad_usage(rest: str) -> None:
    with pytest.raises(BadUsage):
        Target.parse(f"https://{rest}")


def test_a_password_in_a_target_is_refused_and_not_shown() -> None:
    with pytest.raises(BadUsage) as refused:
        Target.parse(f"https://ann:{SECRET}@h:8443/volumes/y")
    assert SECRET not in str(refused.value) + repr(refused.value.fields)


@pytest.mark.parametrize("around", ["\r\n", "\n", "\r", " ", "\t"])
def test_white_space_around_a_token_does_not_count(around: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clean_token(f"{around}{SECRET}{around}", "the file") == SECRET
    monkeypatch.setenv("MIRRORKEEP_TOKEN", SECRET + around)
    client = StoreClient.from_target("https://h:8443/volumes/y")
    assert client._headers({})["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize("inside", ["\n", "\r", " ", "\t", "\x01", "\u20ac", "\x7f"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(
    inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIRRORKEEP_TOKEN", SECRET + inside + SECRET)
    with pytest.raises(BadUsage) as refused:
        StoreClient.from_target("https://h:8443/volumes/y")
    assert "MIRRORKEEP_TOKEN" in str(refused.value)
    assert SECRET not in str(refused.value) + repr(refused.value.fields)
