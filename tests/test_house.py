"""The walls of the house: import direction, file and function length, and no shadowed names."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for room in ("engine", "sip", "gateway") for p in (ROOT / room).rglob("*.py"))
MAY_IMPORT = {"engine": {"engine"}, "sip": {"sip"}, "gateway": {"gateway", "engine", "sip"}}
FILE_WALL = 400
FUNCTION_WALL = 60
ONLY_IN = {"torch": ("engine/",), "aiortc": ("gateway/legs/",), "pipecat": ("gateway/",)}


def imported_names(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_file_keeps_the_walls(path: Path) -> None:
    relative = path.relative_to(ROOT).as_posix()
    text = path.read_text()
    tree = ast.parse(text)
    room = relative.split("/")[0]
    names = imported_names(tree)
    strange = (names & {"engine", "sip", "gateway"}) - MAY_IMPORT[room]
    assert not strange, f"{relative} imports {strange}"
    for package, rooms in ONLY_IN.items():
        assert package not in names or relative.startswith(rooms), f"{package} is imported in {relative}"
    assert not too_long(relative, text, tree)


def too_long(relative: str, text: str, tree: ast.AST) -> list[str]:
    """A line for the file and for each function that does not keep its wall."""
    found = []
    if text.count("\n") > FILE_WALL:
        found.append(f"{relative} is longer than {FILE_WALL} lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_WALL:
                found.append(f"{relative}:{node.lineno} {node.name} is {length} lines")
    return found


def test_tests_keep_the_walls_of_length_too() -> None:
    texts = {path.name: path.read_text() for path in sorted((ROOT / "tests").glob("*.py"))}
    found = [
        line for name, text in texts.items() for line in too_long(f"tests/{name}", text, ast.parse(text))
    ]
    assert len(texts) > 100 and not found


def test_no_other_install_shadows_our_names() -> None:
    for name in ("engine", "sip", "gateway"):
        origin = importlib.import_module(name).__file__
        assert origin is not None and Path(origin).resolve().is_relative_to(ROOT), (
            f"{name} comes from {origin}"
        )
