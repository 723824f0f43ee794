"""The house: imports run one way, always by the full name, and only the program prints."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("bundle", "cloud", "edge", "jobs", "quantize", "rendering", "router", "store", "wire", "wiring")
FOUNDATIONS = {"contracts", "errors", "files", "dataset", "config", "telemetry", "tracing", "dialogue", "schemas"}
MAY_IMPORT = {
    "contracts": {"errors", "dialogue"},
    "dialogue": {"errors"},
    "errors": set(),
    "files": {"errors"},
    "schemas": {"errors"},
    "dataset": FOUNDATIONS,
    "config": FOUNDATIONS,
    "telemetry": FOUNDATIONS,
    "tracing": {"errors"},
    "bundle": FOUNDATIONS,
    "store": FOUNDATIONS,
    "wire": FOUNDATIONS,
    "router": FOUNDATIONS,
    "edge": FOUNDATIONS | {"bundle"},
    "quantize": FOUNDATIONS | {"bundle", "edge", "router.signals", "router.betting", "router.ranking"},
    "cloud": FOUNDATIONS | {"edge", "wire"},
    "jobs": FOUNDATIONS | {"bundle", "edge", "router", "wire", "quantize", "cloud", "store"},
    "rendering": FOUNDATIONS | {"bundle", "jobs", "quantize", "router"},
    "wiring": FOUNDATIONS | set(ROOMS),
    "commands": FOUNDATIONS | set(ROOMS),
    "cli": {"commands", "errors"},
}
PROGRAM = {"cli", "commands"}
SOURCES = sorted([*ROOT.glob("*.py"), *(path for room in (*ROOMS, "commands") for path in (ROOT / room).rglob("*.py"))])


def owner_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_names(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    owner = owner_of(path)
    if owner == "__init__":
        return
    allowed = MAY_IMPORT[owner] | {owner}
    for name in imported_names(parsed(path)):
        top, _, inner = name.partition(".")
        assert top not in {*MAY_IMPORT, *ROOMS}, f"{path.name} imports {name} bare"
        if top != "edgewise":
            continue
        fits = any(inner == room or inner.startswith(f"{room}.") for room in allowed)
        assert fits or inner == "__version__", f"{owner} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_prints_prompts_or_exits(path):
    if owner_of(path) in PROGRAM:
        return
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"print", "input", "exit", "quit"}, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) != ("sys", "stdout"), f"line {node.lineno}"
    assert not any(name.partition(".")[0] == "typer" for name in imported_names(parsed(path)))


@pytest.mark.parametrize("room", ["rendering", "wiring"])
def test_what_a_room_imports_when_it_is_asked_for_is_there(room):
    room = import_module(f"edgewise.{room}")
    assert all(getattr(room, name).__module__.startswith(room.__name__) for name in room.__all__ if not name.isupper())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = room.nothing


def test_every_room_is_packaged():
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(["edgewise", *path.parent.relative_to(ROOT).parts]) for path in SOURCES if path.name == "__init__.py"
    }
    assert listed == found
