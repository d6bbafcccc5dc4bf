"""Writes docs/config.md, the reference of all config keys, from the schema and the towers.

python tools/build_config_docs.py
"""

from pathlib import Path

from clip_jax.config import reference
from clip_jax.models import reference as model_reference

PAGE = Path(__file__).parent.parent / "docs" / "config.md"


def page() -> str:
    """Returns the text of the page."""
    return f"{reference.page()}\n{model_reference.sections()}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
