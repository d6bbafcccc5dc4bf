"""The documentation: pages that are made from the code are up to date, and links lead somewhere."""

from __future__ import annotations

import dataclasses
import pkgutil
import re
import types
from pathlib import Path

import pytest

import runs
from clip_jax.config.schema import Evaluate
from clip_jax.evaluation.evaluators import EVALUATORS
from tools import build_architecture, build_cli_docs, build_config_docs

PAGES = sorted([*runs.ROOT.glob("*.md"), *(runs.ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE_FILE = re.compile(
    r"(?<![\w/.-])(?:benchmarks|clip_jax|configs|examples|launch|tests|tools)/[\w./-]*\w\.\w+"
)
DOTTED = re.compile(r"(?<![\w/.-])clip_jax(?:\.[A-Za-z_]\w*)+")
FENCE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_the_help_names_all_evaluators():
    flag, *_ = re.findall(r"^\| `--suite NAME.*$", build_cli_docs.PAGE.read_text(), re.MULTILINE)
    for text in (flag, str(dataclasses.fields(Evaluate))):
        assert [name for name in EVALUATORS.names if name not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(page):
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [*PAGES, runs.ROOT / "NOTICE"], ids=lambda path: path.name)
def test_files_of_the_code_that_are_named_exist(page):
    for name in CODE_FILE.findall(page.read_text()):
        is_placeholder = "NAME" in name or "KIND" in name
        assert is_placeholder or (runs.ROOT / name).exists(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_modules_and_functions_that_are_named_exist(page):
    for name in sorted(set(DOTTED.findall(page.read_text()))):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_examples_compile(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        compile(block, page.name, "exec")


def test_classes_of_the_user_in_the_docs_can_be_defined():
    page = (runs.ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    for block in blocks:
        if re.search(r"^class \w+", block, re.MULTILINE):
            exec(block, {"__name__": "__main__"})


def test_the_site_has_every_page():
    navigation = (runs.ROOT / "mkdocs.yml").read_text()
    for page in (runs.ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation, f"mkdocs.yml has no {page.name} in its nav"


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "[plans](docs/plan.md#the-json)", "[plans](plan.md#the-json)"),
        ("plan.md", "[how](../CONTRIBUTING.md)", "[how](contributing.md)"),
        ("plan.md", "[`run.sh`](../launch/local.sh)", "`run.sh`"),
        ("contributing.md", "![floors](docs/architecture.svg)", "![floors](architecture.svg)"),
        ("plan.md", "[JAX](https://docs.jax.dev)", "[JAX](https://docs.jax.dev)"),
        ("plan.md", "[no file](missing.md)", "[no file](missing.md)"),
    ],
)
def test_the_site_rewrites_links_that_github_understands(page, link, expected):
    pytest.importorskip("mkdocs")
    from tools import site_pages

    class Files:
        def get_file_from_path(self, path: str) -> bool:
            return path in ("plan.md", "contributing.md", "architecture.svg")

    source = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=page))
    assert site_pages.on_page_markdown(link, source, None, Files()) == expected


def test_the_command_line_reference_is_up_to_date():
    assert build_cli_docs.PAGE.read_text() == build_cli_docs.page(), (
        "run python tools/build_cli_docs.py"
    )


def test_the_config_reference_is_up_to_date():
    assert build_config_docs.PAGE.read_text(encoding="utf-8") == build_config_docs.page(), (
        "run python tools/build_config_docs.py"
    )


def test_the_architecture_picture_is_up_to_date():
    assert build_architecture.PICTURE.read_text() == build_architecture.draw(), (
        "run python tools/build_architecture.py"
    )


def test_arrows_that_follow_from_others_are_left_out():
    boxes = build_architecture.boxes_of_modules()
    arrows = build_architecture.arrows(boxes)
    for targets in arrows.values():
        for target in targets:
            others = targets - {target}
            assert not any(target in arrows[other] for other in others)
    top = max(arrows, key=lambda box: box.floor)
    assert arrows[top] and not any(arrows[box] for box in arrows if box.package == "errors")
