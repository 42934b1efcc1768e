"""Tokens: shown once, kept as hashes in a file that nobody else can read."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from dicom_node.errors import SettingsError
from dicom_node.web import tokens
from dicom_node.web.tokens import Role, TokenFile, TokenRefused
from tests.rigs import rig_settings

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def file(tmp_path):
    return TokenFile(tmp_path)


def test_a_token_is_known_by_its_name_and_role(file):
    text = file.add("alice", Role.OPERATOR, NOW)

    found = file.verify(text)

    assert (found.name, found.level) == ("alice", Role.OPERATOR)
    assert found.created_at == "2026-01-02T03:04:05+00:00"


def test_the_file_holds_no_token_and_only_its_owner_reads_it(file):
    text = file.add("alice", Role.VIEWER, NOW)

    kept = file.path.read_text()

    assert text not in kept and text.rpartition("_")[2] not in kept
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert not file.path.with_suffix(".part").exists()


def test_nothing_but_the_whole_token_is_one(file):
    text = file.add("alice", Role.VIEWER, NOW)
    (line,) = json.loads(file.path.read_text())["tokens"]
    other = TokenFile(file.path.parent / "other").add("alice", Role.VIEWER, NOW)

    for wrong in ("", "alice", text[:-1], text + "0", text.upper(), other, line["digest"], "é\0"):
        assert file.verify(wrong) is None
    assert file.verify(f"dn_{line['key']}_{'0' * 64}") is None


def test_a_removed_token_is_none_any_more_even_if_it_was_remembered(file):
    text = file.add("alice", Role.VIEWER, NOW)
    token = file.verify(text)
    assert file.recall(text) == token

    TokenFile(file.path.parent).remove("alice")  # another process: the command line

    assert file.recall(text) is None and file.verify(text) is None
    assert not file.has(token)


def test_a_removed_file_lets_nobody_in(file):
    text = file.add("alice", Role.ADMIN, NOW)
    file.path.unlink()

    assert file.listing() == () and file.verify(text) is None


@pytest.mark.parametrize("name", ["", " a", "a b", "-a", "a\n", "é", "a" * 65, "../a"])
def test_a_name_that_could_mislead_is_refused(file, name):
    with pytest.raises(TokenRefused, match="a token's name"):
        file.add(name, Role.VIEWER, NOW)


def test_a_name_is_given_once(file):
    file.add("alice", Role.VIEWER, NOW)

    with pytest.raises(TokenRefused, match="already"):
        file.add("alice", Role.ADMIN, NOW)
    with pytest.raises(TokenRefused, match="no token 'bob'"):
        file.remove("bob")


def test_tokens_made_at_the_same_moment_are_all_kept(tmp_path):
    names = [f"n{number}" for number in range(8)]

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda name: TokenFile(tmp_path).add(name, Role.VIEWER, NOW), names))

    assert {TokenFile(tmp_path).verify(text).name for text in made} == set(names)


def test_a_file_that_others_can_read_is_refused(file):
    file.add("alice", Role.VIEWER, NOW)
    file.path.chmod(0o640)

    with pytest.raises(SettingsError, match="mode 0640 .* chmod 0600"):
        TokenFile(file.path.parent).listing()


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"tokens": [{"digest": "SECRET"}]}',
        b'{"tokens": "SECRET"}',
        b"\xff SECRET",
        b'{"tokens": [{"key": "a", "name": "a", "role": "SECRET", "created_at": "", "salt": "", '
        b'"digest": ""}]}',
    ],
)
def test_a_damaged_file_is_refused_and_not_quoted(file, content):
    file.path.write_bytes(content)
    file.path.chmod(0o600)

    with pytest.raises(SettingsError, match="damaged") as refused:
        file.listing()

    assert "SECRET" not in str(refused.value)


def test_no_secret_stands_in_the_words_for_a_token(file):
    text = file.add("alice", Role.VIEWER, NOW)
    token = file.verify(text)

    for secret in (token.digest, token.salt, token.key):
        assert secret not in repr(token)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "node.example.org", ""])
def test_beyond_loopback_a_node_without_a_token_does_not_start(tmp_path, host):
    settings = rig_settings(tmp_path, web={"host": host, "port": 0})

    with pytest.raises(SettingsError, match="dicom-node token add NAME --role viewer"):
        tokens.check_start(settings)
    TokenFile(tmp_path).add("alice", Role.VIEWER, NOW)

    assert tokens.check_start(settings) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_loopback_a_node_needs_no_token(tmp_path, host):
    assert tokens.check_start(rig_settings(tmp_path, web={"host": host})) == 0
