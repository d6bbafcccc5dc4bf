"""Registries: short names, users' dotted paths, and one clear line for what is wrong."""

import sys

import pytest

from clip_jax.errors import UserError
from clip_jax.registry import Registry

REGISTRY: Registry[type] = Registry(
    "shape", {"path": "pathlib:Path", "error": "clip_jax.errors:UserError"}
)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """Writes a module of the user and puts it on the path."""

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    monkeypatch.syspath_prepend(tmp_path)
    return write


def test_a_short_name_is_imported_when_it_is_asked_for():
    assert REGISTRY.get("error") is UserError
    assert REGISTRY.names == ("path", "error")
    assert "path" in REGISTRY and "circle" not in REGISTRY


def test_a_dotted_path_names_a_class_of_the_user(user_module):
    user_module("shapes_of_mine", "class Outer:\n  class Circle: pass\n")
    assert REGISTRY.get("shapes_of_mine:Outer.Circle").__name__ == "Circle"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pth", "config.shape=pth: no shape has this name; did you mean path?"),
        ("circle", "there are path, error, and your own as my_package"),
        ("not there:X", "must be a dotted path"),
        ("a.b:", "must be a dotted path"),
        ("no_such_package.x:Y", "cannot import no_such_package; install it"),
        ("pathlib:NoSuch", "pathlib has no NoSuch"),
        ("fails:X", "importing fails fails: ValueError: on line one"),
        ("needs:X", "cannot import no_such_dependency"),
    ],
)
def test_a_wrong_name_is_a_one_line_error(user_module, name, message):
    user_module("fails", "raise ValueError('on\\nline one')")
    user_module("needs", "import no_such_dependency")
    with pytest.raises(UserError) as caught:
        REGISTRY.get(name, "config.shape")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_in_a_file_from_somebody_else_imports_nothing(user_module):
    user_module("hostile", "import pathlib; pathlib.Path('/nonexistent/x').write_text('')")
    with pytest.raises(UserError, match="if you trust it, import hostile first"):
        REGISTRY.get("hostile:X", "config.shape", trusted=False)
    assert "hostile" not in sys.modules
    assert REGISTRY.get("clip_jax.errors:UserError", trusted=False) is UserError
    with pytest.raises(UserError, match="must name a class; system of os is none"):
        REGISTRY.get("os:system", "config.shape", trusted=False)
