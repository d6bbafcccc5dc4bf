"""Facts about the pairs of a chunk: what one pass over the data finds out, and rules decide on.

Facts do not depend on limits, such as the least side of an image, so another run with other limits
does not read the data again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float16, Int32, UInt8, UInt32, UInt64

from clip_jax.curation import hashing, ngrams, overlaps, storage
from clip_jax.curation.duplicates import perceptual
from clip_jax.curation.pool import Chunk, Pool
from clip_jax.curation.queries.balance import lengths_of
from clip_jax.curation.queries.matching import Matcher
from clip_jax.curation.queries.query_list import read_queries
from clip_jax.data import captions
from clip_jax.data.example import REASONS, Fields, PairError, only_pair_errors
from clip_jax.data.images import decoding
from clip_jax.data.sources import Source, read_pair, read_text
from clip_jax.errors import UserError

_VERSION = 1
_CHECKED = 100  # pairs, one of which must give a caption
_NAMED = 20  # fields in an error
_IDENTITY = ("sha256", "uid", "url", "URL")  # tell an image without its bytes, best first
NO_LANGUAGE = 255


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What to find out about pairs.

    Attributes:
      captions: templates; the caption is made by the first that a pair fills.
      queries: the file of the queries by language; one language, "", for all pairs alike.
      language: the field that tells the language of a pair; needed for several languages.
      without_spaces: whether queries match in scripts without spaces, see `matching.Matcher`.
      images: whether to read images, for their size and content.
      perceptual: whether to compute perceptual hashes, for near-duplicates.
      ngrams: whether to count words and pairs of words.
      test_sets: the specs of test sets whose images are searched for.
    """

    captions: tuple[str, ...] = ("{caption}",)
    queries: tuple[tuple[str, str], ...] = ()
    language: str = ""
    without_spaces: bool = False
    images: bool = True
    perceptual: bool = False
    ngrams: bool = False
    test_sets: tuple[str, ...] = ()

    def digest(self) -> str:
        """Returns a hash that changes when the facts may change."""
        values = {**dataclasses.asdict(self), "version": _VERSION}
        values["queries"] = [(name, query_table(path).digest) for name, path in self.queries]
        values["test_sets"] = [(spec, overlaps.fingerprint(spec)) for spec in self.test_sets]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity
class QueryTable:
    """The queries of a language.

    Attributes:
      queries: their texts.
      hashes: uint64 [queries], the hash of each text.
      digest: a hash of all of them in order.
    """

    queries: tuple[str, ...]
    hashes: UInt64[np.ndarray, " queries"]
    digest: str

    @functools.cache  # noqa: B019  # a process keeps its tables anyway
    def matcher(self, without_spaces: bool) -> Matcher:
        """Returns the automaton that finds them; a process keeps it."""
        return Matcher(self.queries, without_spaces)


@functools.cache
def query_table(path: str) -> QueryTable:
    """Reads a list of queries; a process keeps it."""
    queries = read_queries(path).queries
    hashes = hashing.text_hashes(queries)
    return QueryTable(queries, hashes, hashlib.sha256(hashes.tobytes()).hexdigest()[:32])


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of the n pairs of a chunk.

    Attributes:
      broken: uint8 [n], 0, or 1 + the number of the reason in `example.REASONS`.
      text: uint64 [n], the hash of the caption.
      image: uint64 [n], the hash of the image's bytes, or of what identifies it where images are
        not read.
      sides: int32 [n, 2], width and height; 0 where images are not read.
      words: int32 [n], words of the caption between blanks.
      language: uint8 [n], the number of the language in `Extraction.queries`, or `NO_LANGUAGE`.
      starts: uint32 [n + 1], and
      matches: uint32 [matches], the queries of each pair, see `Matcher.find`; numbers count within
        the language.
      perceptual: uint64 [n], perceptual hashes; empty if not computed.
      similarity: float16 [n], to the most similar image of the test sets; empty if not computed.
      ngram_starts: uint32 [n + 1], and
      ngrams: uint64 [ngrams], the hashes of the words and pairs of words of each caption; both
        empty if not computed.
    """

    broken: UInt8[np.ndarray, " n"]
    text: UInt64[np.ndarray, " n"]
    image: UInt64[np.ndarray, " n"]
    sides: Int32[np.ndarray, "n 2"]
    words: Int32[np.ndarray, " n"]
    language: UInt8[np.ndarray, " n"]
    starts: UInt32[np.ndarray, " starts"]
    matches: UInt32[np.ndarray, " matches"]
    perceptual: UInt64[np.ndarray, " hashes"]
    similarity: Float16[np.ndarray, " similarities"]
    ngram_starts: UInt32[np.ndarray, " ngram_starts"]
    ngrams: UInt64[np.ndarray, " ngrams"]

    def __len__(self) -> int:
        return len(self.broken)

    @property
    def keys(self) -> UInt64[np.ndarray, " n"]:
        """The hash of the content of each pair: of its image and its caption."""
        return hashing.combine(self.image, self.text)

    @classmethod
    def read(cls, path: str, count: int) -> Facts | None:
        """Reads the facts of `count` pairs; None if they are missing or damaged."""
        arrays = storage.read_arrays(path)
        names = {field.name for field in dataclasses.fields(cls)}
        if arrays is None or set(arrays) != names or len(arrays["broken"]) != count:
            return None
        return cls(**arrays)

    def write(self, path: str) -> None:
        """Writes the facts whole or not at all."""
        storage.write_arrays(path, vars(self))


def path_of(folder: str, chunk: Chunk, digest: str) -> str:
    """Returns the path of the facts of a chunk; other data or another extraction has another.

    It ends in the number of pairs, which the progress of a run counts.
    """
    state = json.dumps([chunk.fingerprint, chunk.start, chunk.stop, digest])
    name = hashlib.sha256(state.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return storage.join(folder, f"facts/{name[:2]}/{name}-{len(chunk)}.npz")


class Extractor:
    """Finds the facts of chunks.

    Args:
      pool: the pairs.
      extraction: what to find out.
    """

    def __init__(self, pool: Pool, extraction: Extraction) -> None:
        self.pool, self.extraction = pool, extraction
        self.languages = {name: i for i, (name, _) in enumerate(extraction.queries)}
        self.needs_images = bool(extraction.images or extraction.perceptual or extraction.test_sets)

    def __call__(self, chunk: Chunk) -> Facts:
        """Reads the pairs of a chunk; a broken pair is counted and has no other facts."""
        count, source = len(chunk), self.pool.open(chunk.spec)
        texts: list[str | None] = [None] * count
        arrays: dict[str, np.ndarray] = {
            "broken": np.zeros(count, np.uint8),
            "image": np.zeros(count, np.uint64),
            "sides": np.zeros((count, 2), np.int32),
            "language": np.full(count, NO_LANGUAGE, np.uint8),
            "perceptual": np.zeros(count if self.extraction.perceptual else 0, np.uint64),
            "similarity": np.zeros(0, np.float16),
        }
        descriptors: list[np.ndarray] = []
        for i in range(count):
            try:
                content = b""
                if self.needs_images:
                    content, fields, name = read_pair(source, chunk.start + i)
                else:
                    fields, name = read_text(source, chunk.start + i)
                texts[i] = captions.filled(self.extraction.captions, fields, name)[0]
                self._describe(arrays, i, fields, name)
                if self.needs_images:
                    self._look_at(arrays, descriptors, i, content, name)
            except PairError as error:
                arrays["broken"][i], texts[i] = 1 + REASONS.index(error.reason), None
        if self.extraction.test_sets:
            arrays["similarity"] = self._similarities(descriptors, arrays["broken"] == 0)
        return Facts(**arrays, **self._of_texts(texts, arrays["language"]))

    def _describe(
        self, arrays: Mapping[str, np.ndarray], i: int, fields: Fields, name: str
    ) -> None:
        """Fills in what the fields of a pair tell of it."""
        if not self.needs_images:
            arrays["image"][i] = hashing.text_hash(identity(fields, name))
        if "" in self.languages or not self.languages:
            arrays["language"][i] = 0
        else:
            language = str(captions.field_value(fields, self.extraction.language))
            arrays["language"][i] = self.languages.get(language, NO_LANGUAGE)

    def _look_at(
        self,
        arrays: Mapping[str, np.ndarray],
        descriptors: list[np.ndarray],
        i: int,
        content: bytes,
        name: str,
    ) -> None:
        """Fills in what the image of a pair tells of it; its pixels are decoded if need be."""
        arrays["image"][i] = hashing.bytes_hash(content)
        with only_pair_errors("picture", name):
            if not (self.extraction.perceptual or self.extraction.test_sets):
                with decoding.open_image(content) as image:
                    arrays["sides"][i] = image.size
                return
            picture = decoding.decode(content, name)
            arrays["sides"][i] = picture.size
            if self.extraction.perceptual:
                arrays["perceptual"][i] = perceptual.perceptual_hash(picture)
            if self.extraction.test_sets:
                descriptors.append(overlaps.describe(picture))

    def _similarities(
        self, descriptors: list[np.ndarray], is_usable: Bool[np.ndarray, " n"]
    ) -> Float16[np.ndarray, " n"]:
        """Returns the similarity of each image to the test sets, 0 for a broken one."""
        result = np.zeros(len(is_usable), np.float16)
        if descriptors:
            found = overlaps.similarities(np.stack(descriptors), self.extraction.test_sets)
            result[is_usable] = found
        return result

    def _of_texts(
        self, texts: Sequence[str | None], language: UInt8[np.ndarray, " n"]
    ) -> dict[str, np.ndarray]:
        """Returns the facts that come from the captions."""
        words = [None if text is None else text.split() for text in texts]
        starts, matches = self._matches(texts, language)
        facts = {
            "text": hashing.text_hashes([text or "" for text in texts]),
            "words": np.array([len(w or ()) for w in words], np.int32),
            "starts": starts,
            "matches": matches,
            "ngram_starts": np.zeros(0, np.uint32),
            "ngrams": np.zeros(0, np.uint64),
        }
        if self.extraction.ngrams:
            facts["ngram_starts"], facts["ngrams"] = ngrams.hashes(texts)
        return facts

    def _matches(
        self, texts: Sequence[str | None], language: UInt8[np.ndarray, " n"]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns starts and numbers of the queries in each text, each by its own language."""
        tables = [query_table(path) for _, path in self.extraction.queries]
        if not tables:
            return np.zeros(len(texts) + 1, np.uint32), np.zeros(0, np.uint32)
        if len(tables) == 1:
            usable = [t if own == 0 else None for t, own in zip(texts, language, strict=True)]
            return tables[0].matcher(self.extraction.without_spaces).find(usable)
        lengths = np.zeros(len(texts), np.int64)
        parts = []
        for i, table in enumerate(tables):
            own = np.flatnonzero(language == i)
            matcher = table.matcher(self.extraction.without_spaces)
            starts, found = matcher.find([texts[k] for k in own.tolist()])
            lengths[own] = lengths_of(starts)
            parts.append((np.repeat(own, lengths[own]), found))
        pairs = np.concatenate([pair for pair, _ in parts])
        numbers = np.concatenate([found for _, found in parts])
        order = np.argsort(pairs, kind="stable")
        return np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32), numbers[order]


def identity(fields: Fields, name: str) -> str:
    """Returns what identifies an image that is not read: a digest, an identifier or an address."""
    for field in _IDENTITY:
        value = fields.get(field)
        if isinstance(value, str | int) and value != "":
            return f"{field} {value}"
    return name


def check_first_pairs(
    source: Source, file: str, extraction: Extraction, by_identity: bool = False
) -> None:
    """Checks that the first pairs of a source have the fields that a curation needs.

    Args:
      source: the source.
      file: its name, for errors.
      extraction: what to find out about its pairs.
      by_identity: whether a rule compares images that are not read.

    Raises:
      UserError: no pair gives a caption, has a language or a field that tells its image; or none
        can be read.
    """
    missing = {"caption": f"fills --captions {' or '.join(map(repr, extraction.captions))}"}
    if extraction.language:
        missing["language"] = f"has the field {extraction.language!r} of --language"
    if by_identity and not extraction.images:
        names = ", ".join(_IDENTITY)
        missing["image"] = (
            f"has one of the fields {names}, which tell images apart that are not read"
        )
    checked = min(len(source), _CHECKED)
    error: PairError | None = None
    found: dict[str, None] = {}
    for i in range(checked):
        try:
            fields, name = read_text(source, i)
        except PairError as unreadable:
            error = error or unreadable
            continue
        found |= dict.fromkeys(fields)
        with contextlib.suppress(PairError):
            captions.filled(extraction.captions, fields, name)
            missing.pop("caption", None)
        if captions.field_value(fields, extraction.language) is not None:
            missing.pop("language", None)
        if identity(fields, name) != name:
            missing.pop("image", None)
        if not missing:
            return
    if error and not found:
        raise error
    if checked:
        shown = ", ".join([*found][:_NAMED]) + (", …" if len(found) > _NAMED else "")
        fault = next(iter(missing.values()))
        raise UserError(f"{file}: no pair of the first {checked} {fault}; the fields are: {shown}")
