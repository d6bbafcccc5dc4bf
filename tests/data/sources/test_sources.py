"""What reading one pair of any source promises, `clip_jax/data/sources/protocol.py`."""

import pytest

from clip_jax.data.example import Pair, PairError
from clip_jax.data.sources import read_pair


class _Countries:
    """A source of two pairs; the second one cannot be read."""

    names = 0  # how often the source was asked for its name

    def __repr__(self) -> str:
        self.names += 1
        return "/data/countries"

    def __getitem__(self, i: int) -> Pair:
        if i:
            raise ZeroDivisionError("in a library")
        return Pair(b"", {}, "first")


def test_an_error_of_any_type_names_the_source_and_the_pair():
    with pytest.raises(PairError, match=r"^/data/countries: pair 1: ZeroDivisionError") as error:
        read_pair(_Countries(), 1)
    assert error.value.reason == "unreadable"


def test_a_source_is_not_described_for_pairs_that_can_be_read():
    # a description can cost more than the read, and other threads can be changing the source
    source = _Countries()
    assert read_pair(source, 0).name == "first"
    assert source.names == 0
