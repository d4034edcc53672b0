"""The command line as a process: exit codes, one-line errors, and what it does not import."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cli import main

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "aiortc", "pipecat", "av", "numba", "aiohttp", "onnxruntime")


def clean_environment(**extra: str) -> dict[str, str]:
    """The test's own environment without any of our settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MG_")}
    return kept | extra


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=ROOT,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, gateway.cli; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("serve", "call", "engine", "doctor", "config"):
        assert command in done.stdout


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that must end with code 2 says on standard error; in this process, which is quicker."""
    for name in [name for name in os.environ if name.startswith("MG_")]:
        monkeypatch.delenv(name)

    def said(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["moshi-gateway", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2, arguments
        return capsys.readouterr().err

    return said


@pytest.mark.parametrize(
    "arguments",
    [["srve"], ["serve", "--prot", "1"], ["serve", "--engine", "foo"], ["config", "chek"], ["call"]],
)
def test_wrong_usage_exits_2(ended: Callable[..., str], arguments: list[str]) -> None:
    assert ended(*arguments)


def test_a_process_that_was_called_wrongly_exits_2_without_a_traceback() -> None:
    done = run("serve", "--engine", "foo")
    assert done.returncode == 2 and done.stderr and "Traceback" not in done.stderr


def test_wrong_configuration_exits_2_with_file_line_and_key(
    ended: Callable[..., str], tmp_path: Path
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("[http]\n\nprot = 1\n")
    for command in (["serve", "-c"], ["config", "check", "-c"], ["config", "show", "-c"], ["doctor", "-c"]):
        said = ended(*command, str(file))
        assert said.startswith(f"moshi-gateway: {file}:3: http.prot: unknown key"), said
        assert said.count("\n") == 1
    done = run("serve", "-c", str(file))
    assert done.returncode == 2 and done.stderr == said


def test_a_good_configuration_exits_0() -> None:
    done = run("config", "check", "-c", "configs/default.toml")
    assert done.returncode == 0 and done.stdout == "configs/default.toml: good\n"


def test_the_schema_is_json_schema() -> None:
    schema = json.loads(run("config", "schema").stdout)
    assert schema["$schema"].endswith("2020-12/schema") and "sip" in schema["properties"]


def test_config_show_masks_secrets() -> None:
    done = run("config", "show", MG_ENGINE__TOKEN="very-secret", MG_HTTP__PORT="81")
    assert "very-secret" not in done.stdout + done.stderr and "********" in done.stdout
    assert "port = 81  # environment MG_HTTP__PORT" in done.stdout


@pytest.mark.slow
def test_doctor_names_the_taken_port_and_exits_1() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = run(
            "doctor", MG_HTTP__PORT=port, MG_SIP__PORT="0", MG_SIP__HOST="127.0.0.1", MG_ENGINE__KIND="echo"
        )
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FAIL")]
    assert f"127.0.0.1:{port}" in line and "in use" in line


@pytest.mark.slow
def test_missing_weights_are_one_line_with_file_and_remedy(tmp_path: Path) -> None:
    """Which file, which repository or folder, what to run; exit 1."""
    ports = {
        "MG_HTTP__PORT": "0",
        "MG_SIP__PORT": "0",
        "MG_SIP__HOST": "127.0.0.1",
        "MG_SIP__RTP_PORTS": "0,0",
    }
    done = run("serve", "--engine", "moshi", "--model", str(tmp_path), "--device", "cpu", **ports)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("moshi-gateway: ") and str(tmp_path) in last and "model.safetensors" in last


@pytest.mark.slow
@pytest.mark.parametrize(("section", "kind"), [("HTTP", socket.SOCK_STREAM), ("SIP", socket.SOCK_DGRAM)])
def test_a_taken_port_is_one_line_that_says_which(section: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        port = str(taken.getsockname()[1])
        ports = {"MG_HTTP__PORT": "0", "MG_SIP__PORT": "0", f"MG_{section}__PORT": port}
        done = run("serve", "--engine", "echo", "--sip-host", "127.0.0.1", MG_SIP__RTP_PORTS="0,0", **ports)
    assert done.returncode == 1, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("moshi-gateway: ")]
    assert len(lines) == 1 and port in lines[0] and section in lines[0] and "Traceback" not in done.stderr


def served(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """`serve` on free ports of the loopback with the echo, once it has said that it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--sip-host", "127.0.0.1", *arguments],
        cwd=ROOT,
        env=clean_environment(
            **{
                "MG_HTTP__PORT": "0",
                "MG_SIP__PORT": "0",
                "MG_SIP__RTP_PORTS": "0,0",
                "MG_ENGINE__KIND": "echo",
            }
            | environment
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "is ready" in line:
            return process
    raise AssertionError(f"serve ended with {process.wait()}")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_ends_serve_with_its_code(number: signal.Signals, code: int) -> None:
    process = served()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == code, rest
    assert "Traceback" not in rest


@pytest.mark.slow
def test_the_banner_says_where_to_call_and_what_answers() -> None:
    process = served()
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(5)]
    process.terminate()
    process.communicate(timeout=30)
    text = "".join(lines)
    assert (
        "http://localhost:" in text
        and "sip:moshi@127.0.0.1:" in text
        and "echo" in text
        and "as configured" in text
    )


@pytest.mark.slow
def test_an_engine_of_its_own_is_not_open_to_the_network_without_a_token() -> None:
    done = run("engine", "--engine", "echo", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == 2 and "MG_ENGINE__TOKEN" in done.stderr


@pytest.mark.slow
def test_a_gateway_and_its_engine_may_be_two_processes() -> None:
    engine = subprocess.Popen(
        [sys.executable, "-m", "gateway", "engine", "--engine", "echo", "--port", "0"],
        cwd=ROOT,
        env=clean_environment(MG_ENGINE__TOKEN="shared"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert engine.stderr is not None
    lines = (line for line in engine.stderr if "slots on 127.0.0.1:" in line)
    port = next(lines).rsplit(":", 1)[1].strip()
    gateway = served(
        MG_ENGINE__KIND="worker", MG_ENGINE__WORKERS=f"ws://127.0.0.1:{port}", MG_ENGINE__TOKEN="shared"
    )
    for process, number, code in ((gateway, signal.SIGTERM, 0), (engine, signal.SIGINT, 130)):
        process.send_signal(number)
        _, rest = process.communicate(timeout=30)
        assert process.returncode == code, rest
