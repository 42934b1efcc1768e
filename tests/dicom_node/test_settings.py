"""The configuration: defaults, the manual, refusals, the environment."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from pydantic import ValidationError

from dicom_node.errors import SettingsError, UnknownPeer
from dicom_node.settings import (
    EngineSettings,
    PeerSettings,
    RuleSettings,
    Section,
    Settings,
    default_config_path,
    load_settings,
    make_settings,
)
from sr_engine.recipe import Recipe

CONTRACT = """
[node]
ae_title = "SRNODE"
host = "127.0.0.1"
port = 11112
state_dir = "./state"
database = "sqlite:///state/node.db"
[web]
host = "127.0.0.1"
port = 8080
[assembly]
idle_s = 60.0
[engine]
spacing_mm = 0.7
steps = 4
device = "auto"
weights = "default"
[[peers]]
name = "pacs"
ae_title = "ORTHANC"
host = "127.0.0.1"
port = 4242
roles = ["source", "destination"]
commitment = true
[[rules]]
name = "1.5 T brain"
when = { modality = ["MR"], field_strength_t = [1.4, 1.6] }
action = "enhance"
to = ["pacs"]
priority = "normal"
"""
PACS = {"name": "pacs", "ae_title": "ORTHANC", "host": "h", "roles": ["destination"]}


def sections() -> dict[str, type[Section]]:
    """Return every section of the configuration with its model."""
    plain = {
        name: field.annotation
        for name, field in Settings.model_fields.items()
        if name not in ("peers", "rules")
    }
    return plain | {"peers": PeerSettings, "rules": RuleSettings}


def test_the_manual_says_what_the_defaults_are():
    assert load_settings(default_config_path(), {}) == Settings()


@pytest.mark.parametrize("name", sections())
def test_the_manual_names_every_option(name):
    manual = default_config_path().read_text()
    options = [field.alias or key for key, field in sections()[name].model_fields.items()]

    assert not [option for option in options if f"\n{option} = " not in manual.replace("# ", "")
                and f"# {option} " not in manual]  # fmt: skip


def test_the_manual_writes_out_every_plain_default():
    manual = tomllib.loads(default_config_path().read_text())

    for name, model in sections().items():
        if name not in ("peers", "rules"):
            assert set(model.model_fields) - set(manual[name]) <= {"database"}


def test_a_file_of_the_contract_is_understood(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(CONTRACT)

    settings = load_settings(path, {})

    assert settings.peer("pacs").commitment is True
    assert settings.rules[0].when["field_strength_t"] == [1.4, 1.6]
    assert settings.destinations(settings.rules[0].to) == ("pacs",)
    assert settings.database_url == "sqlite:///state/node.db"


def test_without_a_file_the_defaults_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert load_settings(env={}) == Settings()


def test_a_node_toml_here_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("node.toml").write_text('[node]\nae_title = "HERE"')

    assert load_settings(env={}).node.ae_title == "HERE"


def test_the_database_stands_in_the_state_folder_unless_told_otherwise(tmp_path):
    settings = make_settings({"node": {"state_dir": str(tmp_path)}})

    assert settings.database_url == f"sqlite:///{tmp_path}/node.db"


def test_a_copy_by_json_is_the_same():
    settings = make_settings({"peers": [PACS], "node": {"state_dir": "/srv"}})

    assert Settings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"assembly": {"idle": 5}}, "config: unknown key assembly.idle (did you mean idle_s?)"),
        ({"nod": {}}, "config: unknown key nod (did you mean node?)"),
        ({"node": {"xyzzy": 1}}, "config: unknown key node.xyzzy"),
        (
            {"peers": [{"name": "a", "ae_title": "A", "prt": 3}]},
            "config: unknown key peers[0].prt (did you mean port?)",
        ),
        (
            {"rules": [{"name": "a", "action": "skip", "when": {"modalty": ["MR"]}}]},
            "config: rules[0].when: unknown condition 'modalty' (did you mean modality?)",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(data, message):
    with pytest.raises(SettingsError) as refused:
        make_settings(data)

    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("node", "port", 70000, "node.port = 70000"),
        ("node", "port", "104", 'node.port = "104"'),
        ("node", "ae_title", "A" * 17, "1 to 16 characters"),
        ("node", "ae_title", "   ", "1 to 16 characters"),
        ("node", "ae_title", "A\\B", "backslash"),
        ("node", "ae_title", "NÖDE", "ASCII"),
        ("assembly", "idle_s", 0, "assembly.idle_s = 0"),
        ("assembly", "idle_s", True, "assembly.idle_s = true"),
        ("assembly", "idle_s", float("nan"), "finite"),
        ("assembly", "min_slices", 1, "assembly.min_slices"),
        ("engine", "spacing_mm", 9.0, "spacing_mm must be between 0.3 and 3.0 mm, not 9.0"),
        ("engine", "steps", 0, "steps must be between 1 and 64"),
        ("engine", "device", "gpu", "engine.device"),
        ("engine", "lease_s", 5.0, "at most half of lease_s"),
        ("engine", "content_qualification", "DIAGNOSTIC", "content_qualification"),
        ("engine", "correct_distortion", True, "correct_distortion is not built"),
        ("sending", "backoff_last_s", 1.0, "must not be less than backoff_first_s"),
        ("files", "min_free_bytes", -1, "files.min_free_bytes = -1"),
    ],
)
def test_an_impossible_value_is_refused_and_named(section, key, value, words):
    with pytest.raises(SettingsError) as refused:
        make_settings({section: {key: value}})

    assert words in str(refused.value)
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"peers": [PACS, PACS]}, "the name 'pacs' stands there twice"),
        ({"peers": [{"name": "a"}]}, "needs an ae_title"),
        ({"peers": [PACS | {"host": ""}]}, "needs a host"),
        ({"peers": [PACS | {"roles": []}]}, "needs a role"),
        ({"peers": [PACS | {"roles": ["reader"]}]}, "peers[0].roles[0]"),
        ({"peers": [PACS | {"addresses": ["10.0.0.0/8", "scanner"]}]}, "scanner"),
        (
            {"peers": [PACS], "rules": [{"name": "r", "action": "enhance", "to": ["pcs"]}]},
            "rule 'r' sends to 'pcs', which is no peer with the role destination "
            "(did you mean pacs?)",
        ),
        (
            {"peers": [PACS | {"companions": ["spread"]}], "engine": {"triaxial": False}},
            "peer 'pacs' wants the companion spread, but engine.triaxial = false",
        ),
        ({"rules": [{"name": "r", "action": "delete"}]}, "rules[0].action"),
        ({"rules": [{"name": "r", "action": "skip", "reason": "{patient}"}]}, "{patient}"),
        (
            {"rules": [{"name": "r", "action": "skip", "when": {"field_strength_t": [3, 1]}}]},
            "3 is above 1",
        ),
        ({"assembly": 5}, "assembly = 5"),
    ],
)
def test_what_does_not_fit_together_is_refused(data, words):
    with pytest.raises(SettingsError) as refused:
        make_settings(data)

    assert words in str(refused.value)


def test_the_password_of_the_database_is_not_repeated():
    with pytest.raises(SettingsError) as refused:
        make_settings({"node": {"database": ["postgresql://node:secret@host/db"]}})

    assert "secret" not in str(refused.value)


VNA = {"name": "vna", "protocol": "dicomweb", "url": "http://h"}


@pytest.mark.parametrize(
    ("peers", "place"),
    [
        ([VNA | {"auth": "bearer", "secret": "hunter2"}], "peers[0].secret"),
        ([VNA | {"auth": "bearer", "secret": "env:hunter2 "}], "peers[0].secret"),
        ([VNA | {"auth": "bearer", "secret": ["hunter2"]}], "peers[0].secret"),
        ([VNA | {"auth": "bearer", "secret": 4711}], "peers[0].secret"),
        ([VNA | {"url": "http://me:hunter2@h"}], "peers[0].url"),
        ([VNA | {"url": "http://me:hun/ter2@h"}], "peers[0].url"),
        ([VNA | {"url": "http://me:hunter2\u2100@h"}], "peers[0].url"),
        ([VNA | {"url": "http://[hunter2]"}], "peers[0].url"),
        (["hunter2"], "peers[0]"),
        ("hunter2", "peers"),
    ],
)
def test_what_may_be_a_password_is_named_and_not_repeated(peers, place):
    with pytest.raises(SettingsError) as refused:
        make_settings({"peers": peers})

    assert f"config: {place}: " in str(refused.value)
    assert not any(part in str(refused.value) for part in ("hun", "ter2", "4711"))


def test_a_variable_that_is_no_toml_is_not_repeated():
    text = '[{ name = "a", secret = "hunter2" ]'

    with pytest.raises(SettingsError) as refused:
        load_settings(default_config_path(), {"DICOM_NODE__PEERS": text})

    assert "DICOM_NODE__PEERS is no TOML value" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["ftp://h", "http://", "http://h?a=b", "http://h:99999", "http://h:0", "http://h:x",
     "http://h h", "http://h/\x01", "http://[::1", "http://a..b", f"http://{'a' * 64}.org"],
)  # fmt: skip
def test_a_url_that_cannot_be_called_is_refused(url):
    with pytest.raises(SettingsError, match=r"peers\[0\].url: a url"):
        make_settings({"peers": [VNA | {"url": url}]})


@pytest.mark.parametrize("url", ["https://h:8043/dicom-web/", "http://[::1]:80", "http://h.de./"])
def test_a_url_is_kept_without_its_last_slash(url):
    assert make_settings({"peers": [VNA | {"url": url}]}).peers[0].url == url.rstrip("/")


@pytest.mark.parametrize(
    ("name", "text", "section", "key", "value"),
    [
        ("NODE__PORT", "104", "node", "port", 104),
        ("NODE__AE_TITLE", "123", "node", "ae_title", "123"),
        ("NODE__STATE_DIR", "/srv/node", "node", "state_dir", Path("/srv/node")),
        ("NODE__DATABASE", "sqlite:///x.db", "node", "database", "sqlite:///x.db"),
        ("ASSEMBLY__IDLE_S", "2", "assembly", "idle_s", 2.0),
        ("SENDING__SHADOW", "true", "sending", "shadow", True),
        ("ENGINE__DEVICE", "cuda:1", "engine", "device", "cuda:1"),
        ("NODE__STORAGE_CLASSES", '["1.2"]', "node", "storage_classes", ("1.2",)),
    ],
)
def test_the_environment_overrides_single_values(tmp_path, name, text, section, key, value):
    path = tmp_path / "node.toml"
    path.write_text(CONTRACT)

    settings = load_settings(path, {f"DICOM_NODE__{name}": text, "PATH": "/bin"})

    assert getattr(getattr(settings, section), key) == value


def test_the_environment_may_name_all_peers():
    env = {"DICOM_NODE__PEERS": '[{ name = "a", ae_title = "A" }]'}

    assert load_settings(default_config_path(), env).peers[0].name == "a"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("NODE__PRT", "1", "unknown key node.prt (did you mean port?)"),
        ("NODE__PORT", "many", 'node.port = "many"'),
        ("NODE__PORT__X", "1", "names no section and key"),
        ("FOO__BAR", "1", "unknown key foo.bar"),
        ("NODE__STORAGE_CLASSES", "[1.2", "is no TOML value"),
    ],
)
def test_a_wrong_variable_is_refused(name, text, words):
    with pytest.raises(SettingsError) as refused:
        load_settings(default_config_path(), {f"DICOM_NODE__{name}": text})

    assert words in str(refused.value)


def test_the_command_line_wins_over_the_environment():
    settings = load_settings(
        default_config_path(),
        {"DICOM_NODE__NODE__STATE_DIR": "/a"},
        overrides={"node.state_dir": "/b"},
    )

    assert settings.node.state_dir == Path("/b")


@pytest.mark.parametrize(("text", "words"), [(None, "cannot be read"), ("[node", "is no TOML")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, text, words):
    path = tmp_path / "node.toml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(SettingsError, match=words):
        load_settings(path, {})


def test_the_engine_section_holds_the_whole_recipe_with_its_defaults():
    assert {field.name for field in fields(Recipe)} <= set(EngineSettings.model_fields)
    assert Settings().recipe() == Recipe()
    assert make_settings({"engine": {"seed": 3, "triaxial": False}}).recipe() == Recipe(
        seed=3, triaxial=False
    )


def test_a_rule_without_destinations_sends_to_everyone():
    research = PACS | {"name": "research"}
    scanner = {"name": "scanner", "ae_title": "MR1"}
    settings = make_settings({"peers": [PACS, scanner, research]})

    assert settings.destinations() == ("pacs", "research")


def test_an_unknown_peer_is_named_with_a_suggestion():
    with pytest.raises(UnknownPeer, match=r"'pasc' \(did you mean pacs\?\)"):
        make_settings({"peers": [PACS]}).peer("pasc")


def test_nothing_listens_beyond_loopback_by_default():
    assert {Settings().node.host, Settings().web.host} == {"127.0.0.1"}


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().node.port = 1
