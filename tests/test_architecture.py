"""The house rules, kept by a machine: imports point down, the world stays on the top floor, names say what they hold."""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("schemas", "features", "models", "streams")
DOORS = {"features/online.py", "features/wire.py", "models/registry.py"}
WORLDLY = {
    "asyncio", "datetime.now", "http", "os", "random", "requests", "secrets", "socket", "subprocess", "sys", "tempfile", "threading", "time",
    "urllib", "redis", "confluent_kafka", "aiokafka", "faust", "pathlib", "shutil", "glob", "uuid.uuid4", "uuid.uuid1",
}  # fmt: skip
WORLDLY_CALLS = {"open", "print", "input", "exec", "eval", "__import__"}
UNNAMED = {"utils", "util", "helpers", "helper", "common", "core", "base", "manager", "service", "services", "misc"}
TOP_LEVEL = {"streams", "models", "features", "schemas", "deploy", "notebooks", "tests", "pyproject.toml", "README.md"}


def sources(*floors: str) -> list[Path]:
    """The Python files of these floors."""
    return [path for floor in floors for path in sorted((ROOT / floor).rglob("*.py"))]


@functools.cache
def parsed(path: Path) -> ast.Module:
    """The file's syntax tree."""
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    """The file's path within the house."""
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module, and module.name, that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sources(*FLOORS), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    floor = FLOORS.index(path.relative_to(ROOT).parts[0])
    for module in imports(parsed(path)):
        top = module.split(".")[0]
        if top in FLOORS:
            assert FLOORS.index(top) <= floor, f"{name_of(path)} imports {module}: schemas <- features <- models <- streams, never up"
        assert top != "tests", f"{name_of(path)} imports {module}: the house does not know its tests"


@pytest.mark.parametrize("path", [p for p in sources("schemas", "features", "models") if name_of(p) not in DOORS], ids=name_of)
def test_the_world_stays_on_the_top_floor(path: Path) -> None:
    tree = parsed(path)
    rule = "below streams/ (the doors apart) nobody reads a clock, the environment, a socket, chance or a file, and nobody prints"
    for module in imports(tree):
        reached = {module, module.split(".")[0]}
        assert not reached & WORLDLY, f"{name_of(path)} imports {module}: {rule}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in WORLDLY_CALLS, f"{name_of(path)}:{node.lineno} calls {node.func.id}(): {rule}"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("now", "utcnow", "today", "environ", "urandom"), f"{name_of(path)}:{node.lineno} .{node.attr}: {rule}"


@pytest.mark.parametrize("path", sources(*FLOORS), ids=name_of)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), f"{name_of(path)} has no docstring"


@pytest.mark.parametrize("path", sources(*FLOORS), ids=name_of)
def test_public_functions_have_docstrings(path: Path) -> None:
    tree = parsed(path)
    scopes = [tree, *[n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]]
    for scope in scopes:
        protocol = isinstance(scope, ast.ClassDef) and any(isinstance(b, ast.Name) and b.id == "Protocol" for b in scope.bases)
        for node in scope.body:
            public = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_")
            if public and not protocol:
                assert ast.get_docstring(node), f"{name_of(path)}:{node.lineno} {node.name} has no docstring"  # type: ignore[arg-type,attr-defined]


@pytest.mark.parametrize("path", sources(*FLOORS), ids=name_of)
def test_names_say_what_a_file_holds(path: Path) -> None:
    assert path.stem not in UNNAMED, f"{name_of(path)}: name it after what it is"


@pytest.mark.parametrize("path", sources(*FLOORS), ids=name_of)
def test_no_pickle_and_no_swallowed_errors(path: Path) -> None:
    tree = parsed(path)
    for module in imports(tree):
        assert module.split(".")[0] not in ("pickle", "joblib", "dill", "shelve", "marshal"), f"{name_of(path)} imports {module}: it executes code"
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            bare = node.type is None or (isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException"))
            silent = all(isinstance(s, ast.Pass) for s in node.body)
            assert not (bare and silent), f"{name_of(path)}:{node.lineno} swallows every error"


COMPILERS = {"compiled", "inlined", "released", "native", "njit"}
"""Decorators by which a function is compiled, and kept on disk."""


def is_compiled(tree: ast.Module) -> bool:
    """Whether a file has compiled functions."""
    marks = (
        mark.func if isinstance(mark, ast.Call) else mark for node in tree.body if isinstance(node, ast.FunctionDef) for mark in node.decorator_list
    )
    return any((mark.id if isinstance(mark, ast.Name) else mark.attr if isinstance(mark, ast.Attribute) else "") in COMPILERS for mark in marks)


def built_on(tree: ast.Module) -> dict[str, str]:
    """The compiled files of which a file takes functions or constants, and what they are now."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in FLOORS:
            path = ROOT / f"{node.module.replace('.', '/')}.py"
            if path.exists() and is_compiled(parsed(path)) and any(alias.name.islower() or alias.name.isupper() for alias in node.names):
                found[name_of(path)] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return found


@pytest.mark.parametrize("path", [path for path in sources(*FLOORS) if is_compiled(parsed(path)) and built_on(parsed(path))], ids=name_of)
def test_what_is_compiled_of_other_files_is_compiled_anew_when_they_change(path: Path) -> None:
    said = [node.value for node in parsed(path).body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BUILT_ON"]
    now = built_on(parsed(path))
    assert [ast.literal_eval(each) for each in said] == [now], (
        f"numba keeps compiled code until its own file changes: write into {name_of(path)}\nBUILT_ON = {now}"
    )


ALSO_WORDS = {
    "models/audit.py": {"decisions"},  # a count of its report
    "streams/mapping.py": {"accounts"},  # a table of the mapping file
    "streams/simulate.py": {"accounts"},  # a figure of its JSON
    "streams/rebuild.py": {"decisions"},  # a figure of its JSON
    "streams/authorize/openapi.py": {"decisions"},  # a field of a page
}
"""Words that happen to be topics' names, and mean something else there."""


def names_of_apps(tree: ast.AST) -> Iterator[ast.AST]:
    """Where apps are named: what is given as `name=`, and in `NAMES = (...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "name":
            yield node.value
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
        if isinstance(target, ast.Name) and target.id.isupper() and isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            yield from ast.walk(node.value)


@pytest.mark.parametrize("path", [p for p in sources(*FLOORS) if name_of(p) != "schemas/topics.py"], ids=name_of)
def test_topics_are_named_in_one_table(path: Path) -> None:
    from schemas.topics import TOPICS
    from streams.stack import APPS

    names = {topic.name for topic in TOPICS} - ALSO_WORDS.get(name_of(path), set())
    tree = parsed(path)
    apps = {id(node) for node in names_of_apps(tree) if isinstance(node, ast.Constant) and node.value in APPS}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in apps:
            assert node.value not in names, f"{name_of(path)}:{node.lineno} has the topic {node.value!r} in quotes: use schemas.topics"


def test_the_tables_of_apps_and_of_topics_say_the_same() -> None:
    import importlib

    from schemas.topics import DEAD_LETTERS, TOPICS
    from streams.run import APPS as RUN
    from streams.stack import APPS

    assert tuple(RUN) == APPS
    for name in APPS:
        app = getattr(importlib.import_module(f"streams.{name}"), "APP", None)
        if app is None:
            assert name == "authorize", f"streams/{name}.py has no APP"
            continue
        assert app.name == name
        assert set(app.reads) == {topic for topic in TOPICS if name in topic.readers}, f"{name} reads other topics than schemas/topics.py says"
        assert set(app.writes) - {DEAD_LETTERS} == {topic for topic in TOPICS if name in topic.writers}, f"{name} writes other topics than it says"


def test_the_top_level_holds_only_what_the_plan_lists() -> None:
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    extra = {name.split("/")[0] for name in listed if not name.startswith(".")} - TOP_LEVEL
    assert not extra, f"not in the plan: {sorted(extra)}"


def settings_read(path: Path) -> set[str]:
    """The settings that a file uses: `settings.<name>`, however the settings were reached; not where one is set."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr if isinstance(node.value, ast.Attribute) else ""
            if owner.lstrip("_") == "settings":
                found.add(node.attr)
    return found


def test_every_setting_is_used_somewhere() -> None:
    from streams.settings import Settings

    used = set[str]().union(*(settings_read(path) for path in sources(*FLOORS)))
    assert [name for name in Settings.__struct_fields__ if name not in used] == []


@pytest.mark.parametrize("path", sources("streams"), ids=name_of)
def test_who_gives_redis_a_password_gives_it_the_user(path: Path) -> None:
    used = settings_read(path)
    assert ("redis_password" in used) == ("redis_username" in used), f"{name_of(path)} reads one of redis_username and redis_password"
