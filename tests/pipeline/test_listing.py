"""Folders, globs and manifests become one list in a fixed order, or one line that says why not."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import listing, manifests, paging, progress, storage
from pipeline.errors import ConfigError
from pipeline.listing import LABEL_SOURCES, list_images
from pipeline.parquet import GROUP_ROWS
from pipeline.records import Entry


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def _listed(*specs: object, **options: object) -> tuple[list[Entry], int]:
    with list_images([str(spec) for spec in specs], **options) as found:
        entries = list(found)
        assert len(entries) == found.n_images
        return entries, found.n_duplicates


def _uris(*specs: object, **options: object) -> list[str]:
    return [entry.uri for entry in _listed(*specs, **options)[0]]


def _error(*specs: object) -> str:
    with pytest.raises(ConfigError) as caught:
        _listed(*specs)
    return str(caught.value)


@pytest.fixture
def manifest(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Writes a manifest into a folder of its own."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


# Folders, globs and single images


def test_a_folder_is_searched_to_any_depth_and_sorted(tmp_path: Path) -> None:
    _touch(tmp_path, "b.jpg", "a.jpg", "z/a.png", "c/d/e.webp", "10.jpg", "9.jpg")
    expected = ["10.jpg", "9.jpg", "a.jpg", "b.jpg", "c/d/e.webp", "z/a.png"]
    assert _uris(tmp_path) == [str(tmp_path / name) for name in expected]
    assert _uris(f"{tmp_path}/") == [str(tmp_path / name) for name in expected]


def test_a_folder_gives_image_files_only_whatever_the_case_of_their_suffix(tmp_path: Path) -> None:
    _touch(
        tmp_path, "a.JPG", "b.Jpeg", "c.tif", "notes.txt", "labels.csv", "jpg", "d.jpg.bak", ".DS_Store", "x.jpg.d/e"
    )
    assert _uris(tmp_path) == [str(tmp_path / name) for name in ("a.JPG", "b.Jpeg", "c.tif")]


def test_links_to_images_are_images(tmp_path: Path) -> None:
    _touch(tmp_path / "store", "1.jpg")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link.jpg").symlink_to(tmp_path / "store" / "1.jpg")
    assert _uris(tmp_path / "set") == [str(tmp_path / "set" / "link.jpg")]
    assert _uris(tmp_path / "set" / "*.jpg") == [str(tmp_path / "set" / "link.jpg")]


def test_a_folder_that_is_a_link_inside_a_folder_is_searched_too(tmp_path: Path) -> None:
    _touch(tmp_path / "store" / "cats", "1.jpg")
    _touch(tmp_path / "set", "dogs/2.jpg")
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "store" / "cats")
    assert _uris(tmp_path / "set") == [str(tmp_path / "set" / name) for name in ("cats/1.jpg", "dogs/2.jpg")]


def test_a_glob_takes_what_it_matches_whatever_the_suffix(tmp_path: Path) -> None:
    _touch(tmp_path, "b.img", "a.img", "c.jpg", "deep/d.img")
    assert _uris(tmp_path / "*.img") == [str(tmp_path / name) for name in ("a.img", "b.img")]
    assert _uris(tmp_path / "**" / "d.img") == [str(tmp_path / "deep" / "d.img")]
    assert _uris(tmp_path / "[bc].*") == [str(tmp_path / name) for name in ("b.img", "c.jpg")]


def test_a_name_with_brackets_that_is_there_is_no_glob(tmp_path: Path) -> None:
    _touch(tmp_path, "[1].png", "1.png", "set [a]/x.png")
    assert _uris(tmp_path / "[1].png") == [str(tmp_path / "[1].png")]
    assert _uris(tmp_path / "set [a]") == [str(tmp_path / "set [a]" / "x.png")]


def test_a_single_image_needs_no_known_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "photo", "b.jpg")
    monkeypatch.chdir(tmp_path)
    assert _uris("photo") == [str(tmp_path / "photo")]
    assert _uris("file://" + str(tmp_path / "b.jpg")) == [str(tmp_path / "b.jpg")]


def test_names_with_spaces_and_signs_are_kept(tmp_path: Path) -> None:
    names = ["a b.jpg", "grün 漢.jpg", "50%.jpg", "a#b.jpg"]
    _touch(tmp_path, *names)
    assert _uris(tmp_path) == sorted(str(tmp_path / name) for name in names)


def test_a_file_name_that_no_table_could_hold_is_told_before_anything_starts(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"")
    message = _error(tmp_path)
    assert "caf" in message
    assert "UTF-8" in message


def test_an_object_store_is_listed_as_a_folder_is() -> None:
    base = f"memory:///{uuid.uuid4().hex}"
    for name in ("b.jpg", "a/c.PNG", "notes.txt"):
        storage.write_bytes(f"{base}/{name}", b"")
    storage.write_bytes(f"{base}/list/m.txt", b"../b.jpg\nx.jpg\n")
    assert _uris(base) == [f"{base}/a/c.PNG", f"{base}/b.jpg"]
    assert _uris(f"{base}/*.jpg") == [f"{base}/b.jpg"]
    assert _uris(f"{base}/b.jpg") == [f"{base}/b.jpg"]
    assert _uris(f"{base}/list/m.txt")[1] == f"{base}/list/x.jpg"
    storage.remove_folder(base)


def test_specs_keep_their_order_and_a_repeated_uri_counts_once(tmp_path: Path) -> None:
    _touch(tmp_path, "b/2.jpg", "b/1.jpg", "a/3.jpg")
    entries, duplicates = _listed(tmp_path / "b", tmp_path / "a", tmp_path, tmp_path / "b/2.jpg")
    assert [entry.uri for entry in entries] == [str(tmp_path / name) for name in ("b/1.jpg", "b/2.jpg", "a/3.jpg")]
    assert duplicates == 4


def test_of_a_repeated_uri_the_first_mention_keeps_its_label(manifest: Callable[..., Path]) -> None:
    entries, duplicates = _listed(manifest("m.csv", "uri,label\na.jpg,cat\na.jpg,dog\nb.jpg,dog\n"))
    assert [(Path(entry.uri).name, entry.label) for entry in entries] == [("a.jpg", "cat"), ("b.jpg", "dog")]
    assert duplicates == 1


def test_an_entry_is_known_by_the_hash_of_its_uri(tmp_path: Path) -> None:
    _touch(tmp_path, "ü.jpg")
    (entry,), _ = _listed(tmp_path)
    assert entry.id == hashlib.sha256(str(tmp_path / "ü.jpg").encode()).hexdigest()[:32]


@pytest.mark.parametrize("seed", [0, 1])
def test_first_mentions_are_told_from_later_ones_however_far_apart(manifest: Callable[..., Path], seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 9000, 4 * GROUP_ROWS + 7).tolist()
    path = manifest("m.csv", "uri,label\n" + "".join(f"/x/{number},{i}\n" for i, number in enumerate(numbers)))
    first = {}
    for i, number in enumerate(numbers):
        first.setdefault(f"/x/{number}", str(i))
    entries, duplicates = _listed(path)
    assert [(entry.uri, entry.label) for entry in entries] == list(first.items())
    assert duplicates == len(numbers) - len(first)


def test_labels_are_counted_in_the_order_of_their_first_mention(manifest: Callable[..., Path]) -> None:
    path = manifest("m.csv", "uri,label\na,dog\nb,\nc,cat\nd,dog\na,cat\n")
    with list_images([str(path)]) as found:
        assert list(found.labels.items()) == [("dog", 2), ("cat", 1)]
        assert (found.n_images, found.n_duplicates) == (4, 1)


def test_memory_does_not_hold_the_list(manifest: Callable[..., Path]) -> None:
    def peak(count: int) -> int:
        path = manifest(f"{count}.csv", "uri,label\n" + "".join(f"/folder/of/{i},{i % 7}\n" for i in range(count)))
        tracemalloc.start()
        try:
            _ = list_images_and_leave(path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)  # what is made once
    few, many = peak(2 * GROUP_ROWS), peak(8 * GROUP_ROWS)
    # Hashes of 16 bytes, twice while they are merged; an entry alone would be some hundred.
    assert many - few < 6 * GROUP_ROWS * 60


def list_images_and_leave(path: Path) -> int:
    with list_images([str(path)]) as found:
        return found.n_images


def test_a_list_is_there_for_as_long_as_the_block_runs(tmp_path: Path) -> None:
    _touch(tmp_path, "a.jpg")
    with list_images([str(tmp_path)]) as found:
        assert [entry.uri for entry in found] == [entry.uri for entry in found] == [str(tmp_path / "a.jpg")]
    assert not Path(found.path).exists()


# What runs have written


def _run(folder: Path) -> None:
    _touch(folder, "manifest.parquet", "run.json", "shards/00000.json", "records/part-00000.parquet")
    _touch(folder, "overlays/ab/1.png", "overlays/cd/2.png", "failures/x.png", "source.png")


def test_what_a_run_has_written_is_not_input(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", "z/b.png")
    _run(tmp_path / "runs" / "monday")
    _run(tmp_path / "runs" / "deep" / "tuesday")
    names = ["a.png", "runs/deep/tuesday/source.png", "runs/monday/source.png", "z/b.png"]
    assert _uris(tmp_path) == [str(tmp_path / name) for name in names]
    assert _uris(tmp_path / "**" / "*.png") == [str(tmp_path / name) for name in names]
    assert _uris(tmp_path / "runs" / "monday") == [str(tmp_path / "runs/monday/source.png")]


def test_overlays_that_are_named_themselves_are_input(tmp_path: Path) -> None:
    _run(tmp_path / "run")
    overlays = [str(tmp_path / "run" / "overlays" / name) for name in ("ab/1.png", "cd/2.png")]
    assert _uris(tmp_path / "run" / "overlays") == overlays
    assert _uris(tmp_path / "run" / "overlays" / "*" / "*.png") == overlays


@pytest.mark.parametrize("missing", ["manifest.parquet", "shards/00000.json"])
def test_folders_that_have_the_names_of_a_runs_are_input_where_there_is_no_run(tmp_path: Path, missing: str) -> None:
    _run(tmp_path)
    (tmp_path / missing).unlink()
    assert len(_uris(tmp_path)) == 4


def test_the_overlays_of_the_run_to_come_are_not_input_even_before_its_first_shard_is_there(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", "out/overlays/ab/1.png", "other/overlays/2.png")
    output = str(tmp_path / "out")
    names = ["a.png", "other/overlays/2.png"]
    assert _uris(tmp_path, output=output) == [str(tmp_path / name) for name in names]
    assert _uris(tmp_path / "**", output=output) == [str(tmp_path / name) for name in names]


@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_what_a_run_has_written_to_an_object_store_is_not_even_listed(
    store: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = request.getfixturevalue(store)
    for name in ("manifest.parquet", "shards/00000.json", "overlays/ab/1.png", "source.png"):
        storage.write_bytes(f"{base}/run/{name}", b"x")
    storage.write_bytes(f"{base}/a.png", b"x")
    asked, ask = [], paging._PAGES[base.split("://")[0]]

    def list_page(fs: object, bucket: str, span: paging.Span, token: str | None) -> paging.Page:
        asked.append(span.prefix)
        return ask(fs, bucket, span, token)

    monkeypatch.setitem(paging._PAGES, base.split("://")[0], list_page)
    assert _uris(base) == [f"{base}/a.png", f"{base}/run/source.png"]
    assert [prefix for prefix in asked if "overlays" in prefix] == []
    assert len(asked) == 2


# Slow lists


def _told_while_listing(monkeypatch: pytest.MonkeyPatch, folder: Path, after: float) -> list[str]:
    told, was_told, walk = [], threading.Event(), listing.walk_files

    def slow(*args: object) -> Iterator[str]:
        yield from walk(*args)
        was_told.wait(20 if after == 0 else 0)

    monkeypatch.setattr(progress, "tell", lambda line: (told.append(line), was_told.set()))
    monkeypatch.setattr(listing, "walk_files", slow)
    monkeypatch.setattr(listing, "show_count", functools.partial(progress.show_count, after=after, interval=0.001))
    _listed(folder)
    return told


def test_a_list_that_takes_its_time_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "a.jpg", "b.jpg")
    told = _told_while_listing(monkeypatch, tmp_path, after=0)
    assert told
    assert set(told) <= {f"{count} images listed" for count in range(3)}


def test_a_list_that_is_there_at_once_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "a.jpg")
    assert _told_while_listing(monkeypatch, tmp_path, after=1000) == []


# Manifests


BOXES = ((1.0, 2.0, 3.5, 4.0), (0.0, 0.0, 10.0, 20.0))


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "parquet"])
def test_every_kind_of_manifest_gives_uris_labels_and_boxes(manifest: Callable[..., Path], suffix: str) -> None:
    rows = [
        {"uri": "sub/a.jpg", "label": "cat", "boxes": [list(box) for box in BOXES]},
        {"uri": "gs://bucket/b.jpg", "label": None, "boxes": None},
        {"uri": "/data/c d.jpg", "label": "7", "boxes": []},
    ]
    if suffix in ("csv", "tsv"):
        mark = "," if suffix == "csv" else "\t"
        boxes = [
            '"' + json.dumps(row["boxes"]).replace('"', '""') + '"' if row["boxes"] is not None else "" for row in rows
        ]
        lines = [mark.join((row["uri"], row["label"] or "", box)) for row, box in zip(rows, boxes, strict=True)]
        path = manifest(f"m.{suffix}", "\n".join([mark.join(("uri", "label", "boxes")), *lines]))
    elif suffix == "parquet":
        path = manifest("m.parquet", b"")
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path = manifest(f"m.{suffix}", "\n\n".join(json.dumps(row) for row in rows) + "\n")
    entries, duplicates = _listed(path)
    assert entries == [
        Entry(f"{path.parent}/sub/a.jpg", "cat", BOXES),
        Entry("gs://bucket/b.jpg", None, None),
        Entry("/data/c d.jpg", "7", ()),
    ]
    assert duplicates == 0


def test_a_text_manifest_has_a_uri_a_line_and_blank_lines_mean_nothing(manifest: Callable[..., Path]) -> None:
    path = manifest("m.txt", "\na.jpg\r\n\n  b c.jpg  \n\t\n/abs/d.jpg")
    assert _uris(path) == [f"{path.parent}/a.jpg", f"{path.parent}/b c.jpg", "/abs/d.jpg"]


@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.txt", "m.jsonl", "M.CSV"])
def test_a_byte_order_mark_is_not_part_of_the_first_name(manifest: Callable[..., Path], name: str) -> None:
    content = {"txt": "a.jpg", "jsonl": '{"uri": "a.jpg"}'}.get(name.rsplit(".", maxsplit=1)[-1], "uri\r\na.jpg\r\n")
    path = manifest(name, b"\xef\xbb\xbf" + content.encode())
    assert _uris(path) == [f"{path.parent}/a.jpg"]


def test_relative_uris_are_relative_to_the_manifest_and_not_to_the_working_directory(
    manifest: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manifest("m.txt", "x/a.jpg")
    monkeypatch.chdir(tmp_path)
    assert _uris("data/m.txt") == [str(path.parent / "x" / "a.jpg")]
    monkeypatch.chdir(path.parent)
    assert _uris("m.txt") == [str(path.parent / "x" / "a.jpg")]


def test_two_spellings_of_one_path_are_one_image(manifest: Callable[..., Path]) -> None:
    path = manifest("m.txt", "a.jpg\n./a.jpg\nsub/../a.jpg\n../data/a.jpg\n")
    entries, duplicates = _listed(path)
    assert [entry.uri for entry in entries] == [str(path.parent / "a.jpg")]
    assert duplicates == 3


def test_quoted_cells_may_hold_separators_and_line_ends(manifest: Callable[..., Path]) -> None:
    path = manifest("m.csv", 'label,uri\n"a ""big"", dog","x, y.jpg"\n')
    entries, _ = _listed(path)
    assert entries == [Entry(f"{path.parent}/x, y.jpg", 'a "big", dog')]


def test_a_json_line_may_hold_any_unicode(manifest: Callable[..., Path]) -> None:
    # Valid JSON: U+2028 ends a line for str.splitlines, not for JSON.
    path = manifest("m.jsonl", json.dumps({"uri": "a\u2028b.jpg"}, ensure_ascii=False) + "\n")
    assert _uris(path) == [f"{path.parent}/a\u2028b.jpg"]


def test_a_label_that_is_a_number_is_kept_as_its_text(manifest: Callable[..., Path]) -> None:
    path = manifest(
        "m.jsonl", '{"uri": "a.jpg", "label": 0}\n{"uri": "b.jpg", "label": 12}\n{"uri": "c.jpg", "label": ""}\n'
    )
    assert [entry.label for entry in _listed(path)[0]] == ["0", "12", None]


def test_labels_come_from_the_named_column_from_the_folder_or_from_nowhere(manifest: Callable[..., Path]) -> None:
    path = str(manifest("m.csv", 'uri,label,breed,boxes\ncats/a.jpg,cat,siam,"[[1, 2, 3, 4]]"\n'))
    found = {source: _listed(path, labels=source)[0][0] for source in LABEL_SOURCES}
    assert {source: entry.label for source, entry in found.items()} == {"column": "cat", "folder": "cats", "none": None}
    assert {entry.boxes for entry in found.values()} == {((1.0, 2.0, 3.0, 4.0),)}
    assert _listed(path, label_column="breed")[0][0].label == "siam"
    assert _listed(path, label_column="nowhere")[0][0].label is None


def test_the_folder_of_an_image_is_its_label_in_folders_too(tmp_path: Path) -> None:
    _touch(tmp_path, "cats/1.jpg", "dogs/deep/2.jpg")
    assert [entry.label for entry in _listed(tmp_path, labels="folder")[0]] == ["cats", "deep"]
    assert [entry.label for entry in _listed(tmp_path)[0]] == [None, None]


@pytest.mark.parametrize(
    "boxes",
    [
        "[1, 2, 3, 4]",
        "[[1, 2, 3]]",
        "[[1, 2, 3, 4, 5]]",
        '[["a", 1, 2, 3]]',
        "x",
        "5",
        '{"x": 1}',
        "[[1, 2, 3, null]]",
        "null",
    ],
)
def test_nonsense_for_boxes_is_told_with_its_row(manifest: Callable[..., Path], boxes: str) -> None:
    path = manifest(
        "m.jsonl", json.dumps({"uri": "a.jpg"}) + "\n" + json.dumps({"uri": "b.jpg", "boxes": boxes}) + "\n"
    )
    message = _error(path)
    assert "row 2 of the manifest" in message
    assert "no list of [x, y, width, height]" in message
    assert repr(boxes) in message


def test_of_a_parquet_manifest_only_the_columns_that_count_are_read(
    manifest: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = manifest("m.parquet", b"")
    pq.write_table(pa.table({"pixels": [b"x" * 10], "uri": ["/a"], "breed": ["siam"], "label": ["cat"]}), path)
    seen = []
    monkeypatch.setattr(manifests, "_entry", lambda row, *_: seen.append(row) or Entry(row["uri"]))
    _listed(path, label_column="breed")
    assert seen == [{"uri": "/a", "breed": "siam"}]


# Errors


def test_a_folder_that_cannot_be_read_is_told_and_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch(tmp_path, "a/1.jpg", "b/2.jpg")
    scan = os.scandir

    def forbidding(folder: object) -> object:
        if folder == f"{tmp_path}/b/":
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", forbidding)
    message = _error(tmp_path)
    assert f"{str(tmp_path)!r} cannot be listed: PermissionError" in message
    assert f"{tmp_path}/b" in message


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://me:hunter2@host/a.jpg",
        "ftp://me:hunter2@host/*.jpg",
        "https://host/a.jpg?X-Amz-Credential=me&X-Amz-Signature=hunter2",
        "https://account.blob.core.windows.net/c/a.jpg?sv=2024&sig=hunter2",
    ],
)
def test_a_uri_that_gives_a_secret_is_refused_without_repeating_it(manifest: Callable[..., Path], uri: str) -> None:
    for message in (_error(uri), _error(manifest("m.txt", f"a.jpg\n{uri}\n"))):
        assert "gives a password or a signature" in message
        assert "hunter2" not in message
        assert "host" in message or "account" in message


def test_a_uri_with_signs_that_is_no_secret_is_input(manifest: Callable[..., Path]) -> None:
    uris = ["gs://b/me@home.jpg", "gs://b/what?.jpg", "s3://b/a:b@c?token", "/a?sig=1@b:c.jpg"]
    assert _uris(manifest("m.txt", "\n".join(uris))) == uris


def test_a_store_that_fails_half_way_is_told(manifest: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(io.BytesIO):
        def read1(self, size: int = -1) -> bytes:
            if self.tell():
                raise ConnectionError("the line is dead")
            return super().read1(20)

    path = manifest("m.txt", "a.jpg\n" * 10_000)
    monkeypatch.setattr(storage, "open_file", lambda uri: Failing(path.read_bytes()))
    assert _error(path) == f"the manifest {str(path)!r} cannot be read: ConnectionError: the line is dead"


def test_a_manifest_without_the_column_uri_tells_which_it_has(manifest: Callable[..., Path]) -> None:
    message = _error(manifest("m.csv", "path,label\na.jpg,cat\n"))
    assert "needs a column 'uri', and row 1 has: path, label" in message
    assert "m.csv" in message
    assert "row 1 has: uri;label" in _error(manifest("s.csv", "uri;label\na.jpg;cat\n"))
    assert "row 2 has: 'b.jpg'" in _error(manifest("m.jsonl", '{"uri": "a.jpg"}\n"b.jpg"\n'))


@pytest.mark.parametrize(
    ("name", "content", "row", "value"),
    [
        ("m.csv", "uri,label\na.jpg,cat\n,dog\n", 2, "''"),
        ("m.csv", "label,uri\ncat\n", 1, "None"),
        ("m.csv", "uri,label\n   ,dog\n", 1, "''"),
        ("m.jsonl", '{"uri": "a"}\n{"uri": "b"}\n{"uri": null}\n', 3, "None"),
        ("m.jsonl", '{"uri": 17}\n', 1, "17"),
    ],
)
def test_a_row_without_a_uri_is_told_by_its_number(
    manifest: Callable[..., Path], name: str, content: str, row: int, value: str
) -> None:
    message = _error(manifest(name, content))
    assert f"row {row} of the manifest" in message
    assert f"has no uri: {value}" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [("m.csv", ""), ("m.csv", "uri,label\n"), ("m.txt", "\n \n"), ("m.jsonl", ""), ("m.tsv", "uri\n")],
)
def test_a_manifest_that_lists_nothing_is_told(manifest: Callable[..., Path], name: str, content: str) -> None:
    path = manifest(name, content)
    assert _error(path) == f"the manifest {str(path)!r} lists no image: it needs a line an image, with its uri"


def test_a_manifest_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert _error(tmp_path / "no.csv") == f"the manifest {str(tmp_path / 'no.csv')!r} is not there"
    assert "is not there" in _error("memory://nowhere/no.parquet")


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("m.csv", "uri\ngrün.jpg\n".encode("latin-1"), "utf-8"),
        ("m.txt", "a.jpg\n".encode("utf-16"), "utf-8"),
        ("m.jsonl", '{"uri": "ü"}'.encode("latin-1"), "utf-8"),
        ("m.jsonl", b'{"uri": "a.jpg"}\n{oops\n', "double quotes"),
        ("m.parquet", b"no parquet at all", "Parquet"),
        ("m.parquet", b"", "Parquet"),
    ],
)
def test_a_manifest_that_cannot_be_parsed_is_told(
    manifest: Callable[..., Path], name: str, content: bytes, hint: str
) -> None:
    message = _error(manifest(name, content))
    assert f"{name}' cannot be parsed: " in message
    assert hint in message


def test_a_broken_json_line_is_told_by_its_number(manifest: Callable[..., Path]) -> None:
    assert "row 2" in _error(manifest("m.jsonl", '{"uri": "a.jpg"}\n{oops\n'))


def test_a_folder_called_like_a_manifest_is_an_error_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "set.csv").mkdir()
    assert "cannot be read" in _error(tmp_path / "set.csv")


def test_a_folder_without_images_is_told_with_the_suffixes_that_count(tmp_path: Path) -> None:
    _touch(tmp_path, "a.txt", "b.pdf")
    message = _error(tmp_path)
    assert f"the folder {str(tmp_path)!r} holds no image file" in message
    assert ".jpeg, " in message
    assert "for other names give a glob or a manifest" in message


@pytest.mark.parametrize(
    "spec", ["nowhere", "nowhere/*.jpg", "nowhere.jpg", "memory://nowhere/*.jpg", "memory://nowhere"]
)
def test_what_matches_nothing_is_told_with_the_spec(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _error(spec) == (
        f"no image matches {spec!r}: check the path; a glob must be quoted, so that the shell leaves it alone"
    )


def test_one_empty_spec_among_others_is_told(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.jpg")
    assert "no image matches" in _error(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("spec", ["nostore://x/y", "nostore://x/*.jpg", "nostore://x/m.csv"])
def test_a_store_that_does_not_exist_is_told_by_the_spec(spec: str) -> None:
    assert "nostore" in _error(spec)
