"""A set of sixteen-byte ids agrees with Python's own sets, whatever the order and the sizes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.idset import IdSet, as_ids, hash_names
from pipeline.records import image_id


def test_ids_that_differ_in_one_bit_are_two() -> None:
    """Ids may end in zeros, which NumPy's byte strings drop."""
    found = IdSet()
    ids = [bytes(16), bytes(15) + b"\x01", b"\x01" + bytes(15), b"\xff" * 16, b"\xff" * 15 + b"\x00"]
    assert found.add(np.array(ids, "S16")).tolist() == [True] * 5
    later = np.array([b"\x02" + bytes(15), *ids[::-1]], "S16")
    assert found.contains(later).tolist() == [False] + [True] * 5
    assert found.add(later).tolist() == [True] + [False] * 5


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_pythons_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    found, known = IdSet(), set()
    for _ in range(60):
        numbers = rng.integers(0, 400, int(rng.integers(0, 40))).tolist()
        names = [f"/x/{number}.jpg" for number in numbers]
        assert found.contains(hash_names(names)).tolist() == [name in known for name in names]
        new = [name not in known and name not in names[:i] for i, name in enumerate(names)]
        assert found.add(hash_names(names)).tolist() == new
        known |= set(names)
        assert len(found) == len(known)
    assert len(found._runs) <= 9, "few arrays, however many were added"


def test_ids_are_the_bytes_of_their_digits() -> None:
    ids = [image_id(name) for name in ("a", "b")]
    assert as_ids(ids).tobytes() == bytes.fromhex(ids[0]) + bytes.fromhex(ids[1])
    assert len(as_ids([])) == len(hash_names([])) == 0
