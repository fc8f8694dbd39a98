"""Verdicts: what is signed, how they are chained, and that any change is noticed offline."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mirrorkeep.cli.verdict import check as check_command
from mirrorkeep.errors import VerdictRefused
from mirrorkeep.store import verdict as v
from mirrorkeep.store.chain import Chain


class Key:
    """A signing key of a test."""

    def __init__(self) -> None:
        private = Ed25519PrivateKey.generate()
        self.sign: Callable[[bytes], bytes] = private.sign
        self.pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


@pytest.fixture(scope="module")
def key() -> Key:
    return Key()


def statement(sequence: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "volume": "vol",
        "part": "",
        "snapshot": f"auto_{sequence}",
        "sequence": sequence,
        "manifest": hashlib.sha256(b"manifest").hexdigest(),
        "verdict": "verified",
        "mode": "full",
        "coverage": {"entries": 3, "oldest_read": "2012-11-20T00:00:00Z"},
        "findings": 0,
        "findings_digest": hashlib.sha256(b"").hexdigest(),
        "started": "2012-11-20T00:00:00Z",
        "ended": "2012-11-20T00:00:01Z",
        **changes,
    }


def three(folder: Path, key: Key) -> list[v.Verdict]:
    chain = Chain(str(folder))
    return [chain.add(statement(n), f"{n:016x}", key.sign, key.pem) for n in (1, 2, 3)]


def test_a_signed_verdict_holds_also_as_an_answer_of_the_store(tmp_path: Path, key: Key) -> None:
    made = three(tmp_path, key)[0]
    v.check_signature(made, [key.pem])
    v.check_signature({**json.loads(json.dumps(made)), "state": "done", "progress": None}, [key.raw])


@pytest.mark.parametrize("field", sorted(statement()))
def test_any_changed_field_is_noticed(tmp_path: Path, key: Key, field: str) -> None:
    made = three(tmp_path, key)[0]
    value = made[field]
    made[field] = value + 1 if isinstance(value, int) else {} if isinstance(value, dict) else value + "x"
    with pytest.raises(VerdictRefused):
        v.check_signature(made, [key.pem])


def test_an_added_field_a_lost_signature_and_another_key_are_noticed(tmp_path: Path, key: Key) -> None:
    made = three(tmp_path, key)[0]
    with pytest.raises(VerdictRefused, match="altered"):
        v.check_signature({**made, "note": "x"}, [key.pem])
    with pytest.raises(VerdictRefused, match="not signed"):
        v.check_signature({k: value for k, value in made.items() if k != "signature"}, [key.pem])
    with pytest.raises(VerdictRefused, match="another key"):
        v.check_signature(made, [Key().pem])


def test_the_manifest_is_the_one_that_was_validated(tmp_path: Path, key: Key) -> None:
    made = three(tmp_path, key)[0]
    v.check_manifest(made, io.BufferedReader(io.BytesIO(b"manifest")))
    with pytest.raises(VerdictRefused, match="another manifest"):
        v.check_manifest(made, io.BufferedReader(io.BytesIO(b"Manifest")))


def test_the_chain_is_followed_in_any_order_and_a_gap_is_noticed(tmp_path: Path, key: Key) -> None:
    first, second, third = three(tmp_path, key)
    assert first["previous"] == v.FIRST
    assert v.check_chain(third, [first, second]) == 2
    assert v.check_chain(third, []) == 0
    with pytest.raises(VerdictRefused, match="chain breaks"):
        v.check_chain(third, [first])
    with pytest.raises(VerdictRefused, match="chain breaks"):
        v.check_chain(third, [{**second, "findings": 1}])


def test_a_repeated_validation_leaves_one_link(tmp_path: Path, key: Key) -> None:
    chain = Chain(str(tmp_path))
    made = chain.add(statement(1), "a" * 16, key.sign, key.pem)
    assert chain.add(statement(1, ended="later"), "a" * 16, key.sign, key.pem) == made
    assert chain.head() == v.digest_of(made)


def test_what_a_crash_behind_the_head_left_unwritten_is_written_by_the_next_call(
    tmp_path: Path, key: Key
) -> None:
    chain = Chain(str(tmp_path))
    chain.add(statement(1), "a" * 16, key.sign, key.pem)
    second = chain.add(statement(2), "b" * 16, key.sign, key.pem)
    for name in ("2.json", f"2-{'b' * 16}.json"):
        (tmp_path / "verdicts" / name).unlink()
    assert chain.add(statement(2, ended="later"), "b" * 16, key.sign, key.pem) == second
    assert chain.newest(2) == chain.of(2, "b" * 16) == second


def test_a_validation_repeated_after_others_is_still_the_link_that_it_was(tmp_path: Path, key: Key) -> None:
    chain = Chain(str(tmp_path))
    first = chain.add(statement(1), "a" * 16, key.sign, key.pem)
    second = chain.add(statement(2), "b" * 16, key.sign, key.pem)
    assert chain.add(statement(1, ended="later"), "a" * 16, key.sign, key.pem) == first
    assert chain.head() == v.digest_of(second)


def test_a_verdict_that_does_not_count_leaves_the_snapshots_own(tmp_path: Path, key: Key) -> None:
    chain = Chain(str(tmp_path))
    full = chain.add(statement(1), "a" * 16, key.sign, key.pem)
    light = chain.add(statement(1, mode="metadata"), "b" * 16, key.sign, key.pem, counts=False)
    assert chain.newest(1) == full
    assert chain.of(1, "b" * 16) == light
    assert chain.head() == v.digest_of(light)


def test_a_rotation_signed_by_both_keys_is_followed(key: Key) -> None:
    second, third = Key(), Key()
    steps = [
        v.make_rotation(second.sign, second.pem, third.sign, third.pem, "2013"),
        v.make_rotation(key.sign, key.pem, second.sign, second.pem, "2012"),
    ]
    assert v.follow_rotations(key.pem, steps) == [key.raw, second.raw, third.raw]
    assert v.follow_rotations(third.pem, steps) == [third.raw]
    with pytest.raises(VerdictRefused, match="rotation"):
        v.follow_rotations(key.pem, [{**steps[1], "time": "1999"}])
    forged = {**steps[1], "signature_old": steps[1]["signature_new"]}
    with pytest.raises(VerdictRefused, match="signature_old"):
        v.follow_rotations(key.pem, [forged])


@pytest.mark.parametrize("data", [b"", b"-----BEGIN PUBLIC KEY-----\n", b"zz" * 32, b"short"])
def test_a_file_that_is_no_key_is_refused(data: bytes) -> None:
    with pytest.raises(VerdictRefused):
        v.load_public_key(data)


def rotated(folder: Path, *signers: Key) -> tuple[list[v.Verdict], list[dict[str, Any]]]:
    """Return a chain of two verdicts by each signer in turn, and the rotations between them."""
    steps = [
        v.make_rotation(old.sign, old.pem, new.sign, new.pem, "2012")
        for old, new in itertools.pairwise(signers)
    ]
    chain, made = Chain(str(folder)), []
    for number in range(2 * len(signers)):
        signer = signers[number // 2]
        one = statement(number)
        made.append(chain.add(one, f"{number:016x}", signer.sign, signer.pem, rotations=steps))
    return made, steps


def test_the_first_verdict_of_a_new_key_carries_the_handover(tmp_path: Path, key: Key) -> None:
    made, steps = rotated(tmp_path, key, Key(), Key())
    assert [one.get("rotations") for one in made] == [None, None, [steps[0]], None, [steps[1]], None]
    carried = [step for one in made for step in v.stated_rotations(one)]
    trusted = v.follow_rotations(key.pem, carried)
    for one in made:
        v.check_signature(one, trusted)
    assert v.check_chain(made[-1], made[:-1]) == 5
    with pytest.raises(VerdictRefused):
        v.check_signature({**made[2], "rotations": []}, trusted)


def test_a_part_that_missed_a_rotation_carries_all_of_them(tmp_path: Path, key: Key) -> None:
    second, third = Key(), Key()
    steps = [
        v.make_rotation(key.sign, key.pem, second.sign, second.pem, "2012"),
        v.make_rotation(second.sign, second.pem, third.sign, third.pem, "2013"),
    ]
    chain = Chain(str(tmp_path))
    chain.add(statement(1), "a" * 16, key.sign, key.pem)
    made = chain.add(statement(2), "b" * 16, third.sign, third.pem, rotations=steps)
    assert made["rotations"] == steps
    v.check_signature(made, v.follow_rotations(key.pem, made["rotations"]))
    first = Chain(str(tmp_path / "new")).add(statement(1), "c" * 16, third.sign, third.pem, rotations=steps)
    assert "rotations" not in first, "nothing came before it"


@pytest.mark.parametrize("malformed", ["x", [1], {"old_key": ""}])
def test_malformed_rotations_in_a_verdict_are_refused(malformed: object) -> None:
    with pytest.raises(VerdictRefused, match="malformed"):
        v.stated_rotations({"rotations": malformed})


def test_a_handover_is_followed_by_the_command(tmp_path: Path, key: Key) -> None:
    made, steps = rotated(tmp_path / "part", key, Key(), Key())
    (tmp_path / "manifest").write_bytes(b"manifest")
    (tmp_path / "key").write_bytes(key.pem)
    (tmp_path / "all").write_text("".join(json.dumps(one) + "\n" for one in steps))
    for number, one in enumerate(made):
        (tmp_path / str(number)).write_text(json.dumps(one))
    common = ["--manifest", str(tmp_path / "manifest"), "--key", str(tmp_path / "key"), "--json"]

    def check(number: int, *more: str) -> Result:
        return CliRunner().invoke(check_command, [str(tmp_path / str(number)), *common, *more])

    earlier = [argument for number in range(5) for argument in ("--previous", str(tmp_path / str(number)))]
    assert json.loads(check(5, *earlier).output)["links"] == 5
    assert json.loads(check(5, "--rotation", str(tmp_path / "all")).output)["holds"]
    assert json.loads(check(2).output)["holds"], "it carries its own handover"
    assert isinstance(check(5).exception, VerdictRefused)
