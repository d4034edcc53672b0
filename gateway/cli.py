"""The command line: `moshi-gateway serve | call | engine | doctor | config`.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted. Importing this module
loads no model, no codec and no protocol; each command imports what it needs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.config import EngineKind, Settings
from gateway.config_sources import ConfigError, Sources, checked, read

FAILED = 1
USAGE = 2
LOOPBACK = ("127.0.0.1", "::1", "localhost")

app = typer.Typer(
    name="moshi-gateway",
    help="Phone and browser calls held by a full-duplex Moshi model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at the configuration.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="TOML file; unset: $MG_CONFIG, or the built-in defaults."),
]


class Failure(Exception):
    """A command failed in a way its user can do something about: one line, exit 1."""


def main() -> None:
    """The console script. Errors with a remedy are one line each; anything else is our bug and flies."""
    from engine.api import EngineError

    try:
        app()
    except ConfigError as error:
        _stop("\n".join(error.problems), USAGE)
    except (EngineError, Failure) as error:
        _stop(str(error), FAILED)


def _stop(message: str, code: int) -> None:
    print("\n".join(f"moshi-gateway: {line}" for line in message.splitlines()), file=sys.stderr)
    sys.exit(code)


@app.command()
def serve(
    config: ConfigFile = None,
    engine: Annotated[EngineKind | None, typer.Option(help="Which engine speaks.")] = None,
    slots: Annotated[int | None, typer.Option(help="Calls held at once.")] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face repository or local folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    http_host: Annotated[str | None, typer.Option(help="Address of the web page.")] = None,
    http_port: Annotated[int | None, typer.Option(help="TCP port of the web page.")] = None,
    sip_host: Annotated[str | None, typer.Option(help="Address for phones.")] = None,
    sip_port: Annotated[int | None, typer.Option(help="UDP port for phones.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
) -> None:
    """Take calls until interrupted; SIGTERM drains, a second signal ends at once."""
    settings = checked(
        read(
            config,
            _flags(
                engine={"kind": engine, "slots": slots, "model": model, "device": device},
                http={"host": http_host, "port": http_port},
                sip={"host": sip_host, "port": sip_port},
                log={"level": log_level, "format": log_format},
            ),
        )
    )
    from gateway import logs
    from gateway.app import serve as serve_calls

    logs.configure(settings.log)
    raise typer.Exit(serve_calls(settings))


@app.command()
def call(
    uri: Annotated[str, typer.Argument(help="Whom to call, such as sip:moshi@192.0.2.7.")],
    speech: Annotated[Path, typer.Option("--in", help="What to say: WAV, FLAC or another audio file.")],
    recording: Annotated[
        Path, typer.Option("--out", help="Stereo WAV of the call: left you, right the agent.")
    ],
    tail: Annotated[float, typer.Option(min=0, help="Seconds to listen after the speech.")] = 5.0,
    ring: Annotated[float, typer.Option(min=1, help="Seconds to wait for an answer.")] = 60.0,
    config: ConfigFile = None,
) -> None:
    """Call a SIP address, play a file, record both sides, and print setup time, loss, jitter and latency."""
    settings = checked(read(config))
    import asyncio

    from gateway import logs
    from gateway.audio_file import AudioFileError, read_audio
    from gateway.call_report import told
    from gateway.dial import CannotDial, Dial
    from gateway.outbound import place

    logs.configure(settings.log.model_copy(update={"level": "warning"}))
    try:
        dial = Dial(uri, read_audio(speech), recording, tail, ring)
        report, interrupted = asyncio.run(place(dial, settings.sip, _say))
    except (AudioFileError, CannotDial, OSError) as error:
        raise Failure(str(error)) from error
    print(told(report, recording), end="")
    raise typer.Exit(130 if interrupted else 0 if report.answered else FAILED)


@app.command("engine")
def engine_worker(
    host: Annotated[
        str, typer.Option(help="Address for gateways; other than loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="TCP port.", min=0, max=65535)] = 8998,
    config: ConfigFile = None,
    engine: Annotated[EngineKind | None, typer.Option(help="Which engine to run.")] = None,
    slots: Annotated[int | None, typer.Option(help="Calls held at once.")] = None,
    model: Annotated[str | None, typer.Option(help="Hugging Face repository or local folder.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
) -> None:
    """Run an engine for gateways elsewhere, which name it in engine.workers; SIGTERM drains."""
    flags = _flags(engine={"kind": engine, "slots": slots, "model": model, "device": device})
    settings = checked(read(config, flags))
    if settings.engine.secret() is None and host not in LOOPBACK:
        raise typer.BadParameter(f"{host} needs a token: set engine.token_file or MG_ENGINE__TOKEN")
    from gateway import logs
    from gateway.worker_process import serve_engine

    logs.configure(settings.log)
    raise typer.Exit(serve_engine(settings, host, port))


@app.command()
def doctor(config: ConfigFile = None) -> None:
    """Look at ports, addresses, libraries, GPU and weights, and name the fix for what is wrong."""
    settings = checked(read(config))
    from gateway.doctor import Verdict, examine, report

    findings = examine(settings)
    print(report(findings), end="")
    if any(found.verdict is Verdict.FAIL for found in findings):
        raise typer.Exit(FAILED)


@config_app.command("check")
def config_check(config: ConfigFile = None) -> None:
    """Say whether the configuration is usable; exit 2 with file, line and key where it is not."""
    sources = read(config)
    checked(sources)
    print(f"{sources.file or 'the built-in defaults'}: good")


@config_app.command("show")
def config_show(config: ConfigFile = None) -> None:
    """Print every setting in force, where it came from, and secrets masked."""
    from gateway.config_text import shown

    sources: Sources = read(config)
    print(shown(checked(sources), sources), end="")


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of the configuration file."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()}
    print(json.dumps(schema, indent=2))


def _say(line: str) -> None:
    """Progress goes to standard error, so that standard output holds the report alone."""
    print(line, file=sys.stderr, flush=True)


def _flags(**sections: dict[str, Any]) -> dict[str, Any]:
    """Only what was given, so that an absent flag does not hide the file."""
    given = {name: {k: v for k, v in values.items() if v is not None} for name, values in sections.items()}
    return {name: values for name, values in given.items() if values}
