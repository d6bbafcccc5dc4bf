"""Reading the folder that a curation wrote, chunk by chunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from clip_jax.curation import facts as facts_lib
from clip_jax.curation import storage
from clip_jax.curation.engine import outcome, results
from clip_jax.curation.pool import Chunk, Pool
from clip_jax.curation.rules import KEPT, Reasons
from clip_jax.data.selection import MANIFEST, Selection
from clip_jax.data.sources import SourceOptions
from clip_jax.errors import UserError
from clip_jax.io.files import JsonObject

_KEYS: Mapping[str, type] = {
    **{"data": str, "source": dict, "facts": str, "decisions": str, "chunk": int, "seed": int},
    **{"captions": list, "queries": dict, "query_digests": list, "reasons": dict, "limits": dict},
    **{"samples": dict, "rules": dict, "pairs": int, "kept": int},
}


_SOURCE: Mapping[str, type] = {"kind": str, "image": str, "root": str, "addresses": bool}


def _is_sound(report: JsonObject) -> bool:
    """Returns whether a report has what readers of a curation need, of the right types."""
    if any(type(report.get(key)) is not kind for key, kind in _KEYS.items()):
        return False
    source, queries, limits = report["source"], report["queries"], report["limits"]
    texts = [*report["captions"], *queries.values(), *report["query_digests"]]
    return (
        {key: type(value) for key, value in source.items()} == _SOURCE
        and len(report["captions"]) > 0
        and all(isinstance(text, str) for text in texts)
        and len(report["query_digests"]) == len(queries)
        and list(limits) == list(queries)
        and all(type(limit) is int and limit > 0 for limit in limits.values())
        and report["chunk"] > 0
        and len(report["reasons"]) < 256
    )


@dataclasses.dataclass(frozen=True)
class DecidedChunk:
    """A chunk and why each of its pairs is kept or left out.

    Attributes:
      chunk: the chunk.
      reasons: uint8 [n], see `rules`.
    """

    chunk: Chunk
    reasons: Reasons


@dataclasses.dataclass(frozen=True)
class Curated:
    """A finished curation.

    Attributes:
      folder: its folder.
      report: the content of `curation.json`.
      selection: which pairs are selected.
    """

    folder: str
    report: JsonObject
    selection: Selection

    @classmethod
    def open(cls, folder: str) -> Curated:
        """Reads what a curation says of itself.

        Raises:
          UserError: the folder holds no finished curation, or that of another version.
        """
        selection = Selection.open(folder)
        path = storage.join(selection.folder, results.REPORT)
        report = storage.read_json(path, "curation")
        if report.get("version") != results.VERSION or not _is_sound(report):
            raise UserError(f"{path} is of another version or damaged: curate the data again")
        return cls(selection.folder, report, selection)

    @property
    def pool(self) -> Pool:
        """The pairs that were chosen from."""
        options = dict(self.report["source"])
        kind = options.pop("kind")
        return Pool(self.report["data"], kind, SourceOptions(**options))

    @property
    def reasons(self) -> list[str]:
        """All reasons; a pair with the first has code 1."""
        return list(self.report["reasons"])

    def reason(self, code: int) -> str:
        """Returns the reason that has a code, "kept" for a pair that is kept."""
        return self.reasons[code - 1] if code != KEPT else "kept"

    def chunks(self) -> Iterator[DecidedChunk]:
        """Yields all chunks in the order of the pool.

        Raises:
          UserError: the decisions are missing or not those of the selection.
        """
        size, most = self.report["chunk"], len(self.reasons)
        for number, entry in enumerate(self.selection.files):
            bits = self.selection.bits(entry)
            kept = np.unpackbits(bits, count=entry.pairs).astype(bool)
            for start in range(0, entry.pairs, size):
                stop = min(start + size, entry.pairs)
                chunk = Chunk(number, entry.file, start, stop, entry.fingerprint)
                path = outcome.decisions_path(self.folder, chunk)
                arrays = storage.read_arrays(path, ["reasons", "key"])
                reasons = (arrays or {}).get("reasons")
                if (
                    arrays is None
                    or reasons is None
                    or f"{int(arrays['key']):016x}" != self.report["decisions"]
                    or reasons.dtype != np.uint8
                    or reasons.max(initial=0) > most
                    or not np.array_equal(reasons == KEPT, kept[start:stop])
                ):
                    raise UserError(
                        f"{path} does not fit to {MANIFEST}: a later curation into the same folder "
                        "was stopped; start it again, what is done is reused"
                    )
                yield DecidedChunk(chunk, reasons)

    def facts(self, chunk: Chunk, names: Collection[str] = ()) -> dict[str, np.ndarray]:
        """Returns facts about a chunk by name, see `facts.Facts`.

        Args:
          chunk: the chunk.
          names: the facts that are needed; none for all.

        Raises:
          UserError: they were removed.
        """
        path = facts_lib.path_of(self.folder, chunk, self.report["facts"])
        arrays = storage.read_arrays(path, names)
        if arrays is None:
            raise UserError(f"{path} is missing or damaged: curate the data again")
        return arrays

    def query_tables(self) -> dict[str, facts_lib.QueryTable]:
        """Returns the queries of each language.

        Raises:
          UserError: a list is missing, or is not the one of the curation.
        """
        tables = {}
        digests: Sequence[str] = self.report["query_digests"]
        for (language, path), digest in zip(self.report["queries"].items(), digests, strict=True):
            tables[language] = facts_lib.query_table(path)
            if tables[language].digest != digest:
                raise UserError(f"{path} has other queries than when {self.folder} was made")
        return tables

    def query_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the pairs of each query of all languages before and after, int64 [queries].

        Raises:
          UserError: they are missing, or of other queries.
        """
        length = sum(len(table.queries) for table in self.query_tables().values())
        path = storage.join(self.folder, results.QUERIES)
        arrays = storage.read_arrays(path, ["counts", "kept"])
        if arrays is None or {array.shape for array in arrays.values()} != {(length,)}:
            raise UserError(f"{path} is missing or damaged: curate the data again")
        return arrays["counts"], arrays["kept"]
