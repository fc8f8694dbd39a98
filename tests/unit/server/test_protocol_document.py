"""The vectors of docs/reference/protocol.md, played against the server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .conftest import Edge
from .test_runs import Run

DOCUMENT = (Path(__file__).parents[3] / "docs" / "reference" / "protocol.md").read_text()


def vectors() -> dict[str, bytes]:
    blocks = re.findall(r"```hex (\w+)\n(.*?)```", DOCUMENT, re.DOTALL)
    return {name: bytes.fromhex("".join(text.split())) for name, text in blocks}


def exchanges() -> Iterator[tuple[list[str], list[str]]]:
    for block in re.findall(r"```http\n(.*?)```", DOCUMENT, re.DOTALL):
        for exchange in block.strip().split("\n\n"):
            lines = exchange.splitlines()
            yield [row[2:] for row in lines if row[0] == ">"], [row[2:] for row in lines if row[0] == "<"]


def test_the_documented_exchanges_are_true(edge: Edge, base: str) -> None:
    mirrored, plain = base.rpartition("/")[2], "documented"
    edge.store.create_volume(plain)
    tokens = {mirrored: edge.token, plain: edge.store.registry.create_token(plain)}
    run, known, played = Run(edge, mirrored), vectors(), 0
    for (first, *rows), (status, *answer) in exchanges():
        method, url = first.split()
        url = url.replace("/V", f"/{mirrored}", 1).replace("/W", f"/{plain}", 1)
        headers, body = {}, b""
        for row in rows:
            name, _, value = row.partition(": ")
            if name == "hex":
                body = known[value]
            elif name == "text":
                body = value.replace("\\0", "\0").encode()
            else:
                headers[name] = run.header if value == "RUN" else value
        reply = edge(method, url, body, token=tokens[url.partition("?")[0].split("/")[2]], **headers)
        assert reply.status == int(status), (first, reply.body)
        if answer:
            name, _, value = answer[0].partition(": ")
            assert reply.body == (known[value] if name == "hex" else answer[0].encode()), first
        played += 1
    assert played == 12


def test_every_verb_and_header_of_the_wire_is_documented() -> None:
    from mirrorkeep.server import api, dav
    from mirrorkeep.tree import wire

    for verb in dav.ALLOW.split(", "):
        assert f"`{verb}" in DOCUMENT or f"### {verb}" in DOCUMENT, verb
    for name, value in vars(wire).items():
        if name.endswith("_HEADER"):
            assert value in DOCUMENT, value
    for resource in api.RESOURCES:
        last = resource.pattern.pattern.decode().rstrip("/([^]+)").rpartition("/")[2]
        assert last in DOCUMENT, last
