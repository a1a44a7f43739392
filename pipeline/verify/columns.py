"""What the columns of a run's tables must be like, rule by rule, for all rows at once."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.codec import MAP_DTYPES
from pipeline.geometry import RESIZES
from pipeline.records import SCHEMA_VERSION
from pipeline.verify.problems import Problem, plain

SHARES = ("spread", "eff_area", "gini", "coverage50", "border_energy", "corner_energy", "largest_share50")

ANYWHERE = ("peak_cell", "border_energy", "border_ratio", "corner_energy", "corner")
"""What is known of a map that is positive anywhere."""

INSIDE = ("com_x", "com_y", "spread", "eff_area", "gini", "coverage50", "components50", "largest_share50")
"""What is known of one that is positive in the image, and not in padding alone."""

ATTENTION = tuple(f"maps[].{name}" for name in (*ANYWHERE, *INSIDE, "top2_cc"))

SURENESS = ("predicted", "confidence", "runner_up", "runner_up_confidence", "entropy")

# Columns that older files lack, or those of runs without --since.
LATER = ("maps[].metrics", "earlier_shard", *ATTENTION, *SURENESS)

# Those of before may have been carried over into a newer file.
MAY_BE_NULL = (
    "label", "logit_classes", "boxes", "earlier_shard", "maps[].box", "maps[].overlay", "maps[].metrics", *ATTENTION,
    *SURENESS,
)  # fmt: skip

HALF_ONE, HALF_INFINITE = 0x3C00, 0x7C00  # float16 as whole numbers, which are in the same order

Rules = Iterator[tuple[np.ndarray, str]]
"""Which rows break a rule, (n,) bool, and what to say of them."""


class Columns:
    """A table's columns by name, with those inside of lists (`maps[]`) and structs (`view.mode`)."""

    def __init__(self, table: Any):
        self.arrays: dict[str, Any] = {}
        self.n_rows = len(table)
        for name in table.schema.names:
            self._add(name, table[name].combine_chunks())

    def _add(self, name: str, values: Any) -> None:
        self.arrays[name] = values
        kind = str(values.type)
        if kind.startswith("list<"):
            self._add(f"{name}[]", values.flatten())
        elif kind.startswith("struct<"):
            for i in range(values.type.num_fields):
                self._add(f"{name}.{values.type.field(i).name}", values.field(i))

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers; of those that are not there, NaN."""
        return self.arrays[name].to_numpy(zero_copy_only=False)

    def words(self, name: str) -> list[Any]:
        """A column of words."""
        return self.arrays[name].to_pylist()

    def has(self, name: str) -> np.ndarray:
        """Which rows have a value: (n,) bool."""
        return self.arrays[name].is_valid().to_numpy(zero_copy_only=False)

    def lengths(self, name: str) -> np.ndarray:
        """How many values each row of a column of lists has: (n,) int64, 0 where there is no list."""
        return self.arrays[name].value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)

    def owners(self, name: str) -> np.ndarray:
        """For each value of a column of lists the row that it belongs to."""
        return np.repeat(np.arange(len(self.arrays[name])), self.lengths(name))

    def bytes_of(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """All bytes of a binary column, uint8, and where each value starts and the last one ends, (n + 1,) int64."""
        values = self.arrays[name]
        _, offsets, data = values.buffers()
        if offsets is None or not len(values):
            return np.empty(0, np.uint8), np.zeros(1, np.int64)
        ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
        return np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]], ends - ends[0]


def check_schema(path: str, found: Iterable[Any], expected: Iterable[Any]) -> Iterator[Problem]:
    """Yields a problem if a file has not the columns that it must have, in name, type or order."""
    there, wanted = dict(_types(found)), dict(_types(expected))
    wanted = {name: kind for name, kind in wanted.items() if name in there or not name.startswith(LATER)}
    for name in (*wanted, *there):
        if there.get(name) != wanted.get(name):
            words = f"has the column {plain(name)} as {plain(there.get(name, 'none'))}, and should have it as "
            yield Problem("other columns", f"{path} {words}{wanted.get(name, 'none')}")
            return
    if list(there) != list(wanted):
        yield Problem("columns in another order", f"{path} has its columns in another order: {plain(', '.join(there))}")


def check_footer(path: str, found: Mapping[str, str], digests: Mapping[str, str]) -> Iterator[Problem]:
    """Yields a problem if a file says that it was written by another program, configuration or model.

    Args:
        path: of the file.
        found: what this project wrote into its footer.
        digests: of the run's configuration and model, by what files call them.
    """
    version = found.get("schema_version")
    if version != str(SCHEMA_VERSION):
        words = f"{path} has the schema version {plain(str(version))}, and this program reads {SCHEMA_VERSION}"
        yield Problem("file of another schema version", words)
    for name, digest in digests.items():
        if found.get(name) != digest:
            what = name.removesuffix("_digest")
            yield Problem(f"file of another {what}", f"{path} was written with another {what} than run.json says")


def check_empty(path: str, columns: Columns) -> Iterator[Problem]:
    """Yields a problem if a column has no value in some row, and must have one in each."""
    for name, values in columns.arrays.items():
        if values.null_count and name not in MAY_BE_NULL and not name.startswith("maps[].metrics."):
            yield Problem("rows without a value", f"{path} has {values.null_count} rows without a value of {name}")
            return


def check_rows(columns: Columns, rules: Rules) -> Iterator[Problem]:
    """Yields a problem for each image that breaks a rule; `{}` in what is said of it stands for its uri."""
    uris = columns.arrays["uri"]
    for bad, words in rules:
        for row in np.flatnonzero(bad):
            yield Problem(words.format("an image"), words.format(plain(uris[int(row)].as_py())))


def check_maps(columns: Columns, rules: Rules) -> Iterator[Problem]:
    """Yields a problem for each map that breaks a rule."""
    owners = columns.owners("maps")
    for bad, words in rules:
        for row in np.flatnonzero(bad):
            yield describe_map(columns, int(owners[row]), int(row), words)


def describe_map(columns: Columns, owner: int, row: int, words: str) -> Problem:
    """What is wrong with one map; `owner` is the row of its image."""
    uri, method, target = (
        columns.arrays[name][at].as_py()
        for name, at in (("uri", owner), ("maps[].method", row), ("maps[].target", row))
    )
    return Problem(f"map that {words}", f"the {plain(method)} map of {plain(uri)} for class {target} {words}")


def image_rules(columns: Columns) -> Rules:
    """What must hold for the record of every image."""
    yield (columns.numbers("width") < 1) | (columns.numbers("height") < 1), "the size of {} is not of a pixel or more"
    digests = columns.words("content_sha256")
    bad = np.array([re.fullmatch("[0-9a-f]{64}", digest) is None for digest in digests], bool)
    yield bad, "the content_sha256 of {} is no SHA-256"
    bad = ~np.isin(np.array(columns.words("view.mode"), object), RESIZES)
    for name in ("width", "height", "scale_x", "scale_y"):
        bad |= ~_is_finite(columns.numbers(f"view.{name}"), above=0.0)
    bad |= ~np.isfinite(columns.numbers("view.offset_x") + columns.numbers("view.offset_y"))
    yield bad, "the view of {} is none that an image can have"


def logit_rules(columns: Columns, n_classes: int | None, best: int | None) -> Rules:
    """What must hold for the logits of every image.

    Args:
        columns: of records.
        n_classes: L, if it is known.
        best: how many of the best logits --logits asks for; None for all.
    """
    lengths, has_classes = columns.lengths("logits"), columns.has("logit_classes")
    bad = np.zeros(columns.n_rows, bool)
    bad[columns.owners("logits")[~np.isfinite(columns.numbers("logits[]"))]] = True
    yield bad, "the logits of {} are not finite numbers"
    every = ~has_classes & (lengths == (n_classes or np.maximum(lengths, 1))) & (lengths <= (best or np.inf))
    some = has_classes & (lengths == best) & (columns.lengths("logit_classes") == lengths)
    yield ~(every | some), "the logits of {} are not one a class, nor the best ones with their classes"
    classes, owners = columns.numbers("logit_classes[]"), columns.owners("logit_classes")
    bad = np.zeros(columns.n_rows, bool)
    bad[owners[_is_repeated(classes, owners)]] = True
    bad[owners[(classes < 0) | (classes >= (n_classes or np.inf))]] = True
    yield bad, "the logits of {} are of a class twice, or of one that the model does not have"
    if set(SURENESS) <= set(columns.arrays):
        yield from _sureness_rules(columns, (every | some) & ~bad, n_classes)


def _sureness_rules(columns: Columns, whole: np.ndarray, n_classes: int | None) -> Rules:
    """What must hold for what is said of a prediction; `whole` tells whose logits are as they should be."""
    predicted, runner_up = columns.numbers("predicted"), columns.numbers("runner_up")
    bad = whole & columns.has("predicted") & (_logits_of(columns, predicted) < _largest_logits(columns))
    yield bad, "the class that {} is predicted to be is not the one with the highest logit"
    limit = n_classes or np.inf
    bad = columns.has("runner_up") & ~((runner_up >= 0) & (runner_up < limit) & (runner_up != predicted))
    yield bad, "the second best class of {} is the best one, or one that the model does not have"
    first, second = columns.numbers("confidence"), columns.numbers("runner_up_confidence")
    bad = columns.has("confidence") & ~_is_between(first, 1 + 1e-6)
    bad |= columns.has("runner_up_confidence") & ~_is_between(second, first + 1e-6)
    yield bad, "the confidence of {} is outside of [0, 1], or below that of the second best class"
    most = math.log(n_classes or np.inf) if n_classes != 1 else math.log(2)
    bad = columns.has("entropy") & ~(_is_between(columns.numbers("entropy"), most + 1e-4))
    yield bad, "the entropy of {} is not between 0 and the logarithm of the number of classes"
    has = {name: columns.has(name) for name in SURENESS}
    bad = (has["confidence"] != has["entropy"]) | (has["runner_up"] != has["runner_up_confidence"])
    bad |= (has["runner_up"] & ~has["confidence"]) | (has["confidence"] & ~has["predicted"])
    yield bad, "of {} only a part is known of how sure the model is"


def _logits_of(columns: Columns, classes: np.ndarray) -> np.ndarray:
    """The logit of one class of each image, -inf where it is not stored: (n,) float64."""
    found, lengths, owners = (
        np.full(columns.n_rows, -np.inf),
        columns.lengths("logits"),
        columns.owners("logit_classes"),
    )
    places = np.where(columns.has("logit_classes"), -1, classes)  # among an image's logits
    same = np.flatnonzero(columns.numbers("logit_classes[]") == classes[owners])
    places[owners[same]] = same - _starts(columns, "logit_classes")[owners[same]]
    there = (places >= 0) & (places < lengths)
    found[there] = columns.numbers("logits[]")[(_starts(columns, "logits")[there] + places[there]).astype(np.int64)]
    return found


def _largest_logits(columns: Columns) -> np.ndarray:
    """The highest logit of each image, -inf where there is none: (n,) float64."""
    largest, there = np.full(columns.n_rows, -np.inf), columns.lengths("logits") > 0
    if there.any():
        largest[there] = np.maximum.reduceat(columns.numbers("logits[]"), _starts(columns, "logits")[there])
    return largest


def _starts(columns: Columns, name: str) -> np.ndarray:
    """Where each row's values begin in a column of lists: (n,) int64."""
    lengths = columns.lengths(name)
    return np.cumsum(lengths) - lengths


def map_rules(columns: Columns, n_classes: int | None, dtype: str | None, has_overlays: bool | None) -> Rules:
    """What must hold for every map.

    Args:
        columns: of records.
        n_classes: L, if it is known.
        dtype: how the run's maps are stored, if it is known.
        has_overlays: whether each map has an overlay, or none has; None where some have.
    """
    owners, limit = columns.owners("maps"), n_classes or np.inf
    target, rank = columns.numbers("maps[].target"), columns.numbers("maps[].rank")
    methods = columns.arrays["maps[].method"].dictionary_encode().indices.to_numpy()
    yield _is_repeated(methods, target, owners), "is there twice"
    yield (target < 0) | (target >= limit), "is of a class that the model does not have"
    yield (rank < -1) | (rank >= limit), "has a rank that no class can have"
    yield ~np.isfinite(columns.numbers("maps[].score")), "has a score that is not a finite number"
    yield ~_is_between(columns.numbers("maps[].probability"), 1.0 + 1e-6), "has a probability outside of [0, 1]"
    yield ~_is_finite(columns.numbers("maps[].total")), "has a total that is not a finite number of at least 0"
    yield ~_is_between(columns.numbers("maps[].negative_share"), 1.0), "has a negative share outside of [0, 1]"
    right, bottom = (_rounded_up(columns.numbers(name)[owners]) for name in ("width", "height"))
    x, y = columns.numbers("maps[].peak_x"), columns.numbers("maps[].peak_y")
    yield ~(_is_between(x, right) & _is_between(y, bottom)), "has its peak outside of the image"
    yield _boxes_outside(columns, right, bottom), "has a box that does not lie in the image"
    if set(ATTENTION) <= set(columns.arrays):
        yield from _attention_rules(columns, right, bottom)
    yield from _value_rules(columns, dtype)
    for name in columns.arrays:
        if name.startswith("maps[].metrics."):
            bad = columns.has(name) & ~np.isfinite(columns.numbers(name))
            yield bad, f"has a metric {name.rsplit('.', 1)[-1]} that is not a finite number"
    if has_overlays is not None:
        words = (
            "has no overlay, and the run's options ask for one"
            if has_overlays
            else "has an overlay, and the run's options ask for none"
        )
        yield columns.has("maps[].overlay") != has_overlays, words


def _attention_rules(columns: Columns, right: np.ndarray, bottom: np.ndarray) -> Rules:
    numbers = {name: columns.numbers(f"maps[].{name}") for name in (*ANYWHERE, *INSIDE, "top2_cc")}
    has = {name: columns.has(f"maps[].{name}") for name in numbers}
    bad = has["com_x"] & ~_is_between(numbers["com_x"], right) | has["com_y"] & ~_is_between(numbers["com_y"], bottom)
    yield bad, "has its centre of mass outside of the image"
    for name in SHARES:
        yield has[name] & ~_is_between(numbers[name], 1.0), f"has a {name} outside of [0, 1]"
    bad = has["border_ratio"] & ~_is_finite(numbers["border_ratio"])
    yield bad, "has a border_ratio that is not a finite number of at least 0"
    bad = has["top2_cc"] & ~((numbers["top2_cc"] >= -1) & (numbers["top2_cc"] <= 1))
    yield bad, "has a top2_cc outside of [-1, 1]"
    yield has["corner"] & ~_is_between(numbers["corner"], 3), "has a corner that is none of the four"
    cells = columns.numbers("maps[].height").astype(np.float64) * columns.numbers("maps[].width")
    bad = has["peak_cell"] & ~_is_between(numbers["peak_cell"], cells - 1)
    bad |= has["components50"] & ~((numbers["components50"] >= 1) & (numbers["components50"] <= cells))
    yield bad & (cells > 0), "has a peak or regions beyond its cells"
    anywhere, inside = ([has[name] for name in names] for names in (ANYWHERE, INSIDE))
    in_part = [np.logical_or.reduce(group) & ~np.logical_and.reduce(group) for group in (anywhere, inside)]
    bad = in_part[0] | in_part[1] | (inside[0] & ~anywhere[0])
    yield bad, "has only a part of the numbers that tell where its attention lies"
    bad = anywhere[0] & (columns.numbers("maps[].total") == 0)
    yield bad, "is nowhere positive, and has numbers that tell where its attention lies"


def _value_rules(columns: Columns, dtype: str | None) -> Rules:
    yield ~_is_finite(columns.numbers("maps[].scale")), "has a scale that is not a finite number of at least 0"
    height, width = columns.numbers("maps[].height").astype(np.int64), columns.numbers("maps[].width")
    dtypes = np.array(columns.words("maps[].dtype"), object)
    other = ~np.isin(dtypes, [dtype] if dtype else list(MAP_DTYPES.values()))
    yield other, "is stored as another type than the run's --map-dtype"
    data, ends = columns.bytes_of("maps[].data")
    halves = dtypes == MAP_DTYPES["float16"]
    wrong = (height < 1) | (width < 1) | (np.diff(ends) != height * width * np.where(halves, 2, 1))
    yield wrong & ~other, "has not as many values as its size says"
    largest = _largest_halves(data, ends, halves & ~wrong)
    yield largest >= HALF_INFINITE, "holds values that are not finite numbers"
    yield (largest > HALF_ONE) & (largest < HALF_INFINITE), "holds values beyond its scale"


def _largest_halves(data: np.ndarray, ends: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """The largest magnitude of each of these maps, as the bits of a float16; 0 for others: (n,) uint16."""
    largest = np.zeros(len(maps), np.uint16)
    if maps.all() and len(maps):
        largest[:] = np.maximum.reduceat(_magnitudes(data), ends[:-1] // 2)
        return largest
    for row in np.flatnonzero(maps):
        largest[row] = _magnitudes(data[ends[row] : ends[row + 1]]).max()
    return largest


def _magnitudes(data: np.ndarray) -> np.ndarray:
    return np.frombuffer(data.tobytes(), "<u2") & 0x7FFF


def _boxes_outside(columns: Columns, right: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Which maps have a box that is none, or not in the image: (n,) bool."""
    has, lengths = columns.has("maps[].box"), columns.lengths("maps[].box")
    bad = has & (lengths != 4)
    numbers = columns.numbers("maps[].box[]")[np.repeat(lengths == 4, lengths)]
    x, y, w, h = numbers.astype(np.float64).reshape(-1, 4).T
    whole = has & ~bad
    bad[whole] = ~((x >= 0) & (y >= 0) & (w > 0) & (h > 0) & (x + w <= right[whole]) & (y + h <= bottom[whole]))
    return bad


def _types(fields: Iterable[Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Names and types of all columns, those inside of lists and structs included."""
    for each in fields:
        name, kind = above + each.name, each.type
        while str(kind).startswith("list<"):
            yield name, "a list"
            name, kind = f"{name}[]", kind.value_type
        if str(kind).startswith("struct<"):
            yield name, "a struct"
            yield from _types((kind.field(i) for i in range(kind.num_fields)), f"{name}.")
        else:
            yield name, str(kind)


def _is_repeated(*keys: np.ndarray) -> np.ndarray:
    """Which rows have the keys of another one that sorts ahead of them: (n,) bool."""
    order = np.lexsort(keys)
    repeated = np.zeros(len(order), bool)
    repeated[order[1:]] = np.all([np.diff(key[order]) == 0 for key in keys], axis=0)
    return repeated


def _is_between(values: np.ndarray, most: float | np.ndarray) -> np.ndarray:
    return (values >= 0) & (values <= most)


def _is_finite(values: np.ndarray, above: float | None = None) -> np.ndarray:
    """Which are finite, and at least 0 or above a number: (n,) bool."""
    return np.isfinite(values) & ((values >= 0) if above is None else (values > above))


def _rounded_up(sizes: np.ndarray) -> np.ndarray:
    """How far a position in the image may be, which was rounded to float32."""
    return sizes * (1 + 1e-6) + 1e-3
