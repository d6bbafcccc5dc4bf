"""Writes golden models; see the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from safetensors.numpy import save_file

from tools.golden_models import FAMILIES, outputs, randomize, state
from tools.released_libraries import import_library


def write(folder: Path, families: list[str]) -> None:
    """Writes families, one folder each."""
    for family in families:
        library, build = FAMILIES[family]
        model = build(import_library(library))
        randomize(model.module, 1)
        place = folder / family
        place.mkdir(parents=True, exist_ok=True)
        for name, values in model.documents.items():
            (place / name).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")
        if model.ours:
            values = json.dumps(model.ours, indent=1, sort_keys=True)
            (place / "model.json").write_text(values + "\n")
        save_file(state(model), place / model.file, {"format": "pt"})
        save_file(outputs(model, 2), place / "expected.safetensors")
        if family == "open_clip_resnet":
            trained = outputs(model, 2, train=True)
            arrays = {k: v for k, v in trained.items() if not k.startswith("gradient")}
            save_file(arrays, place / "training.safetensors")


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2:] or list(FAMILIES))
