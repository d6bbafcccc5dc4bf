"""The architecture: who may import whom. Imports only go down, and never in a circle.

Imports inside functions count as well: a floor that reaches up later depends on it all the same.
"""

import ast
import json
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clip_jax"

# What of training stands on evaluation, which a run does as it trains.
TRAINING = (
    *("training.loop", "training.announcements", "training.trainer"),
    *("training.run_identity", "training.run", "training.feature_cache"),
    "training.class_labels",
)
# From the ground up; a module belongs to the longest name that is its own or its package's.
FLOORS = (
    ("errors", "registry", "version", "io", "config"),
    ("distributed",),
    ("models", "tokenizers"),
    ("losses", "optim", "data"),
    ("config.checks", "weights"),
    ("training",),
    ("inference",),
    ("evaluation",),
    (*TRAINING, "evaluation.evaluate", "evaluation.mixtures", "plan", "curation"),
    ("", "cli", "main", "__main__"),
)


def name_of(path: Path) -> str:
    """A module's dotted name below the package; the package's own is empty."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def floor_of(module: str) -> int:
    """The number of a module's floor, counted from the ground."""
    places = [(name, number) for number, names in enumerate(FLOORS) for name in names]
    fits = [p for p in places if module == p[0] or (p[0] and module.startswith(p[0] + "."))]
    assert fits, f"clip_jax.{module} stands on no floor: add it to FLOORS"
    return max(fits, key=lambda place: len(place[0]))[1]


def only_for_types(node: ast.AST) -> bool:
    """Whether it is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def statements(node: ast.AST):
    """All that can run, in functions too."""
    for child in ast.iter_child_nodes(node):
        if not only_for_types(child):
            yield child
            yield from statements(child)


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of the package that a module imports, at once or later."""
    names = []
    for node in statements(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"clip_jax.{module} imports relative to itself"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    modules = set()
    for name in names:
        package, _, inner = name.partition(".")
        if package == "clip_jax":
            # what is no module is defined in one
            modules.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return frozenset(modules - {module})


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module: str) -> None:
    upward = [name for name in imports(module) if floor_of(name) > floor_of(module)]
    assert not upward, f"clip_jax.{module} imports what stands above it"


def test_no_imports_go_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for name in sorted(imports(module)):
                visit(name, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_an_import_in_a_function_counts_and_one_for_types_does_not() -> None:
    tree = ast.parse(
        "if TYPE_CHECKING:\n    import a\ndef f():\n    import b\n    if x:\n        import c\n"
    )
    names = [alias.name for n in statements(tree) if isinstance(n, ast.Import) for alias in n.names]
    assert names == ["b", "c"]


@cache
def strings_of(path: str) -> list[tokenize.TokenInfo]:
    """The string literals of a file."""
    with open(path, "rb") as file:
        return [t for t in tokenize.tokenize(file.readline) if t.type == tokenize.STRING]


def test_every_name_is_defined() -> None:
    """Ruff's F821 is off elsewhere: names of jaxtyping's dimensions, in strings, are no names."""
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821"]
    command += ["--output-format=json", str(PACKAGE)]
    done = subprocess.run(command, capture_output=True, text=True)
    undefined = []
    for finding in json.loads(done.stdout):
        path, row, column = (
            finding["filename"],
            finding["location"]["row"],
            finding["location"]["column"],
        )
        if not any(t.start <= (row, column - 1) < t.end for t in strings_of(path)):
            undefined.append(f"{path}:{row}: {finding['message']}")
    assert not undefined
