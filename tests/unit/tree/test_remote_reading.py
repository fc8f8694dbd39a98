"""Reading from a store: answers that break off, answers that lie.  The store is a list of blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mirrorkeep.errors import MalformedBundle, StoreUnreachable
from mirrorkeep.tree import wire
from mirrorkeep.tree.client import STREAM_TRIES, StoreClient
from mirrorkeep.tree.protocol import Failure, Op
from mirrorkeep.tree.remote import RemoteTree


def content(number: int, data: bytes) -> bytes:
    line = b"%d" % number
    return wire.pack_head(Op.PUT, line, len(data)) + line + data


class Client(StoreClient):
    """Answers each request with the next list of blocks; remembers what was asked for."""

    def __init__(self, *answers: list[bytes]) -> None:
        super().__init__(StoreClient.from_target("https://localhost/volumes/v").target, None, None)
        self.answers = list(answers)
        self.asked: list[list[bytes]] = []

    def stream_url(self, url: str, **request: Any) -> Iterator[bytes]:
        self.asked.append(request["body"].split(b"\0"))
        return iter(self.answers.pop(0))


def test_after_an_answer_that_broke_off_the_rest_is_asked_for() -> None:
    whole = content(0, b"one") + content(1, b"two")
    client = Client([whole[:-1]], [content(0, b"two"), content(2, b"four"), wire.END])
    got = list(RemoteTree(client).contents([b"a", b"b", b"c", b"d"]))
    assert [one if isinstance(one, bytes) else (one.index, one.code) for one in got] == [
        b"one",
        b"two",
        (2, "not_found"),
        b"four",
    ]
    assert client.asked == [[b"a", b"b", b"c", b"d"], [b"b", b"c", b"d"]]


def test_blocks_are_cut_anywhere() -> None:
    answer = content(0, b"x" * 100) + content(1, b"") + wire.END
    for size in (1, 7, 13, 14, 50, len(answer)):
        client = Client([answer[start : start + size] for start in range(0, len(answer), size)])
        assert list(RemoteTree(client).contents([b"a", b"b"])) == [b"x" * 100, b""]


def test_what_never_gets_further_is_given_up() -> None:
    client = Client(*[[b""]] * (STREAM_TRIES + 1))
    with pytest.raises(StoreUnreachable):
        list(RemoteTree(client).contents([b"a"]))
    assert len(client.asked) == STREAM_TRIES


@pytest.mark.parametrize("numbers", [(2,), (0, 0), (1, 0)])
def test_content_for_nothing_that_was_asked_for_is_refused(numbers: tuple[int, ...]) -> None:
    client = Client([*(content(number, b"data") for number in numbers), wire.END])
    with pytest.raises(MalformedBundle):
        list(RemoteTree(client).contents([b"a", b"b"]))


def test_a_line_that_is_no_number_is_refused() -> None:
    client = Client([wire.pack_head(Op.PUT, b"-1", 0) + b"-1", wire.END])
    with pytest.raises(MalformedBundle):
        list(RemoteTree(client).contents([b"a"]))


def test_what_the_store_leaves_out_is_not_found() -> None:
    got = list(RemoteTree(Client([wire.END])).contents([b"a", b"b"]))
    assert all(isinstance(one, Failure) and one.code == "not_found" for one in got)
    assert len(got) == 2
