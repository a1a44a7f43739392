"""Every kind of bad or odd input in one job: each one becomes what it must, and the run is whole."""

from __future__ import annotations

import collections
from pathlib import Path

import pytest

from tests.faults.corpus import (
    MAX_PIXELS,
    Row,
    manifest_kinds,
    path_kinds,
    run_job,
    to_markdown,
    try_manifests,
)
from tests.faults.images import image_kinds


def _wrong(rows: list[Row]) -> list[str]:
    wrong = (row for row in rows if not row.is_right)
    return [f"{row.name}: {row.found}, {row.message!r}; expected {row.expected} {row.says}" for row in wrong]


@pytest.mark.slow
def test_each_input_is_one_record_or_one_failure_of_the_right_kind(tmp_path: Path, tiny_model_path: str) -> None:
    rows, problems = run_job(tmp_path, Path(tiny_model_path))
    assert problems == []
    assert _wrong(rows) == []
    assert len(rows) > 250
    failures = [row for row in rows if row.found != "record"]
    assert all(len(row.message) > 10 for row in failures)
    assert {row.found.split(":")[0] for row in failures} == {"read", "decode"}


@pytest.mark.slow
def test_each_manifest_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    rows = try_manifests(tmp_path)
    assert _wrong(rows) == []
    for row in rows:
        if row.found == "refused":
            assert "\n" not in row.message
            assert len(row.message) < 500
            assert row.name in row.message or row.name == "half-a-letter.jsonl"  # which names the image


def test_kinds_have_names_of_their_own() -> None:
    names = [kind.name for kind in (*image_kinds(MAX_PIXELS), *path_kinds(), *manifest_kinds())]
    assert [name for name, count in collections.Counter(names).items() if count > 1] == []


def test_kinds_are_the_same_each_time() -> None:
    first, second = image_kinds(MAX_PIXELS), image_kinds(MAX_PIXELS)
    for one, other in zip(first[::5], second[::5], strict=True):
        assert one.build() == other.build(), one.name


def test_the_table_shows_what_went_wrong() -> None:
    table = to_markdown([Row("a|b", "record", "decode:BrokenImage", "x\ny"), Row("c", "record", "record", "1 x 1")])
    assert table.splitlines()[2:] == [
        r"| a\|b | decode:BrokenImage **expected record ** | x\ny |",
        "| c | record | 1 x 1 |",
    ]
