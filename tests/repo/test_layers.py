"""The rooms of the package: imports run one way, and nothing reaches around the order."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2] / "python" / "fec_fast"

# Room -> the rooms it may import from. docs/architecture.md draws the same.
ALLOWED: dict[str, set[str]] = {
    "utils": set(),
    "scoring": {"utils"},
    "graph": {"utils"},
    "plan": {"utils"},
    "vision": {"utils"},
    "recovery": {"graph", "plan", "utils"},
    "training": {"plan", "utils"},
    "deployment": {"recovery", "utils"},
    "report": {"scoring", "graph", "plan", "utils"},
    "pruning": {"scoring", "graph", "plan", "recovery", "report", "utils"},
    "choosing": {"pruning", "recovery", "training", "scoring", "graph", "plan", "utils"},
    "integrations": {"pruning", "report", "recovery", "training", "vision", "scoring", "graph", "plan", "utils"},
    "cli": {
        *("integrations", "choosing", "pruning", "report", "recovery", "training", "deployment", "vision"),
        *("scoring", "graph", "plan", "utils"),
    },
}
PRIVATE = re.compile("_(?!_)")
FACE = ""  # __init__ and __main__: they import anything, and nothing inside imports them


class Import(NamedTuple):
    """One name that a module imports from the package."""

    importer: str  # dotted, below fec_fast
    module: str  # the module it comes from, dotted, below fec_fast
    name: str


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below fec_fast; a folder's ``__init__`` bears the folder's."""
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def room(module: str) -> str:
    return FACE if module == "__main__" else module.split(".")[0]


def imports() -> Iterator[Import]:
    known = modules() | {"scoring.backends._native": PACKAGE}
    for importer, path in modules().items():
        package = importer.split(".") if path.name == "__init__.py" and importer else importer.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "fec_fast":
                        yield Import(importer, alias.name.removeprefix("fec_fast").lstrip("."), "")
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    base = package[: len(package) - node.level + 1]
                elif (node.module or "").split(".")[0] == "fec_fast":
                    base = []
                else:
                    continue
                target = (node.module or "").removeprefix("fec_fast") if not node.level else node.module or ""
                base = base + [part for part in target.split(".") if part]
                for alias in node.names:
                    inner = ".".join([*base, alias.name])
                    yield Import(importer, inner if inner in known else ".".join(base), alias.name)


def test_every_room_is_in_the_table() -> None:
    assert {room(module) for module in modules()} - {FACE} == set(ALLOWED)


def test_imports_run_one_way() -> None:
    wrong = {
        f"{one.importer} -> {one.module}"
        for one in imports()
        if room(one.importer) != FACE and room(one.module) not in ALLOWED[room(one.importer)] | {room(one.importer)}
    }
    assert not wrong


def test_nothing_inside_imports_the_face() -> None:
    assert not {f"{one.importer}: {one.name}" for one in imports() if one.module == FACE and room(one.importer) != FACE}


def test_there_is_no_cycle_between_modules() -> None:
    targets: dict[str, set[str]] = {}
    for one in imports():
        targets.setdefault(one.importer, set()).add(one.module)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(targets.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(targets):
        visit(module, ())


def test_private_names_are_used_in_their_room_alone() -> None:
    wrong = {
        f"{one.importer}: {one.module}.{one.name}"
        for one in imports()
        if one.name.startswith("_") and room(one.importer) != room(one.module)
    }
    assert not wrong


def test_private_interfaces_of_other_libraries_stay_in_compat() -> None:
    """Underscore modules, names and attributes of torch, accelerate and the like: utils/compat.py alone has them."""
    wrong = set()
    for module, path in modules().items():
        if module == "utils.compat":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module != "__future__":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                # aten: an operator's public name may begin with an underscore, and is read as an attribute.
                names = [] if owner in ("self", "cls", "aten") else [node.attr]
            private = [name for name in names if any(PRIVATE.match(part) for part in name.split("."))]
            wrong |= {f"{module}: {name}" for name in private}
    assert not wrong


def test_warnings_name_the_users_line() -> None:
    """Only ``warn_user`` finds it; a number of frames is wrong as soon as another function calls."""
    calls = re.compile(r"\bwarnings\.warn(_explicit)?\(|\bimport warn\b|\bstacklevel=")
    giving = {module for module, path in modules().items() if calls.search(path.read_text(encoding="utf-8"))}
    assert giving == {"utils.user_warnings"}


def test_no_public_function_shadows_a_module_beside_it() -> None:
    wrong = set()
    for module, path in modules().items():
        beside = {other.stem for other in path.parent.glob("*.py")} | {
            folder.name for folder in path.parent.iterdir() if (folder / "__init__.py").is_file()
        }
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"}
        if path.name == "__init__.py":
            public |= {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
        wrong |= {f"{module}: {name}" for name in public & beside}
    assert not wrong


def test_rooms_have_no_face_of_their_own() -> None:
    """A name has one address: the ``__init__`` of a room holds its description alone."""
    for module, path in modules().items():
        if path.name == "__init__.py" and module != FACE:
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1 and isinstance(body[0], ast.Expr), module


def reached(starts: set[str]) -> set[str]:
    """The modules that a set of modules imports, directly or not."""
    targets: dict[str, set[str]] = {}
    for one in imports():
        targets.setdefault(one.importer, set()).add(one.module)
    seen: set[str] = set()
    waiting = sorted(starts)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += targets.get(module, ())
    return seen


def test_only_scoring_and_pruning_reach_the_compiled_extension() -> None:
    rooms = {"utils", "graph", "plan", "recovery", "training", "vision"}
    assert "scoring.backends._native" not in reached({module for module in modules() if room(module) in rooms})
    assert "scoring.backends._native" in reached({"pruning.pruner"})


def test_pruning_does_not_reach_the_training_engine() -> None:
    assert not {module for module in reached({"pruning.pruner", "pruning.iterative"}) if room(module) == "training"}


def test_files_are_readable_in_one_sitting() -> None:
    long = {name: lines for name, path in modules().items() if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


def test_the_drawing_shows_the_imports() -> None:
    """docs/architecture.md leaves out the arrows to utils and those from the command line; it says so."""
    text = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", text, re.MULTILINE))
    real = {(room(one.importer), room(one.module)) for one in imports()}
    assert drawn == {
        (importer, target)
        for importer, target in real
        if importer not in (FACE, "cli", target) and target not in (FACE, "utils")
    }
    assert set(re.findall(r"^ +(\w+)\[", text, re.MULTILINE)) == set(ALLOWED)


def test_the_architecture_page_names_every_module() -> None:
    text = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE))
    for module, path in modules().items():
        if path.name != "__init__.py" and room(module) != FACE:
            name = "/".join(module.split(".")[1:])
            assert f"`{name}`" in rows[room(module)], module


def test_what_a_models_eval_and_train_return_is_not_used() -> None:
    """In the code of many detectors it is nothing; ``in_evaluation`` returns the model. Models of the demo are ours."""
    found = []
    for module, path in modules().items():
        tree = ast.parse(path.read_text())
        statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and id(node) not in statements:
                of_super = ast.unparse(node.func.value) == "super()"
                if node.func.attr in ("eval", "train") and not of_super and module != "cli.demo":
                    found.append(f"{module}: {ast.unparse(node)}")
    assert not found
