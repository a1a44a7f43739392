"""What the report's pages show, worked out from the findings and the sums; the templates only lay it out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.audit.phrases import MEANINGS, TRIALS, class_label, flatten, name_place, sentence, subject_of
from pipeline.audit.pictures import data_uri, encode_cells, half_contour, map_png, overlay_png, scale_to_one
from pipeline.sums import EDGES, UNIT, ClassSums, Sums
from pipeline.wording import printable

MAP_LETTERS = 600_000  # of the class table's maps together: the page stays small, however many classes there are

LONGEST, MOST_LINES = 200, 24  # letters and lines of a finding's evidence; all of it is in findings.json

LONGEST_CONTOUR = 2500  # letters of a path; one of more is noise, and tells nobody where to look


@dataclass(frozen=True)
class MapView:
    """A map of a few cells, ready to be shown."""

    png: str  # data uri
    cells: str  # see `encode_cells`; for other colours
    height: int  # cells
    width: int
    contour: str  # see `half_contour`
    peak: tuple[float, float] | None  # the strongest cell's centre, x and y in cells; None of an empty map


@dataclass(frozen=True)
class ClassRow:
    """A class, as the table and its page tell it."""

    index: int
    name: str
    by: str  # how images come to the class: "label" or "predicted"
    n: int  # images
    accuracy: float | None  # share of the labelled images that are right
    confidence: float | None  # mean probability of the predicted class
    empty: float  # share of the images whose map is empty
    area: float | None  # median effective area of the maps, share of the image
    place: str | None  # where most maps peak, in words
    place_share: float | None  # the strongest cell's share of all peaks
    mean: np.ndarray  # (h, w) the mean map, sum 1; zeros where all maps are empty
    severities: Mapping[str, int]  # findings by severity, those that count
    page: str | None = None  # path of its own page, below the report


@dataclass(frozen=True)
class OneClass:
    """A class's own part of the sums."""

    peaks: np.ndarray  # (h, w) images whose strongest cell this is
    histograms: Mapping[str, np.ndarray]  # statistic -> (32,) images a bin
    sample_ids: np.ndarray  # (64,) S32, b"" where there are fewer images


@dataclass(frozen=True)
class Picture:
    """An image with its attention, as the page shows it."""

    uri: str
    name: str  # the last part of the uri
    source: str | None  # of the small photograph: a path below the report, or a data uri
    problem: str | None  # why there is no photograph
    width: int
    height: int
    attention: MapView | None
    label: str | None
    predicted: str | None
    confidence: float | None
    right: bool | None
    before: str | None = None  # what the baseline predicted

    @property
    def aspect(self) -> float:
        """Width over height; of panoramas as much as a row of pictures bears."""
        return round(min(2.0, max(0.6, self.width / self.height)), 3)


@dataclass(frozen=True)
class Card:
    """A finding, as the page shows it."""

    finding: Mapping[str, Any]  # as findings.json has it
    subject: str
    own: MapView | None  # the mean map of its class
    others: MapView | None  # of all other classes
    worst: tuple[Picture, ...] = ()
    random: tuple[Picture, ...] = ()
    page: str | None = None

    @property
    def captions(self) -> tuple[str, str]:
        """What the two maps are of."""
        other = self.finding["scope"].get("other_name")
        if other is None:
            return "this class", "all other classes"
        return printable(str(self.finding["scope"]["name"])), printable(str(other))

    @property
    def meaning(self) -> str:
        """See `MEANINGS`."""
        return MEANINGS.get(self.finding["rule"], "")

    @property
    def message(self) -> str:
        """The finding's message, without the name that stands above it."""
        message = printable(str(self.finding["message"]))
        return sentence(message.removeprefix(f"{self.subject}: "))

    @property
    def sentences(self) -> tuple[str, str]:
        """The message in two: the finding itself, and what supports it, which may be nothing."""
        first, _, rest = self.message.partition("; ")
        return first, sentence(rest)

    @property
    def trial(self) -> list[tuple[str, float]]:
        """The mean probability of the class in the experiments of --confirm, in words; empty if there were none."""
        evidence = self.finding.get("evidence") or {}
        told = [(words, float(evidence[name])) for name, words in TRIALS.items() if evidence.get(name) is not None]
        return told if len(told) == len(TRIALS) else []

    @property
    def evidence(self) -> list[tuple[str, str]]:
        """Further measurements, by name."""
        return [line for line in flatten(self.finding.get("evidence") or {}) if len(line[1]) <= LONGEST][:MOST_LINES]

    @property
    def file(self) -> str | None:
        """Where all its images are listed, if that is a path below the report."""
        path = str(self.finding.get("files") or "")
        return path if re.fullmatch(r"(?!.*\.\.)[A-Za-z0-9][\w./-]*", path) else None


@dataclass(frozen=True)
class Bars:
    """A histogram as an SVG draws it, with what it says in words."""

    heights: tuple[float, ...]  # of the highest, in [0, 1]
    outline: tuple[float, ...]  # another histogram's heights, for comparison; may be empty
    low: float
    high: float
    median: float
    n: int


def keyed(sums: Sums, by: str | None = None) -> ClassSums:
    """The sums by label or by prediction; if nothing is said, by label where most images have one."""
    mostly = by == "label" or (by is None and 2 * sums.n_unlabelled < sums.n_images)
    return sums.by_label if mostly else sums.by_predicted


def class_rows(sums: Sums, names: Sequence[str] | None, findings: Iterable[Mapping[str, Any]]) -> list[ClassRow]:
    """All classes that any image has, by label or prediction, in the order of their indices."""
    counted = count_severities(findings)
    first = "label" if keyed(sums) is sums.by_label else "predicted"
    rows: dict[int, ClassRow] = {}
    for by in (first, "predicted" if first == "label" else "label"):
        classes = keyed(sums, by)
        for k, index in enumerate(classes.classes.tolist()):
            if index >= 0 and index not in rows:
                rows[index] = _class_row(classes, k, by, class_label(index, names), counted.get(index, {}))
    return [rows[index] for index in sorted(rows)]


def sums_of(sums: Sums, row: ClassRow) -> OneClass:
    """What a row of the table was made of."""
    classes = keyed(sums, row.by)
    k = int(np.searchsorted(classes.classes, row.index))
    histograms = {name: counts[k] for name, counts in classes.histograms.items()}
    return OneClass(classes.peaks[k], histograms, classes.sample_ids[k])


def count_severities(findings: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, int]]:
    """Class -> severity -> findings that count."""
    counted: dict[int, Counter[str]] = {}
    for finding in findings:
        for index in {finding["scope"].get("class"), finding["scope"].get("other")} - {None}:
            if finding["state"] in ("new", "known"):
                counted.setdefault(index, Counter())[finding["severity"]] += 1
    return {index: dict(counts) for index, counts in counted.items()}


def table_data(rows: Sequence[ClassRow]) -> dict[str, Any]:
    """The class table for the page's script, a list a column; maps only as far as `MAP_LETTERS` goes."""
    affordable = MAP_LETTERS // max(1, rows[0].mean.size) if rows else 0
    first = sorted(rows, key=lambda row: (-gravity(row), -row.n))[:affordable]
    with_map = {row.index for row in first}
    return {
        "index": [row.index for row in rows],
        "name": [row.name for row in rows],
        "n": [row.n for row in rows],
        "accuracy": [_short(row.accuracy) for row in rows],
        "confidence": [_short(row.confidence) for row in rows],
        "empty": [_short(row.empty) for row in rows],
        "area": [_short(row.area) for row in rows],
        "place": [row.place for row in rows],
        "share": [_short(row.place_share) for row in rows],
        "found": [[row.severities.get(name, 0) for name in ("error", "warning", "info")] for row in rows],
        "page": [row.page for row in rows],
        "cells": [encode_cells(row.mean) if row.index in with_map else None for row in rows],
        "shape": list(rows[0].mean.shape) if rows else [1, 1],
    }


def view_map(values: np.ndarray, overlay: bool = False) -> MapView:
    """A map, over a photograph or by itself."""
    scaled = scale_to_one(values)
    height, width = scaled.shape
    row, column = np.unravel_index(int(np.argmax(scaled)), scaled.shape)
    peak = (float(column) + 0.5, float(row) + 0.5) if scaled.any() else None
    png, contour = overlay_png(values) if overlay else map_png(values), half_contour(values)
    contour = contour if len(contour) <= LONGEST_CONTOUR else ""
    return MapView(data_uri(png, "png"), encode_cells(values), height, width, contour, peak)


def make_card(finding: Mapping[str, Any], sums: Sums, pictures: Mapping[str, Picture], page: str | None = None) -> Card:
    """A finding with its maps, and those of its pictures that there are."""
    scope = finding["scope"]
    classes = keyed(sums, scope.get("by"))
    own, others = mean_maps(classes, scope.get("class"))
    if scope.get("other") is not None:
        others, _ = mean_maps(classes, scope["other"])
    shown = {
        kind: tuple(pictures[e["id"]] for e in finding["examples"][kind] if e["id"] in pictures)
        for kind in ("worst", "random")
    }
    return Card(
        finding,
        subject_of(finding),
        None if own is None else view_map(own),
        None if others is None else view_map(others),
        **shown,
        page=page,
    )


def mean_maps(classes: ClassSums, index: int | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The mean map of a class and that of all others, (h, w) with sum 1; None where there is none."""
    if index is None:
        return None, None
    place = np.flatnonzero(classes.classes == index)
    if not len(place):
        return None, None
    own = classes.mass[place[0]].astype(np.float64)
    others = classes.mass.astype(np.float64).sum(axis=0) - own
    return (_as_share(own) if own.sum() else None), (_as_share(others) if others.sum() > 0.5 else None)


def histogram_bars(counts: np.ndarray, name: str, outline: np.ndarray | None = None) -> Bars | None:
    """A histogram of a statistic, two bins a bar.

    Args:
        counts: (32,) images a bin, at `EDGES[name]`.
        name: of the statistic.
        outline: (32,) another one to compare with, scaled to the same number of images.

    Returns:
        None if it is empty.
    """
    n, edges = int(counts.sum()), EDGES[name]
    if not n:
        return None
    wide = counts.reshape(-1, 2).sum(axis=1) / n
    other = np.zeros(0)
    if outline is not None and outline.sum() > n:
        other = outline.reshape(-1, 2).sum(axis=1) / outline.sum()
    highest = max(wide.max(), other.max(initial=0))
    return Bars(
        tuple(wide / highest), tuple(other / highest), float(edges[0]), float(edges[-1]), median_of(counts, edges), n
    )


def median_of(counts: np.ndarray, edges: np.ndarray) -> float:
    """The median of a histogram, linear within its bin; NaN if it is empty."""
    total = counts.sum()
    if not total:
        return float("nan")
    below = np.concatenate([[0], np.cumsum(counts)]) / total
    k = int(np.searchsorted(below, 0.5, side="left")) - 1
    share = (0.5 - below[k]) / (below[k + 1] - below[k])
    return float(edges[k] + share * (edges[k + 1] - edges[k]))


def gravity(row: ClassRow) -> int:
    """How grave a class's gravest finding is: 3 an error, 2 a warning, 1 an info, 0 none."""
    return 3 if row.severities.get("error") else 2 if row.severities.get("warning") else int(bool(row.severities))


def total_histograms(sums: Sums) -> dict[str, np.ndarray]:
    """Statistic -> (32,) images a bin, of all classes together."""
    return {name: counts.sum(axis=0) for name, counts in sums.by_predicted.histograms.items()}


def confusions(sums: Sums, index: int, names: Sequence[str] | None, most: int = 8) -> list[tuple[str, str, int]]:
    """What images of a class are taken for, and what is taken for it: label, prediction, images; the most first."""
    concerned = (sums.pairs == index).any(axis=1) & (sums.pairs[:, 0] != sums.pairs[:, 1])
    order = sorted(np.flatnonzero(concerned), key=lambda k: -sums.pair_counts[k])[:most]
    labels = [[class_label(int(c), names) for c in sums.pairs[k]] for k in order]
    return [(label, predicted, int(sums.pair_counts[k])) for (label, predicted), k in zip(labels, order, strict=True)]


def _class_row(classes: ClassSums, k: int, by: str, name: str, severities: Mapping[str, int]) -> ClassRow:
    n, labels, peaks = int(classes.n[k]), int(classes.n_labelled[k]), classes.peaks[k]
    area = median_of(classes.histograms["eff_area"][k], EDGES["eff_area"])
    total = int(peaks.sum())
    row, column = np.unravel_index(int(np.argmax(peaks)), peaks.shape) if total else (0, 0)
    return ClassRow(
        int(classes.classes[k]),
        name,
        by,
        n,
        accuracy=int(classes.n_correct[k]) / labels if labels else None,
        confidence=int(classes.confidence[k]) / UNIT / n if n else None,
        empty=int(classes.n_empty[k]) / n if n else 0.0,
        area=None if np.isnan(area) else area,
        place=name_place(int(row), int(column), peaks.shape) if total else None,
        place_share=int(peaks.max()) / total if total else None,
        mean=_as_share(classes.mass[k].astype(np.float64)),
        severities=severities,
    )


def _as_share(values: np.ndarray) -> np.ndarray:
    total = values.sum()
    return values / total if total else values


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
