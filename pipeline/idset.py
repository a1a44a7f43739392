"""A set of very many ids, in sixteen bytes each: first mentions are told from later ones, our own from strangers."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


class IdSet:
    """Sixteen-byte ids in a few sorted arrays, so that a hundred million of them fit in memory."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []  # (n,) S16 each, sorted, every run shorter than the last

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, ids: np.ndarray) -> np.ndarray:
        """Adds ids, (n,) S16; tells which were not there, nor earlier among them: (n,) bool."""
        new = ~self.contains(ids)
        first = np.zeros(len(ids), bool)
        first[np.unique(ids, return_index=True)[1]] = True
        new &= first
        self._keep(np.sort(ids[new]))
        return new

    def contains(self, ids: np.ndarray) -> np.ndarray:
        """Which ids, (n,) S16, are there: (n,) bool."""
        there = np.zeros(len(ids), bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, ids), len(run) - 1)
            there |= run[places] == ids
        return there

    def _keep(self, run: np.ndarray) -> None:
        # Runs of like length are merged, so that there are few of them, and none is merged often.
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])
            run.sort(kind="stable")
        if len(run):
            self._runs.append(run)


def as_ids(digests: Iterable[str]) -> np.ndarray:
    """Ids as they are written, 32 hex digits each, for an `IdSet`: (n,) S16."""
    return np.frombuffer(bytes.fromhex("".join(digests)), "S16")


def hash_names(names: Iterable[str]) -> np.ndarray:
    """Ids of names of any length: (n,) S16."""
    hashes = (hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest() for name in names)
    return np.frombuffer(b"".join(hashes), "S16")
