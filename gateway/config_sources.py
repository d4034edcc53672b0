"""Where settings come from: TOML file < environment < flags, and which of them is to blame.

An unknown key is an error, never ignored: the message names the file and line (or the variable, or
the flag), the key, what is allowed and the nearest match.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import EnvSettingsSource

from gateway import toml_lines
from gateway.config import ENV_DELIMITER, ENV_PREFIX, Settings, contradictions
from gateway.config_phone import RouteSettings

Tree = dict[str, Any]
KeyPath = tuple[str | int, ...]

CONFIG_VARIABLE = "MG_CONFIG"
"""Names the TOML file where no flag does."""
FLAGS: dict[KeyPath, str] = {
    ("engine", "kind"): "--engine",
    ("engine", "slots"): "--slots",
    ("engine", "model"): "--model",
    ("engine", "device"): "--device",
}
"""Flags that are shorter than their path; the others are it, as in `--http-port`."""


class ConfigError(Exception):
    """The configuration cannot be used. `problems` are lines, each with its place, key and remedy."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Sources:
    """The three places a value can come from, weakest first, as read and not yet checked."""

    file: Path | None
    toml: Tree
    lines: dict[KeyPath, int]
    environment: Tree
    flags: Tree

    def merged(self) -> Tree:
        return _overlaid(_overlaid(self.toml, self.environment), self.flags)

    def origin(self, path: KeyPath) -> str:
        """`flag --http-port`, `environment MG_HTTP__PORT`, `gateway.toml:12`, or `default`."""
        if _given(self.flags, path):
            return "flag " + FLAGS.get(path, "--" + _dotted(path).replace(".", "-").replace("_", "-"))
        if _given(self.environment, path):
            return "environment " + variable(path)
        line = toml_lines.nearest_line(self.lines, path) if _given(self.toml, path) else None
        return f"{self.file}:{line}" if line else "default"

    def blame(self, path: KeyPath) -> str:
        """The origin, or that of the nearest parent that was given."""
        for end in range(len(path), 0, -1):
            if (origin := self.origin(path[:end])) != "default":
                return origin
        return str(self.file) if self.file else "configuration"


def variable(path: KeyPath) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + ENV_DELIMITER.join(str(part) for part in path).upper()


def load(file: Path | None = None, flags: Tree | None = None) -> Settings:
    """The settings of this process. Raises ConfigError with every problem found."""
    return checked(read(file, flags))


def read(file: Path | None = None, flags: Tree | None = None) -> Sources:
    """Collect the sources. Raises ConfigError for a file that is missing or no TOML."""
    if file is None and os.environ.get(CONFIG_VARIABLE):
        file = Path(os.environ[CONFIG_VARIABLE])
    toml, lines = _read_toml(file) if file else ({}, {})
    environment = EnvSettingsSource(Settings)()
    return Sources(file, _long_routes(toml), lines, _long_routes(environment), flags or {})


def checked(sources: Sources) -> Settings:
    """Validate what was read. Raises ConfigError."""
    problems = _wrong_in_file(sources) + _unknown_variables(os.environ) + _half_routes(os.environ)
    try:
        settings = Settings(**sources.merged())
    except ValidationError as invalid:
        raise ConfigError(problems + [p for e in invalid.errors() if (p := _described(sources, e))]) from None
    for path, message in contradictions(settings):
        problems.append(f"{sources.blame(path)}: {_dotted(path)}: {message}")
    if problems:
        raise ConfigError(problems)
    return settings


def _read_toml(file: Path) -> tuple[Tree, dict[KeyPath, int]]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError([f"{file}: cannot read the configuration: {reason}"]) from None
    try:
        return tomllib.loads(text), toml_lines.key_lines(text)
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at line (\d+)", str(error))
        line = place[1] if place else str(text.count("\n") + 1)
        raise ConfigError([f"{file}:{line}: not valid TOML: {error}"]) from None


def _long_routes(tree: Tree) -> Tree:
    """Routes as tables, so that another persona from the environment leaves a route its announcement."""
    routes = tree.get("routes")
    if not isinstance(routes, dict):
        return tree
    tables = {called: {"persona": v} if isinstance(v, str) else v for called, v in routes.items()}
    return {**tree, "routes": tables}


def _overlaid(base: Tree, top: Tree) -> Tree:
    merged = dict(base)
    for key, value in top.items():
        both_tables = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _overlaid(merged[key], value) if both_tables else value
    return merged


def _given(tree: Any, path: KeyPath) -> bool:
    for part in path:
        if isinstance(tree, list):
            tree = dict(enumerate(tree))
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def _dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def _described(sources: Sources, error: ErrorDetails) -> str:
    path = error["loc"]
    if error["type"] == "extra_forbidden":
        if sources.origin(path).startswith("environment"):
            return ""  # _unknown_variables has said so, with the variable's whole name
        allowed = _allowed(str(path[-1]), _keys_at(path[:-1]))
        return f"{sources.blame(path)}: {_dotted(path)}: unknown key; {allowed}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("missing", "value_error") else _shown(error)
    return f"{sources.blame(path)}: {_dotted(path)}: {message[0].lower()}{message[1:]}{given}"


def _shown(error: ErrorDetails) -> str:
    """The offending value, unless it may be long or secret."""
    value = error["input"]
    secret = any("token" in str(part) or "credential" in str(part) for part in error["loc"])
    return f", not {value!r}" if isinstance(value, str | int | float | bool) and not secret else ""


def _allowed(key: str, names: list[str]) -> str:
    near = difflib.get_close_matches(key.lower(), names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


def _keys_at(path: KeyPath) -> list[str]:
    model = model_at(Settings, path)
    return list(model.model_fields) if model else []


def model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    """The model whose fields stand below a path; None where there is none."""
    for part in path:
        if isinstance(part, int) or part not in model.model_fields:
            continue
        inner = _inner_model(model.model_fields[part].annotation)
        if inner is None:
            return None
        model = inner
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `tuple[Model, ...]`, `dict[str, Model]` or `Model | None`."""
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_inner_model(argument) for argument in typing.get_args(annotation))
    return next((model for model in found if model), None)


def _wrong_in_file(sources: Sources) -> list[str]:
    """What a file may not say though the settings would take it: secrets, and true or false for a number.

    A secret in a file that is copied, committed and shown is a leak waiting.
    """
    problems = []
    for path, value in _leaves(sources.toml):
        parent = model_at(Settings, path[:-1])
        field = parent.model_fields.get(str(path[-1])) if parent else None
        types = (field.annotation, *typing.get_args(field.annotation)) if field else ()
        place = f"{sources.file}:{toml_lines.nearest_line(sources.lines, path)}: {_dotted(path)}"
        if SecretStr in types:
            whole = list(itertools.takewhile(lambda part: isinstance(part, str), path))  # lists come whole
            where = f"{path[-1]}_file or the environment ({variable(tuple(whole))})"
            problems.append(f"{place}: a secret does not belong in this file; use {where}")
        elif isinstance(value, bool) and bool not in types and (int in types or float in types):
            problems.append(f"{place}: must be a number, not {str(value).lower()}")
    return problems


def _leaves(tree: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value of a file with its path, those in arrays and inline tables too."""
    if not isinstance(tree, dict | list):
        yield path, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _leaves(value, (*path, key))


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = _variables(Settings, ENV_PREFIX)
    problems = []
    for name in sorted(environ):
        if not name.upper().startswith(ENV_PREFIX) or name.upper() == CONFIG_VARIABLE:
            continue
        if not any(re.fullmatch(pattern, name.upper()) for pattern in known):
            readable = [pattern.replace(r"\w+?", "NAME") for pattern in known]
            section = name.upper().removeprefix(ENV_PREFIX).split("_")[0]
            same = [n for n in readable if n.startswith(ENV_PREFIX + section + ENV_DELIMITER)]
            same = same or [variable((name, "…")) for name in Settings.model_fields]
            near = difflib.get_close_matches(name.upper(), readable, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            problems.append(f"environment {name}: no such setting; {hint}allowed: {', '.join(same)}")
    return problems


def _half_routes(environ: Mapping[str, str]) -> list[str]:
    """A route's name alone and its keys exclude each other: one of them would be lost without a word."""
    routes = [name for name in environ if name.upper().startswith(variable(("routes", "")))]
    keys = [name.upper() for name in routes]
    return [
        f"environment {name}: stands beside its own keys; say {name}{ENV_DELIMITER}PERSONA"
        for name in sorted(routes)
        if any(key.startswith(name.upper() + ENV_DELIMITER) for key in keys)
    ]


def _variables(model: type[BaseModel], prefix: str) -> list[str]:
    """Patterns of all environment variables below a model; a table with free names is a wildcard."""
    patterns = []
    for name, field in model.model_fields.items():
        inner = _inner_model(field.annotation)
        own = prefix + name.upper()
        if typing.get_origin(field.annotation) is dict:
            free = own + ENV_DELIMITER + r"\w+?"
            # A route may be its persona's name alone; a trunk is always a table.
            patterns += [free] if inner in (None, RouteSettings) else []
            patterns += _variables(inner, free + ENV_DELIMITER) if inner else []
        elif inner and isinstance(field.annotation, type):
            patterns += _variables(inner, own + ENV_DELIMITER)
        else:
            patterns.append(own)
    return patterns
