"""The images behind the findings: one pass over a run's records finds those that show each most, and some by hash."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.audit.findings import Example, Examples, Finding, Scope
from pipeline.audit.regions import cells_of
from pipeline.observations import Observations
from pipeline.sums import EXCEEDS

EXAMPLES = 6
"""Images of each kind a finding."""

SAMPLED = 64
"""Images of a finding that are kept by hash: for --confirm, which needs more than are shown."""

POOLED = 600
"""Images of the whole run that are kept by hash, likewise."""

Selection = tuple[np.ndarray, np.ndarray]
"""(N,) bool, which images a finding is about; (N,) float, how much each shows it."""


@dataclass
class Gathered:
    """What a pass has found for one finding."""

    finding: Finding
    n: int = 0
    worst: list[tuple[float, str, str]] = field(default_factory=list)  # score, id, uri: a heap, the mildest first
    random: list[tuple[float, str, str]] = field(default_factory=list)  # -hash, id, uri: a heap, the largest hash first

    def add(self, observations: Observations, chosen: np.ndarray, scores: np.ndarray) -> None:
        """Takes in the images that are chosen of some."""
        self.n += int(chosen.sum())
        for row in np.flatnonzero(chosen):
            id_, uri = observations.ids[row].decode(), observations.uris[row]
            # Twice as many as are shown: one kind leaves out what the other shows.
            _keep(self.worst, (float(scores[row]), id_, uri), 2 * EXAMPLES)
            _keep(self.random, (-_hash_of(self.finding.key, id_), id_, uri), SAMPLED)

    def sample(self) -> list[Example]:
        """Up to 64 of the images, by hash."""
        return [Example(id_, uri) for _, id_, uri in sorted(self.random, reverse=True)]

    def examples(self) -> Examples:
        """Six of each kind; no image is told twice."""
        worst = sorted(self.worst, key=lambda item: (-item[0], item[1]))[:EXAMPLES]
        told = {id_ for _, id_, _ in worst}
        random = [item for item in sorted(self.random, reverse=True) if item[1] not in told][:EXAMPLES]
        return Examples(*(tuple(Example(id_, uri) for _, id_, uri in some) for some in (worst, random)))


@dataclass
class Pool:
    """Some images of the whole run, by hash."""

    images: list[tuple[float, str, str, int]] = field(default_factory=list)  # -hash, id, uri, predicted: a heap

    def add(self, observations: Observations) -> None:
        """Looks at some images."""
        for row, id_ in enumerate(observations.ids):
            text = id_.decode()
            item = (-float(int(text[:12], 16)), text, observations.uris[row], int(observations.predicted[row]))
            _keep(self.images, item, POOLED)  # ids are hashes themselves

    def others(self, index: int) -> list[Example]:
        """Those that are predicted as other classes."""
        return [Example(id_, uri) for _, id_, uri, predicted in sorted(self.images, reverse=True) if predicted != index]


def gather_examples(
    findings: Sequence[Finding],
    parts: Iterable[Observations],
    sure: Mapping[int, float],
    write: Callable[[list[dict[str, Any]]], None],
    pool: Pool | None = None,
) -> list[Gathered]:
    """Finds the images of all findings in one pass.

    Args:
        findings: those that are about images; see `select`.
        parts: all observations.
        sure: see `select`.
        write: takes rows of all images of all findings, some at a time.
        pool: is shown all images.
    """
    gathered = [Gathered(finding) for finding in findings]
    for observations in parts:
        rows: list[dict[str, Any]] = []
        for one in gathered:
            chosen, scores = select(one.finding, observations, sure)
            one.add(observations, chosen, scores)
            rows += _rows(one.finding, observations, chosen, scores)
        if rows:
            write(rows)
        if pool is not None:
            pool.add(observations)
    return gathered


def select(finding: Finding, observations: Observations, sure: Mapping[int, float]) -> Selection:
    """Which images a finding is about, and how much each shows it: those of larger numbers are shown first.

    Args:
        finding: of any rule; images of a rule that is not known here are those of its class, or of its place.
        observations: some images.
        sure: for BC103, class -> the confidence from which on a prediction that contradicts the label is a suspect.
    """
    scope, rule = finding.scope, finding.rule
    keys = observations.label if scope.by == "label" else observations.predicted
    chosen = np.ones(len(observations), bool) if scope.index is None else keys == scope.index
    score = observations.confidence.astype(float)
    name, sign = _drifted(finding) if rule == "BC206" else _BY_SCALAR.get(rule, ("", 1))
    if name in observations.scalars:
        score = sign * observations.scalars[name].astype(float)
        chosen = chosen & np.isfinite(score)
    elif rule == "BC103":
        chosen, score = find_suspects(observations, sure), observations.mistakenness.astype(float)
    elif rule == "BC104":
        chosen = _are_wrong(observations) & _have_pair(observations, scope)
    elif rule == "BC105":
        chosen = chosen & (observations.peak < 0)
    elif rule == "BC204":
        chosen, score = chosen & _are_wrong(observations), observations.mistakenness.astype(float)
    elif finding.region is not None:
        chosen, score = _in_region(finding, observations, chosen)
    return chosen, np.nan_to_num(score, nan=-1.0)


def find_suspects(observations: Observations, sure: Mapping[int, float]) -> np.ndarray:
    """(N,) bool: images that are predicted as another class than their label's, as surely as those of that class are.

    The threshold of each class is that of confident learning: Northcutt et al., JAIR 2021, Sec. 3.1.
    """
    limits = np.array([sure.get(int(index), np.inf) for index in observations.predicted])
    return _are_wrong(observations) & (observations.confidence >= limits)


_BY_SCALAR = {
    "BC102": ("border_energy", 1),
    "BC106": ("eff_area", 1),
    "BC107": ("components50", 1),
    "BC108": ("energy_in_box", -1),
}
"""Rule -> the scalar that shows it, and whether large (1) or small (-1) numbers do."""


def _drifted(finding: Finding) -> tuple[str, int]:
    """The statistic that has drifted, and whether it has become larger (1) or smaller (-1)."""
    before, now = (finding.evidence.get(name) for name in ("before", "now"))
    grown = before is None or now is None or now >= before
    return str(finding.evidence.get("statistic")), 1 if grown else -1


def _are_wrong(observations: Observations) -> np.ndarray:
    known = (observations.label >= 0) & (observations.predicted >= 0)
    return known & (observations.label != observations.predicted)


def _have_pair(observations: Observations, scope: Scope) -> np.ndarray:
    pair = np.array([scope.index, scope.other], np.int32)
    return np.isin(observations.label, pair) & np.isin(observations.predicted, pair)


def _in_region(finding: Finding, observations: Observations, chosen: np.ndarray) -> Selection:
    """Images whose map peaks in the region, or has much of its energy in it; the score is its energy there."""
    assert finding.region is not None
    cells = cells_of(finding.region, finding.place, observations.grid)
    energy = observations.maps[:, cells].sum(axis=1)
    if finding.rule == "BC110":
        return chosen & (energy >= EXCEEDS), energy
    inside = (observations.peak >= 0) & cells.ravel()[np.maximum(observations.peak, 0)]
    if finding.rule == "BC109":  # the images that make the difference
        wrong = _are_wrong(observations)
        inside = inside & (wrong if finding.value < 0 else ~wrong)
    return chosen & inside, energy


def _rows(
    finding: Finding, observations: Observations, chosen: np.ndarray, scores: np.ndarray
) -> Iterator[dict[str, Any]]:
    for row in np.flatnonzero(chosen):
        yield {
            "key": finding.key,
            "rule": finding.rule,
            "id": observations.ids[row].decode(),
            "uri": observations.uris[row],
            "label": int(observations.label[row]),
            "predicted": int(observations.predicted[row]),
            "confidence": float(observations.confidence[row]),
            "score": float(scores[row]),
        }


def _keep(heap: list[Any], item: tuple[Any, ...], most: int) -> None:
    """Keeps the largest."""
    if len(heap) < most:
        heapq.heappush(heap, item)
    elif item > heap[0]:
        heapq.heapreplace(heap, item)


def _hash_of(key: str, id_: str) -> float:
    return float(int(hashlib.sha256(f"{key} {id_}".encode()).hexdigest()[:12], 16))
