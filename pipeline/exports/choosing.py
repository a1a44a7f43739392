"""Which images of a run are exported, and by which of their maps."""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pipeline import parquet, storage
from pipeline.errors import ConfigError, as_config_errors
from pipeline.records import MapRecord, Record

TARGETS = ("predicted", "label")

_MAX_FINDINGS = 200_000_000  # bytes of a findings.json


@dataclass(frozen=True)
class Choice:
    """Which images are exported; each condition narrows the others."""

    method: str
    targets: str = "predicted"  # or "label": whose map is shown
    classes: frozenset[int] | None = None  # of that map; None for all
    min_score: float = 0.5  # its probability; 0 for all
    sample: float | None = None  # a share in (0, 1), or a number of images from 1
    ids: frozenset[str] | None = None  # of the images that an audit's findings are about; None for all


def choose(
    records: Callable[[], Iterator[Record]], choice: Choice, names: Sequence[str] | None, left_out: Counter[str]
) -> Iterator[tuple[Record, MapRecord]]:
    """The chosen images in the run's order, each with the map to be shown.

    Args:
        records: reads the run's records anew; a sample of a number of images reads them twice.
        choice: the conditions.
        names: of the classes.
        left_out: where each image that is not chosen is counted, by the reason.
    """
    highest = None
    if choice.sample is not None and choice.sample >= 1:
        passing = (_hash(record) for record in records() if isinstance(_look(record, choice, names), MapRecord))
        # The images of the lowest hashes: the same ones in every run, whatever comes before them.
        lowest = heapq.nsmallest(int(choice.sample), passing)
        highest = lowest[-1] if lowest else -1
    elif choice.sample is not None:
        highest = int(choice.sample * (1 << 128))
    for record in records():
        found = _look(record, choice, names)
        if isinstance(found, str):
            left_out[found] += 1
        elif highest is not None and _hash(record) > highest:
            left_out["not in the sample"] += 1
        else:
            yield record, found


def class_index(text: str, names: Sequence[str] | None) -> int | None:
    """The class that a name or an index means; None if it means none."""
    if names is not None and text in names:
        return list(names).index(text)
    number = re.fullmatch(r"(\d{1,9})(\.0+)?", text, re.ASCII)
    return int(number[1]) if number and (names is None or int(number[1]) < len(names)) else None


def read_findings(uri: str, rules: Sequence[str] = (), keys: Sequence[str] = ()) -> frozenset[str]:
    """The ids of the images that findings of an audit are about.

    Args:
        uri: of findings.json; the file of all images that it names, findings.parquet, lies beside it.
        rules: which rules' findings; none for those of all.
        keys: which findings, by their keys; likewise.

    Raises:
        ConfigError: the file cannot be read, has no such finding, or only findings without images.
    """
    with as_config_errors(f"the findings {uri!r} cannot be read"):
        listed = json.loads(storage.read_bytes(uri, limit=_MAX_FINDINGS))["findings"]
        chosen = [one for one in listed if (not rules or one["rule"] in rules) and (not keys or one["key"] in keys)]
        if not chosen:
            asked = ", ".join([*rules, *keys]) or "any"
            known = ", ".join(sorted({f"{one['rule']} {one['key']}" for one in listed})[:20])
            raise ConfigError(f"{uri!r} has no finding of {asked}; it has: {known or 'none'}")
        ids = {str(image["id"]) for one in chosen for kind in ("worst", "random") for image in one["examples"][kind]}
        for name in {str(one["files"]) for one in chosen if one.get("files")}:
            ids |= _read_ids(uri, name, {one["key"] for one in chosen})
        if not ids:
            named = ", ".join(sorted({f"{one['rule']} {one['key']}" for one in chosen})[:20])
            raise ConfigError(f"{uri!r} names no image for {named}: choose findings that are about images")
    return frozenset(ids)


def _read_ids(uri: str, name: str, keys: set[str]) -> set[str]:
    # A findings.json may come from anybody, and must not name files elsewhere.
    if not re.fullmatch(r"[A-Za-z0-9_-]+\.parquet", name):
        raise ConfigError(f"{uri!r} names {name!r} for its images, which is not read: that file lies beside it")
    with storage.open_file(storage.join(uri.rpartition("/")[0], name)) as file:
        return {str(row["id"]) for row in parquet.read_rows(file, ("key", "id")) if row["key"] in keys}


def _look(record: Record, choice: Choice, names: Sequence[str] | None) -> MapRecord | str:
    """The map of an image to be shown, or why the image is not chosen."""
    label = None if record.label is None else class_index(record.label, names)
    target = record.predicted if choice.targets == "predicted" else label
    if target is None:
        return "without a label that is a class"
    if choice.classes is not None and target not in choice.classes:
        return "of another class"
    shown = next((m for m in record.maps if m.target == target and m.method == choice.method), None)
    if shown is None:
        return f"without a {choice.method} map of the {choice.targets} class"
    if not shown.probability >= choice.min_score:  # also where it is no number
        return f"less probable than {choice.min_score:g}"
    if choice.ids is not None and record.id not in choice.ids:
        return "not of the findings"
    return shown


def _hash(record: Record) -> int:
    return int(record.id, 16)  # a hash of the uri
