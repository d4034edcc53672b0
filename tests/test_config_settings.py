"""Configuration: where values come from, what wins, and what a mistake looks like to who made it."""

import json
import os
import re
import sys
import tomllib
import wave
from pathlib import Path

import pytest
from pydantic import BaseModel

from gateway.config import PersonaSettings, Settings
from gateway.config_phone import AccountSettings, TrunkSettings
from gateway.config_sources import ConfigError, load, model_at, read, variable
from gateway.config_text import MASK, shown

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_TOML = ROOT / "configs" / "default.toml"


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MG_")]:
        monkeypatch.delenv(name)


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "gateway.toml"
    file.write_text(text)
    return file


def problems(file: Path | None = None, **flags: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file, flags)
    return caught.value.problems


def test_without_any_source_the_defaults_are_in_force() -> None:
    assert load() == Settings()
    assert Settings().http.port == 8080 and Settings().sip.port == 5060 and Settings().engine.kind == "auto"


def test_environment_beats_file_and_flags_beat_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "[http]\nport = 1001\nhost = '::'\n[sip]\nport = 1001\n[engine]\nslots = 7\n")
    monkeypatch.setenv("MG_SIP__PORT", "1002")
    monkeypatch.setenv("MG_HTTP__PORT", "1002")
    settings = load(file, {"http": {"port": 1003}})
    assert (settings.http.port, settings.sip.port, settings.engine.slots) == (1003, 1002, 7)
    assert settings.http.host == "::", "a flag for one key must not hide the rest of its section"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MG_CONFIG", str(written(tmp_path, "[engine]\nkind = 'echo'\n")))
    assert load().engine.kind == "echo"


def test_lists_and_ranges_are_writable_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MG_HTTP__ORIGINS", "https://a.example, https://b.example")
    monkeypatch.setenv("MG_SIP__RTP_PORTS", "20000-20100")
    monkeypatch.setenv("MG_SIP__CODECS", '["PCMA"]')
    monkeypatch.setenv("MG_HTTP__ICE_SERVERS", '[{"urls": ["stun:a"], "username": "u", "credential": "c"}]')
    settings = load()
    assert settings.http.origins == ("https://a.example", "https://b.example")
    assert settings.sip.rtp_ports == (20000, 20100) and settings.sip.codecs == ("PCMA",)
    assert settings.http.ice_servers[0].secret() == "c"


def test_a_persona_can_be_made_in_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MG_PERSONAS__SALES__SEED", "4")
    settings = load(written(tmp_path, "[personas.sales]\nvoice = 'NATF2'\nduplex = 'duck'\n"))
    persona = settings.engine_personas()["sales"]
    assert (persona.name, persona.voice, persona.seed) == ("sales", "NATF2", 4)
    assert settings.duplex_policy("sales") == "duck" and settings.duplex_policy("default") == "model"
    assert "default" in settings.engine_personas()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[http]\nprot = 1\n", 2, ["http.prot", "unknown key", "did you mean port?", "allowed: host, port"]),
        ("\n\n[sipp]\nport = 1\n", 3, ["sipp", "unknown key", "did you mean sip?"]),
        ("[http]\nport = 99999\n", 2, ["http.port", "65535", "99999"]),
        ("[http]\n\nport = 'x'\n", 3, ["http.port", "integer", "'x'"]),
        ("engine.kind = 'mosh'\n", 1, ["engine.kind", "'moshi'", "'mosh'"]),
        ("[personas.a]\n[personas.b]\nduplex = 'no'\n", 3, ["personas.b.duplex", "'never'"]),
        (
            "[[http.ice_servers]]\nurls = 'stun:a'\n[[http.ice_servers]]\nurls='stun:b'\nuser = 'b'\n",
            5,
            ["1.user", "username"],
        ),
        ("[sip]\nrtp_ports = [9, 3]\n", 2, ["sip.rtp_ports", "1024 to 65535"]),
        (
            "[sip]\nrtp_ports = [20000, 20009]\n[engine]\nslots = 6\n",
            2,
            ["sip.rtp_ports", "5 calls", "slots is 6"],
        ),
        (
            "[sip]\nrtp_ports = [20000, 20009]\n[engine]\nslots = 4\nparked_calls = 2\n",
            2,
            ["sip.rtp_ports", "5 calls", "slots is 4", "parked_calls 2"],
        ),
        (
            "[engine]\nkind = 'worker'\nworkers = ['ws://a:1']\nparked_calls = 2\n",
            4,
            ["engine.parked_calls", "must be 0", "keep their slots"],
        ),
        ("[sip]\npublic_address = 'me'\n", 2, ["sip.public_address", "IP address"]),
        ("[http]\ntls_cert = 'absent.pem'\n", 2, ["http.tls_cert", "no file absent.pem"]),
        ("[engine]\n\nkind = 'chat'\n", 1, ["engine.url", "needed with kind = chat"]),
        ("[engine]\nkind = 'worker'\n", 1, ["engine.workers", "needed"]),
        ("[engine]\nurl = 'wss://h/api/chat?token=abc'\n", 2, ["engine.url", "token_file"]),
        ("[engine]\ntoken = 'abc'\n", 2, ["engine.token", "token_file", "MG_ENGINE__TOKEN"]),
        ("[media]\njitter_min_ms = 90\njitter_max_ms = 50\n", 3, ["media.jitter_max_ms", "90"]),
        ("[trunks.a]\nserver = 'pbx.example:0'\n", 2, ["trunks.a.server", "1 to 65535"]),
        ("[trunks.a]\nserver = '[2001:db8::1]:70000'\n", 2, ["trunks.a.server", "1 to 65535"]),
        ("[trunks.a]\ncaller = 'sip:a@b:99999'\n", 2, ["trunks.a.caller", "bad port", "such as sip:"]),
        (
            "[accounts.a]\nregistrar = 'sip:pbx.example;transport=sctp'\nuser = '1'\n",
            2,
            ["accounts.a.registrar", "udp, tcp or tls"],
        ),
        ("[accounts.a]\nregistrar = 'sip:b.example'\nuser = 'ann <b>'\n", 3, ["accounts.a.user"]),
        ('[sip]\nuser_agent = "us\\r\\nX: 1"\n', 2, ["sip.user_agent"]),
        ("[http]\norigins = ['shop.example']\n", 2, ["http.origins"]),
        ("[http]\nice_servers = [{ urls = ['http://x'] }]\n", 2, ["ice_servers", "stun"]),
        ("[http]\nport = true\n", 2, ["http.port", "must be a number, not true"]),
        ("[limits]\ndrain_s = false\n", 2, ["limits.drain_s", "must be a number, not false"]),
        ("[engine]\nworkers = ['10.0.0.2:8998']\n", 2, ["engine.workers.0", "wss?://"]),
        ("engine = { token = 'abc' }\n", 1, ["engine.token", "token_file", "MG_ENGINE__TOKEN"]),
        (
            "[http]\nice_servers = [\n  { urls = 'turn:a', credential = 'abc' },\n]\n",
            2,
            ["ice_servers.0.credential", "credential_file", "(MG_HTTP__ICE_SERVERS)"],
        ),
        ("[trunks]\na = { username = 'u', password = 'abc' }\n", 2, ["trunks.a.password", "password_file"]),
        (f"[engine]\ntoken_file = '{__file__}'\n", 2, ["engine.token_file", "must hold one line"]),
        (f"[admin]\nkey_file = '{sys.executable}'\n", 2, ["admin.key_file", "cannot be read as text"]),
        (
            f"[http]\ntls_cert = '{__file__}'\ntls_key = '{__file__}'\n",
            2,
            ["http.tls_cert", "must be a PEM certificate chain", "without a passphrase"],
        ),
        ("[http]\nport = \n", 2, ["not valid TOML"]),
        ("[http]\nport = 1\nport = 2\n", 3, ["not valid TOML"]),
    ],
)
def test_a_mistake_is_named_with_file_line_and_key(
    tmp_path: Path, text: str, line: int, words: list[str]
) -> None:
    file = written(tmp_path, text)
    found = problems(file)
    assert len(found) == 1 and found[0].startswith(f"{file}:{line}: "), found
    for word in words:
        assert word in found[0]
    assert "abc" not in found[0], "no secret in an error"


def test_all_mistakes_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MG_SIP__PRT", "1")
    assert (
        len(problems(written(tmp_path, "[http]\nprot = 1\n[log]\nlevel = 'loud'\n"), engine={"slots": 0}))
        == 4
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("MG_HTTP_PORT", ["did you mean MG_HTTP__PORT?"]),
        ("MG_SIP__PRT", ["did you mean MG_SIP__PORT?", "MG_SIP__USER_AGENT"]),
        ("MG_ENGIN__KIND", ["did you mean MG_ENGINE__KIND?"]),
        ("MG_PERSONAS__A__VOIC", ["did you mean MG_PERSONAS__NAME__VOICE?"]),
    ],
)
def test_a_misspelt_variable_is_an_error(
    monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]
) -> None:
    monkeypatch.setenv(name, "1")
    (found,) = problems()
    assert found.startswith(f"environment {name}: ")
    for word in words:
        assert word in found


def test_a_wrong_value_is_blamed_on_the_source_that_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "[http]\nport = 1\n")
    monkeypatch.setenv("MG_HTTP__PORT", "many")
    assert problems(file)[0].startswith("environment MG_HTTP__PORT: http.port: ")
    assert problems(file, http={"port": -1})[0].startswith("flag --http-port: http.port: ")
    assert problems(file, http={"port": 1}, engine={"kind": "x"})[0].startswith(
        "flag --engine: engine.kind: "
    )


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in problems(tmp_path / "absent.toml")[0]
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in problems(binary)[0]
    assert "directory" in problems(tmp_path)[0].lower()


def test_secrets_come_from_files_or_environment_and_are_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "token"
    secret.write_text("from-file\n")
    file = written(tmp_path, f"[engine]\ntoken_file = '{secret}'\n")
    assert load(file).engine.secret() == "from-file"
    monkeypatch.setenv("MG_ENGINE__TOKEN", "from-environment")
    monkeypatch.setenv("MG_HTTP__ICE_SERVERS", '[{"urls": "turn:a", "credential": "turn-secret"}]')
    settings = load(file)
    assert settings.engine.secret() == "from-environment"
    text = shown(settings, read(file))
    assert "from-" not in text + repr(settings) and "turn-secret" not in text + repr(settings)
    assert text.count(MASK) == 2


def test_config_show_is_toml_that_says_where_each_value_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "[http]\nport = 1001\n[personas.'a b']\ntext_prompt = 'Say \"hm\"\\n'\n")
    monkeypatch.setenv("MG_LOG__FORMAT", "json")
    sources = read(file, {"engine": {"kind": "echo"}})
    text = shown(load(file, sources.flags), sources)
    assert f"port = 1001  # {file}:2" in text
    assert 'format = "json"  # environment MG_LOG__FORMAT' in text
    assert 'kind = "echo"  # flag --engine' in text and "slots = 4  # default" in text
    assert Settings(**tomllib.loads(text)) == load(file, sources.flags)


def test_config_show_knows_tables_with_free_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, '[routes]\n"+49 30" = "default"\n[trunks.a]\naddresses = ["192.0.2.0/24"]\n')
    monkeypatch.setenv("MG_ROUTES__SALES", "default")
    sources = read(file)
    text = shown(load(file), sources)
    assert f'"+49 30" = "default"  # {file}:2' in text
    assert 'sales = "default"  # environment MG_ROUTES__SALES' in text
    assert Settings(**tomllib.loads(text)) == load(file)


def silence(path: Path, seconds: float) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(int(seconds * 8_000) * 2))
    return path


def test_a_route_is_a_persona_or_a_table_with_an_announcement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice = silence(tmp_path / "notice.wav", 0.5)
    table = f'{{ persona = "default", announcement = "{notice}" }}'
    file = written(tmp_path, f'[routes]\n"100" = "default"\n"200" = {table}\n')
    monkeypatch.setenv("MG_ROUTES__300", "default")
    monkeypatch.setenv("MG_ROUTES__400__PERSONA", "default")
    monkeypatch.setenv("MG_ROUTES__400__ANNOUNCEMENT", str(notice))
    routes = load(file).routes
    assert {called: route.announcement for called, route in routes.items()} == {
        "100": None, "200": notice, "300": None, "400": notice,
    }  # fmt: skip
    assert {route.persona for route in routes.values()} == {"default"}
    text = shown(load(file), read(file))
    assert f'100 = "default"  # {file}:2' in text and f"200 = {table}  # {file}:3" in text
    assert Settings(**tomllib.loads(text)) == load(file)


def test_another_persona_from_the_environment_leaves_a_route_its_announcement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice = silence(tmp_path / "notice.wav", 0.5)
    table = f'{{ persona = "default", announcement = "{notice}" }}'
    file = written(tmp_path, f'[personas.anna]\n[routes]\n100 = {table}\n200 = "default"\n')
    monkeypatch.setenv("MG_ROUTES__100", "anna")
    monkeypatch.setenv("MG_ROUTES__200__ANNOUNCEMENT", str(notice))
    routes = load(file).routes
    assert [(route.persona, route.announcement) for route in routes.values()] == [
        ("anna", notice),
        ("default", notice),
    ]
    monkeypatch.setenv("MG_ROUTES__100__ANNOUNCEMENT", str(notice))
    (problem,) = problems(file)
    assert problem.startswith("environment MG_ROUTES__100:") and "MG_ROUTES__100__PERSONA" in problem


def test_an_announcement_that_cannot_be_played_is_named_with_its_line(tmp_path: Path) -> None:
    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"no audio at all")
    long = silence(tmp_path / "long.wav", 60.5)
    for given, wrong in (
        (tmp_path / "none.wav", "there is no file"),
        (noise, "Invalid data"),
        (long, "60 s"),
    ):
        table = f'{{ persona = "default", announcement = "{given}" }}'
        (problem,) = problems(written(tmp_path, f'[routes]\n"100" = {table}\n'))
        assert problem.startswith(f"{tmp_path / 'gateway.toml'}:2: routes.100.announcement: "), problem
        assert wrong in problem
    (problem,) = problems(written(tmp_path, '[routes]\n"100" = { persona = "default", file = "x.wav" }\n'))
    assert "routes.100.file: unknown key" in problem and "announcement" in problem


def leaves(model: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += leaves(inner, (*path, name))
        elif name == "personas":
            found += leaves(PersonaSettings, (*path, name, "default"))
        elif name in ("routes", "trunks", "accounts"):
            continue  # named by their owner: shown as examples
        else:
            found.append((*path, name))
    return found


def test_default_toml_is_complete_and_holds_the_defaults() -> None:
    text = DEFAULT_TOML.read_text()
    given = tomllib.loads(text)
    assert load(DEFAULT_TOML) == Settings(personas={"default": PersonaSettings()})
    for path in leaves(Settings):
        table = given
        for part in path[:-1]:
            table = table[part]
        section = text.split(f"[{'.'.join(path[:-1])}]\n")[1].split("\n[")[0]
        listed = path[-1] in table or re.search(rf"^# {path[-1]} = ", section, re.M)
        assert listed, f"{path} is not in default.toml"


def test_default_toml_shows_every_key_of_a_trunk_and_of_an_account() -> None:
    text = DEFAULT_TOML.read_text()
    for model, table in ((TrunkSettings, "# [trunks.carrier]"), (AccountSettings, "# [accounts.pbx]")):
        section = text.split(table)[1].split("\n\n")[0]
        for name in set(model.model_fields) - {"password"}:
            assert re.search(rf"^# {name} = ", section, re.M) or name == "username", name


def test_trunks_accounts_and_routes_are_read_and_their_mistakes_named(tmp_path: Path) -> None:
    file = tmp_path / "phone.toml"
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    file.write_text(
        f'[routes]\n"100" = "anna"\n[personas.anna]\n[trunks.carrier]\naddresses = ["203.0.113.0/24"]\n'
        f'username = "carrier"\npassword_file = "{secret}"\n'
        '[accounts.pbx]\nregistrar = "sip:pbx.example;transport=tcp"\nuser = "1000"\n'
    )
    settings = load(file)
    assert settings.trunks["carrier"].secret() == "hush" and "hush" not in repr(settings)
    assert settings.accounts["pbx"].aor == "sip:1000@pbx.example"
    file.write_text('[routes]\n"100" = "nobody"\n[trunks.empty]\n[trunks.odd]\naddresses = ["pbx.example"]\n')
    with pytest.raises(ConfigError) as error:
        load(file)
    problems = "\n".join(error.value.problems)
    assert "203.0.113.0/24" in problems and "phone.toml:5" in problems
    file.write_text('[routes]\n"100" = "nobody"\n[trunks.empty]\n')
    with pytest.raises(ConfigError, match="no persona named nobody") as error:
        load(file)
    assert "needs addresses" in "\n".join(error.value.problems)


def test_every_variable_of_the_issue_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert variable(("http", "port")) == "MG_HTTP__PORT"
    for name, value in {"MG_HTTP__PORT": "1", "MG_SIP__PORT": "2", "MG_ENGINE__SLOTS": "3"}.items():
        monkeypatch.setenv(name, value)
    for kind in ("auto", "moshi", "tiny", "echo"):
        monkeypatch.setenv("MG_ENGINE__KIND", kind)
        assert load().engine.kind == kind


def test_the_schema_describes_every_section_and_forbids_the_rest() -> None:
    schema = Settings.model_json_schema()
    assert set(schema["properties"]) == set(Settings.model_fields)
    assert schema["additionalProperties"] is False
    assert all(not table.get("additionalProperties", True) for table in schema["$defs"].values())
    assert "microphone" in json.dumps(schema["$defs"]["HttpSettings"]["properties"]["host"])
    assert model_at(Settings, ("http", "ice_servers", 0)) is not None
