"""Writes docs/config.md, the reference of all config keys, from the schema.

python tools/build_config_docs.py
"""

from pathlib import Path

from clip_jax.config.reference import page

if __name__ == "__main__":
    (Path(__file__).parent.parent / "docs" / "config.md").write_text(page(), encoding="utf-8")
