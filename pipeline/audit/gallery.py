"""The images that a report shows: what their records say, and small photographs of those that can still be read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline import storage
from pipeline.audit import phrases, views
from pipeline.audit.pictures import Thumbnail, data_uri, make_thumbnail
from pipeline.audit.views import Picture
from pipeline.errors import ImageError
from pipeline.observations import read_observations
from pipeline.patience import UnavailableError
from pipeline.reading import Run
from pipeline.wording import printable, without_secrets

PATIENCE = 8  # images in which a store may fail before the others are shown without photographs

_THREADS = 16
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Fact:
    """What a record says of an image that is to be shown."""

    uri: str
    label: int  # class index, -1 where there is none
    predicted: int
    confidence: float  # NaN unknown
    attention: np.ndarray  # (h, w) float32, over the image in full


def find_facts(run: Run, method: str, wanted: Collection[str]) -> dict[str, Fact]:
    """What the records say of some images, by id; ids become names of files, so what is no id is left out."""
    ids = {key for key in wanted if _ID.fullmatch(key)}
    facts: dict[str, Fact] = {}
    for some in read_observations(run, method, ids) if ids else ():
        for i, key in enumerate(some.ids.tolist()):
            facts[key.decode()] = Fact(
                some.uris[i], int(some.label[i]), int(some.predicted[i]), float(some.confidence[i]), some.maps[i]
            )
    return facts


def make_pictures(facts: Mapping[str, Fact], names: Sequence[str] | None, folder: str | None) -> dict[str, Picture]:
    """The images of facts, made small; those that are gone by now are shown by their maps alone.

    Args:
        facts: by id.
        names: of the classes.
        folder: of the report, which the photographs are written to; None keeps them in the page itself.
    """
    troubles = itertools.count(1)
    gave_up: list[str] = []

    def make(item: tuple[str, Fact]) -> tuple[str, Picture]:
        key, fact = item
        try:
            if gave_up:
                return key, _picture(fact, names, problem=gave_up[0])
            return key, _picture(fact, names, *_keep(make_thumbnail(fact.uri), key, folder))
        except UnavailableError as error:  # each takes minutes
            if next(troubles) >= PATIENCE:
                gave_up.append(f"not tried, since {PATIENCE} others could not be read")
            return key, _picture(fact, names, problem=_say(error))
        except (OSError, ImageError) as error:
            return key, _picture(fact, names, problem=_say(error))

    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(pool.map(make, facts.items()))


def _keep(thumbnail: Thumbnail, key: str, folder: str | None) -> tuple[str, tuple[int, int]]:
    """Where a page finds a photograph, and its size."""
    size = (thumbnail.width, thumbnail.height)
    if folder is None:
        return data_uri(thumbnail.jpeg, "jpeg"), size
    path = f"thumbs/{key}.jpg"
    storage.write_bytes(storage.join(folder, path), thumbnail.jpeg)
    return path, size


def _say(error: Exception) -> str:
    return printable(without_secrets(f"{type(error).__name__}: {error}"))[:200]


def _picture(
    fact: Fact,
    names: Sequence[str] | None,
    source: str | None = None,
    size: tuple[int, int] = (4, 3),
    problem: str | None = None,
) -> Picture:
    known = fact.label >= 0 and fact.predicted >= 0
    return Picture(
        printable(without_secrets(fact.uri)),
        phrases.file_name(fact.uri),
        source,
        problem,
        *size,
        attention=views.view_map(fact.attention, overlay=True) if fact.attention.any() else None,
        label=phrases.class_label(fact.label, names) if fact.label >= 0 else None,
        predicted=phrases.class_label(fact.predicted, names) if fact.predicted >= 0 else None,
        confidence=None if np.isnan(fact.confidence) else fact.confidence,
        right=fact.label == fact.predicted if known else None,
    )
