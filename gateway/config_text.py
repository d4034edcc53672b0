"""The configuration as TOML text for people: what is in force, where each value came from, no secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from gateway.config import Settings
from gateway.config_phone import RouteSettings
from gateway.config_sources import KeyPath, Sources

MASK = "********"


def shown(settings: Settings, sources: Sources) -> str:
    """Every setting in force as TOML, each with its origin as a comment; unset ones are commented out."""
    lines: list[str] = []
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            lines += _table((name,), value, sources)
        elif name == "routes":
            lines += ["", "[routes]"] if value else []
            lines += [f"{_key(k)} = {_route(v)}  # {sources.origin((name, k))}" for k, v in value.items()]
        else:
            for key, table in value.items():
                lines += _table((name, key), table, sources)
    return "\n".join(lines).strip() + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML writes it; secrets masked. JSON's strings and numbers are TOML's too."""
    if isinstance(value, SecretStr):
        return json.dumps(MASK)
    if isinstance(value, BaseModel):
        given = ((name, getattr(value, name)) for name in type(value).model_fields)
        return "{ " + ", ".join(f"{name} = {toml_value(v)}" for name, v in given if v is not None) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Path):
        return json.dumps(str(value), ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)


def _route(route: RouteSettings) -> str:
    """On one line: the persona alone where nothing else was said."""
    return toml_value(route.persona if route.announcement is None else route)


def _table(path: KeyPath, table: BaseModel, sources: Sources) -> list[str]:
    lines = ["", "[" + ".".join(_key(str(part)) for part in path) + "]"]
    for name in type(table).model_fields:
        value = getattr(table, name)
        if value is None:
            lines.append(f"# {name} is not set")
        else:
            lines.append(f"{name} = {toml_value(value)}  # {sources.origin((*path, name))}")
    return lines


def _key(name: str) -> str:
    bare = name.replace("-", "a").replace("_", "a").isalnum() and name.isascii()
    return name if bare else json.dumps(name, ensure_ascii=False)
