"""The shape of the source: imports point one way, and what house style forbids is not there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "src" / "enginerouter"
PACKAGE = "enginerouter"

# Each part may import itself and what its row names. Rows point down only, so there are no cycles between parts.
FOUNDATION = {"addresses", "command", "errors", "slots", "tasks", "metrics", "state", "version"}
MAY_IMPORT: dict[str, set[str]] = {
    "addresses": set(),
    "command": {"errors"},
    "errors": set(),
    "slots": set(),
    "version": set(),
    "tasks": set(),
    "metrics": set(),
    "state": {"tasks"},
    "dialects": {"errors"},
    "config": {"errors"},
    "engines": FOUNDATION | {"config"},
    "swap": FOUNDATION | {"engines"},
    "proxy": {"addresses", "dialects", "errors", "tasks"},
    "routing": {"errors", "slots", "config"},
    "cache": {"tasks"},
    "demo": set(),
    "service": {"errors"},
    "setup": FOUNDATION | {"config", "engines"},
    "web": FOUNDATION | {"cache", "dialects", "config", "engines", "swap", "proxy", "routing", "service"},
    "cli": FOUNDATION | {"config", "engines", "service", "setup", "swap", "web", "demo"},
    "__main__": {"cli"},
}
# Of the engines, the swap knows what they promise and no more.
ENGINE_SEAM = "enginerouter.engines.base"
# The demo engine is a program of its own, that no other part imports and that imports none.
PROGRAM = "demo"
BROAD_EXCEPT = {
    "cache/redis_store.py",
    "web/edge.py",
    "swap/swaps.py",
    "swap/lookout.py",
    "swap/starting.py",
    "swap/walk.py",
}


@cache
def sources() -> dict[str, list[ast.AST]]:
    """Every node of each file; the first is the module. Parsed and walked once, when the first rule looks."""
    return {
        path.relative_to(ROOT).as_posix(): list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        for path in sorted(ROOT.rglob("*.py"))
    }


def sources_of(*parts: str) -> Iterator[tuple[str, list[ast.AST]]]:
    return ((file, nodes) for file, nodes in sources().items() if part_of(file) in parts)


def sources_but(*left_out: str) -> Iterator[tuple[str, list[ast.AST]]]:
    return ((file, nodes) for file, nodes in sources().items() if not {file, part_of(file)} & {*left_out})


def part_of(file: str) -> str:
    """The part a file belongs to; `__init__.py` at the top holds the version."""
    first = file.split("/")[0].removesuffix(".py")
    return "version" if first == "__init__" else first


def imports(nodes: list[ast.AST]) -> Iterator[tuple[str, int]]:
    """(module, line) of every import, those in functions and under TYPE_CHECKING too."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import on line {node.lineno}"
            module = node.module or ""
            yield module, node.lineno
            # `from enginerouter.config import model` imports a module, too.
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names if is_module(module, alias))


def is_module(package: str, alias: ast.alias) -> bool:
    return (ROOT.parent / package.replace(".", "/") / f"{alias.name}.py").exists()


def ours(nodes: list[ast.AST]) -> Iterator[tuple[str, int]]:
    return ((name, line) for name, line in imports(nodes) if name.split(".")[0] == PACKAGE)


def imported_part(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "version"


def test_imports_point_one_way() -> None:
    wrong = [
        f"{file}:{line} imports {name}"
        for file, nodes in sources().items()
        for name, line in ours(nodes)
        if imported_part(name) not in MAY_IMPORT[part_of(file)] | {part_of(file)}
    ]
    assert not wrong, wrong


def test_the_rows_themselves_have_no_cycle() -> None:
    done: set[str] = set()
    while ready := [p for p, needs in MAY_IMPORT.items() if p not in done and needs <= done]:
        done.update(ready)
    assert done == set(MAY_IMPORT)


def test_no_two_modules_import_each_other() -> None:
    needs = {module_name(file): set[str]() for file in sources()}
    for file, nodes in sources().items():
        needs[module_name(file)] = {n for n, _ in runtime_imports(nodes) if n in needs} - {module_name(file), PACKAGE}
    done: set[str] = set()
    while ready := [m for m, of in needs.items() if m not in done and of <= done]:
        done.update(ready)
    assert done == set(needs), f"in a circle: {sorted(set(needs) - done)}"


def module_name(file: str) -> str:
    return ".".join([PACKAGE, *file.removesuffix(".py").split("/")]).removesuffix(".__init__")


def runtime_imports(nodes: list[ast.AST]) -> Iterator[tuple[str, int]]:
    """Without those for the type checker only."""
    for_types = {
        inner
        for node in nodes
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    return imports([node for node in nodes if node not in for_types])


def test_decisions_and_formats_know_no_aiohttp() -> None:
    wrong = [
        f"{file}:{line}"
        for file, nodes in sources_of("swap", "dialects", "cache", "config", "routing")
        for name, line in imports(nodes)
        if name.split(".")[0] == "aiohttp"
    ]
    assert not wrong, wrong


def test_the_swap_knows_of_engines_what_they_promise() -> None:
    wrong = [
        f"{file}:{line} imports {name}"
        for file, nodes in sources_of("swap")
        for name, line in ours(nodes)
        if imported_part(name) == "engines" and name != ENGINE_SEAM
    ]
    assert not wrong, wrong


def dotted(node: ast.expr) -> str:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def calls(nodes: list[ast.AST]) -> Iterator[tuple[str, int]]:
    """(what, line) of every call."""
    return ((dotted(node.func), node.lineno) for node in nodes if isinstance(node, ast.Call))


BLOCKING = {"time.sleep", "subprocess.run", "subprocess.call", "subprocess.check_output", "subprocess.check_call",
            "os.system", "os.popen", "socket.create_connection"}  # fmt: skip


def test_nothing_blocks() -> None:
    found = [
        f"{file}:{line} {name}"
        for file, nodes in sources_but(PROGRAM)
        for name, line in calls(nodes)
        if name in BLOCKING
    ]
    assert not found, found


def test_tasks_are_made_in_one_place() -> None:
    """The loop holds tasks weakly, and a failure nobody awaits is silent."""
    found = [
        f"{file}:{line} {name}"
        for file, nodes in sources_but("tasks.py", PROGRAM)
        for name, line in calls(nodes)
        if name.split(".")[-1] in ("create_task", "ensure_future", "shield")
    ]
    assert not found, found


def handlers(nodes: list[ast.AST]) -> Iterator[ast.ExceptHandler]:
    return (node for node in nodes if isinstance(node, ast.ExceptHandler))


def test_every_exception_is_caught_only_at_the_edges() -> None:
    found = [
        f"{file}:{handler.lineno}"
        for file, nodes in sources_but(*BROAD_EXCEPT, "cli", PROGRAM)
        for handler in handlers(nodes)
        if handler.type is None or dotted(handler.type) == "Exception"
    ]
    assert not found, found


def test_what_catches_a_cancellation_raises_it_again() -> None:
    """CancelledError is never swallowed."""
    found = [
        f"{file}:{handler.lineno}"
        for file, nodes in sources().items()
        for handler in handlers(nodes)
        if {dotted(t).split(".")[-1] for t in types_of(handler)} & {"CancelledError", "BaseException"}
        and not any(isinstance(inner, ast.Raise) for inner in ast.walk(handler))
    ]
    assert not found, found


def types_of(handler: ast.ExceptHandler) -> list[ast.expr]:
    if isinstance(handler.type, ast.Tuple):
        return handler.type.elts
    return [handler.type] if handler.type is not None else []


MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKERS = {"list", "dict", "set", "deque", "defaultdict", "OrderedDict", "Counter", "bytearray", "Lock", "Event"}


def test_there_is_no_state_at_module_level() -> None:
    """Tables in capitals are read only; nothing here changes them."""
    found = [f"{file}:{line} {what}" for file, nodes in sources().items() for line, what in state_of(nodes)]
    assert not found, found


def state_of(nodes: list[ast.AST]) -> Iterator[tuple[int, str]]:
    tables: set[str] = set()
    module = nodes[0]
    assert isinstance(module, ast.Module)
    for node in module.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = {t.id for t in targets if isinstance(t, ast.Name)} - {"__all__"}
        value = node.value
        is_made = isinstance(value, ast.Call) and dotted(value.func).split(".")[-1] in MAKERS
        if isinstance(value, MUTABLE) or is_made:
            yield from ((node.lineno, f"a mutable {name}") for name in names if not name.lstrip("_").isupper())
            tables |= names
    for node in nodes:
        if isinstance(node, ast.Global) or changes_one_of(node, tables):
            yield getattr(node, "lineno", 0), "changes what all share"


CHANGERS = {"append", "add", "update", "pop", "popitem", "clear", "remove", "discard", "extend", "insert", "setdefault"}


def changes_one_of(node: ast.AST, tables: set[str]) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGERS:
        return isinstance(node.func.value, ast.Name) and node.func.value.id in tables
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        return isinstance(node.value, ast.Name) and node.value.id in tables
    return False
