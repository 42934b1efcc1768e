"""`dicom-node token`, and what check-config and serve say about a page without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from dicom_node.cli import main
from dicom_node.store import open_store
from dicom_node.web.tokens import TokenFile
from tests.certificates import Authority

ROOT = Path(__file__).resolve().parents[2]
WIDE = '[web]\nhost = "0.0.0.0"\nport = 0\n'


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Run one command on a state folder; return code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        capsys.readouterr()
        try:
            code = main([*map(str, arguments), "--state-dir", str(tmp_path / "state")])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code, out, err

    yield call
    structlog.reset_defaults()  # the streams of this test end with it


def test_a_token_is_printed_once_and_works(run, tmp_path):
    code, out, err = run("token", "add", "alice", "--role", "operator")
    listed = run("token", "list")[1]

    assert (code, err.strip()) == (0, "keep it now: it is not shown again")
    assert TokenFile(tmp_path / "state").verify(out.strip()).name == "alice"
    assert "alice" in listed and "operator" in listed and out.strip() not in listed


def test_the_list_as_json_has_names_and_roles_alone(run):
    run("token", "add", "alice")

    (one,) = json.loads(run("token", "list", "--json")[1])

    assert set(one) == {"name", "role", "created_at"} and one["role"] == "viewer"


def test_a_removed_token_is_gone_and_both_are_in_the_trail(run, tmp_path):
    run("token", "add", "alice")

    assert run("token", "remove", "alice")[0] == 0
    assert run("token", "list")[1] == "There is no token.\n"
    code, out, err = run("token", "remove", "alice")
    assert (code, out) == (1, "") and "there is no token 'alice'" in err
    store = open_store(f"sqlite:///{tmp_path / 'state' / 'node.db'}")
    trail = [(row.event, row.fields["name"]) for row in store.audit.listing()]
    store.close()
    assert trail == [("token.add", "alice"), ("token.remove", "alice")]


@pytest.mark.parametrize("arguments", [("add",), ("add", "a", "--role", "king"), ("frob",), ()])
def test_what_is_not_understood_is_one_line(run, arguments):
    code, out, err = run("token", *arguments)

    assert (code, out) == (2, "") and len(err.splitlines()) == 1


def test_check_config_says_how_to_open_the_page_beyond_this_machine(run, tmp_path):
    config = tmp_path / "wide.toml"
    config.write_text(WIDE)

    code, _, err = run("check-config", config)
    assert code == 1 and "dicom-node token add NAME --role viewer" in err
    token = run("token", "add", "alice")[1].strip()
    code, out, err = run("check-config", config)

    kept = (tmp_path / "state" / "tokens.json").read_text()
    (line,) = json.loads(kept)["tokens"]
    assert code == 0 and "the page listens beyond this machine" in out and "without TLS" in out
    for secret in (token, line["digest"], line["salt"], line["key"]):
        assert secret not in out + err


def test_check_config_reads_the_pages_certificate(run, tmp_path):
    issued = Authority(tmp_path).issue("node")
    config = tmp_path / "node.toml"
    lines = f'certificate = "{issued.certificate}"\nkey = "{issued.key}"\n'
    config.write_text(f"[web]\n{lines}")

    assert run("check-config", config)[0] == 0
    issued.key.write_text("no key")
    code, _, err = run("check-config", config)
    assert code == 1 and f"web.certificate = {issued.certificate}" in err
    issued.key.unlink()
    assert f"web.key = {issued.key}: No such file" in run("check-config", config)[2]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('certificate = "a.pem"', "certificate and key go together"),
        ('names = ["Node.example.org"]', "web.names"),
        ('names = ["node.example.org:8080"]', "web.names"),
        ("session_s = 0", "web.session_s"),
    ],
)
def test_an_impossible_value_of_the_page_is_refused(run, tmp_path, line, words):
    config = tmp_path / "bad.toml"
    config.write_text(f"[web]\n{line}\n")

    code, _, err = run("check-config", config)

    assert code == 1 and words in err


def test_serve_refuses_a_page_that_nobody_could_enter(tmp_path):
    (tmp_path / "node.toml").write_text(f"[node]\nport = 0\n{WIDE}")

    done = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli", "serve", "--workers", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 2 and done.stdout == ""
    assert "dicom-node token add NAME --role viewer" in done.stderr
