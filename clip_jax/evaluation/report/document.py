"""Access to the content of report.json, where any key may be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def part(values: Any, *keys: str) -> Any:
    """Returns the value under nested keys; {} if a key is missing."""
    for key in keys:
        values = values.get(key) if isinstance(values, Mapping) else None
    return {} if values is None else values


def pruned(values: Any) -> Any:
    """Returns a copy of the values without None, except in lists of numbers and texts."""
    if isinstance(values, Mapping):
        return {k: pruned(v) for k, v in values.items() if v is not None}
    if isinstance(values, (list, tuple)):
        flat = any(v is not None and not isinstance(v, (Mapping, list, tuple)) for v in values)
        return [pruned(v) for v in values if flat or v is not None]
    return values


def datasets_with(results: Mapping[str, Any], key: str) -> list[tuple[str, Any, Any]]:
    """Returns the datasets that have a result under `key`.

    Returns:
      The title of each dataset, all values of the dataset, and the result.
    """
    sets = part(results, "sets")
    return [
        (str(dataset.get("title") or name), dataset, dataset[key])
        for name, dataset in sets.items()
        if isinstance(dataset, Mapping) and dataset.get(key)
    ]
