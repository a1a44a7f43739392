"""Files are told in the order of sorted uris, all of them and each once, from folders and from pages of a store."""

from __future__ import annotations

import bisect
import itertools
import os
import tempfile
import threading
import tracemalloc
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import paging, storage
from pipeline.paging import Page, Span, walk_keys
from pipeline.walking import _Everything, _Matching, glob_files, walk_files

ODD_NAMES = (
    "two words.jpg",
    "50%.jpg",
    "%20.jpg",
    "a#b.jpg",
    "what?.jpg",
    "a&b=c+d.jpg",
    "-rf.jpg",
    "[1].jpg",
    "star*.jpg",
    "back\\slash.jpg",
    "caf\u00e9.jpg",  # one character
    "cafe\u0301.jpg",  # two: another name
    "漢字 😀.jpg",
    "dots..jpg",
    ".hidden.jpg",
    "'quoted\".jpg",
    "x.jpg/inside a folder that is called like an image.jpg",
    "100%/d#e/[f]/g?.jpg",
)
NEW_LINE = "new\nline.jpg"  # moto does not take it

# Names that sort differently with and without a slash behind them, and by code points and by UTF-16
NAMES = st.sampled_from(
    ["a", "a.b", "a-", "a0", "b", "B", "é", "e\u0301", "\uffee", "😀", " ", "a\n", "[x]", "#", "%41"]
)
TREES = st.sets(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=25)


def _files_of(tree: Iterable[str]) -> list[str]:
    """The names of a tree that can be files beside the others."""
    names = set(tree)
    folders = {name[:i] for name in names for i, sign in enumerate(name) if sign == "/"}
    return sorted(names - folders)


def _make(folder: str | Path, names: Iterable[str]) -> None:
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def _below(folder: str | Path) -> list[str]:
    return sorted(f"{where}/{name}" for where, _, names in os.walk(folder) for name in names)


# Local folders


@settings(max_examples=60, deadline=None)
@given(TREES)
def test_a_local_folder_is_told_as_all_its_files_sorted(tree: set[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _make(folder, _files_of(tree))
        assert list(walk_files(folder)) == sorted(f"{folder}/{name}" for name in _files_of(tree))


PARTS = st.sampled_from(
    ["*", "**", "a*", "?", "[ab]", "[!a]*", "*b", "a", "a.b", "[[]x]", "[", "*.*", "é", "[]x]", "[!]", "[a-]?"]
)


@settings(max_examples=150, deadline=None)
@given(TREES, st.lists(PARTS, min_size=1, max_size=4).map("/".join))
def test_a_pattern_matches_locally_what_fsspec_matches(tree: set[str], pattern: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _make(folder, _files_of(tree))
        found = fsspec.filesystem("file").glob(f"{folder}/{pattern}", detail=True)
        expected = sorted(path for path, info in found.items() if info["type"] == "file")
        assert list(glob_files(f"{folder}/{pattern}")) == expected


def test_a_folder_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert list(walk_files(str(tmp_path / "no"))) == []
    assert list(glob_files(str(tmp_path / "no" / "*"))) == []
    (tmp_path / "file").touch()
    assert list(walk_files(str(tmp_path / "file"))) == []


def test_the_ends_of_slashes_do_not_matter(tmp_path: Path) -> None:
    _make(tmp_path, ["a/x.jpg"])
    for spelling in (f"{tmp_path}/", f"{tmp_path}//", f"file://{tmp_path}", f"{tmp_path}/a/.."):
        assert list(walk_files(spelling)) == [f"{tmp_path}/a/x.jpg"]


def test_the_root_of_a_machine_can_be_walked() -> None:
    assert all(uri.startswith("/") and not uri.startswith("//") for uri in itertools.islice(walk_files("/"), 20))


def test_links_to_folders_are_followed_and_each_real_folder_comes_once(tmp_path: Path) -> None:
    _make(tmp_path / "elsewhere", ["deep/1.jpg", "2.jpg"])
    _make(tmp_path / "set", ["m/3.jpg"])
    top = tmp_path / "set"
    (top / "a").symlink_to(tmp_path / "elsewhere" / "deep")  # comes first, so that `z` leaves it out
    (top / "z").symlink_to(tmp_path / "elsewhere")
    (top / "b").symlink_to(top / "m")  # lies in the set itself
    (top / "m" / "up").symlink_to(tmp_path / "set")
    (top / "out").symlink_to(tmp_path)  # holds the set
    (top / "self").symlink_to("self")
    (top / "gone.jpg").symlink_to("nowhere")
    expected = ["a/1.jpg", "gone.jpg", "m/3.jpg", "out/elsewhere/2.jpg", "self"]
    assert list(walk_files(str(top))) == [f"{top}/{name}" for name in expected]
    assert list(glob_files(f"{top}/**/*.jpg")) == [f"{top}/{name}" for name in expected[:-1]]


def test_a_pattern_goes_through_links_to_folders_as_the_shell_does(tmp_path: Path) -> None:
    _make(tmp_path / "store", ["cats/1.jpg"])
    _make(tmp_path / "set", ["dogs/2.jpg"])
    (tmp_path / "set" / "cats").symlink_to(tmp_path / "store" / "cats")
    (tmp_path / "set" / "dogs2").symlink_to(tmp_path / "set" / "dogs")
    expected = [f"{tmp_path}/set/{name}" for name in ("cats/1.jpg", "dogs/2.jpg", "dogs2/2.jpg")]
    assert list(glob_files(f"{tmp_path}/set/*/*.jpg")) == expected
    assert list(glob_files(f"{tmp_path}/set/cats/*")) == expected[:1]


def _forbid(monkeypatch: pytest.MonkeyPatch, closed: Path) -> list[str]:
    """Makes a folder one that must not be read, also for root; the folders that were read."""
    scan, seen = os.scandir, []

    def forbidding(folder: str) -> object:
        seen.append(folder.rstrip("/"))
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", forbidding)
    return seen


def test_a_folder_that_cannot_be_read_is_an_error_and_not_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path, ["a/1.jpg", "b/2.jpg", "c/3.jpg"])
    _forbid(monkeypatch, tmp_path / "b")
    with pytest.raises(PermissionError, match=rf"{tmp_path}/b"):
        list(walk_files(str(tmp_path)))
    with pytest.raises(PermissionError, match=rf"{tmp_path}/b"):
        list(glob_files(f"{tmp_path}/*/*.jpg"))
    assert list(glob_files(f"{tmp_path}/[ac]/*.jpg")) == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/c/3.jpg"]


def test_lost_and_found_of_a_disk_that_only_root_may_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path, ["lost+found/x", "1.jpg"])
    _forbid(monkeypatch, tmp_path / "lost+found")
    assert list(walk_files(str(tmp_path))) == [f"{tmp_path}/1.jpg"]


def test_a_folder_that_goes_away_while_it_is_listed_is_no_error(tmp_path: Path) -> None:
    _make(tmp_path, ["a/1.jpg", "b/2.jpg"])
    walk = walk_files(str(tmp_path))
    assert next(walk) == f"{tmp_path}/a/1.jpg"
    (tmp_path / "b" / "2.jpg").unlink()
    (tmp_path / "b").rmdir()
    assert list(walk) == []


def test_only_folders_that_may_hold_matches_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(tmp_path, ["a1/x/1.jpg", "a2/x/2.jpg", "a2/y/3.jpg", "b/x/4.jpg", "a1/x/deep/5.jpg"])
    seen = _forbid(monkeypatch, tmp_path / "none")
    assert [Path(uri).name for uri in glob_files(f"{tmp_path}/a?/x/*.jpg")] == ["1.jpg", "2.jpg"]
    assert seen == [str(tmp_path), f"{tmp_path}/a1/x", f"{tmp_path}/a2/x"]


@pytest.mark.parametrize("pattern", ["/x/a**/*.jpg", "/x/**b"])
def test_two_stars_inside_a_name_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"'\*\*' must be a whole part"):
        list(glob_files(pattern))


def test_a_folder_is_entered_only_if_the_caller_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _make(tmp_path, ["a/1.jpg", "no/2.jpg", "b/no/3.jpg", "no.jpg"])
    asked: list[str] = []
    seen = _forbid(monkeypatch, tmp_path / "none")

    def enter(folder: str) -> bool:
        asked.append(folder)
        return not folder.endswith("/no")

    expected = [f"{tmp_path}/a/1.jpg", f"{tmp_path}/no.jpg"]
    assert list(walk_files(str(tmp_path), enter)) == expected
    assert asked == [f"{tmp_path}/{name}" for name in ("a", "b", "b/no", "no")]
    assert list(glob_files(f"{tmp_path}/**", enter)) == expected
    assert not [folder for folder in seen if folder.endswith("no")]


# Pages, without a store


class Pages:
    """A store of keys that tells them as Google and S3 do, in pages of some rows.

    Args:
        keys: of all objects.
        rows: a page.
        heeds_bounds: whether it begins where it is asked to; it must not matter.
        repeats: whether a folder that goes on behind the end of a page is told twice.
    """

    def __init__(self, keys: Iterable[str], rows: int = 3, heeds_bounds: bool = True, repeats: bool = False):
        self.keys, self.rows, self.heeds_bounds, self.repeats = sorted(keys), rows, heeds_bounds, repeats
        self.asked: list[tuple[Span, str | None]] = []

    def __call__(self, span: Span, token: str | None) -> Page:
        self.asked.append((span, token))
        names = self._names(span)
        first = names.index(token) if token else 0
        page, rest = names[first : first + self.rows], names[first + self.rows :]
        if self.repeats and self.rows > 1 and rest and page[-1].endswith("/"):
            rest = [page[-1], *rest]
        folders = [name for name in page if name.endswith("/")]
        return Page([name for name in page if not name.endswith("/")], folders, rest[0] if rest else None)

    def _names(self, span: Span) -> list[str]:
        begin = bisect.bisect_left(self.keys, max(span.prefix, span.start if self.heeds_bounds else ""))
        names = list(itertools.takewhile(lambda key: key.startswith(span.prefix), self.keys[begin:]))
        if not span.flat:
            names = list(dict.fromkeys(self._cut(key, len(span.prefix)) for key in names))
        return names

    @staticmethod
    def _cut(key: str, start: int) -> str:
        end = key.find("/", start)
        return key if end < 0 else key[: end + 1]

    def walk(self, prefix: str = "", at_once: int = 4) -> list[str]:
        choice = _Everything(f"x://b/{prefix}", None)
        return [uri.removeprefix("x://b/") for uri in walk_keys(self, "x://b/", prefix, choice, at_once)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    _be_small(monkeypatch)


def _be_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "LONG", 1)  # lists are cut up at once
    monkeypatch.setattr(paging, "MANY", 2)  # and folders put into groups
    monkeypatch.setattr(paging, "HELD", 100)  # and pages written to disk


@settings(max_examples=150, deadline=None)
@given(TREES, st.integers(1, 5), st.sampled_from([1, 2, 4, 16]), st.booleans(), st.booleans())
def test_keys_are_told_in_their_order_however_they_are_asked_for(
    tree: set[str], rows: int, at_once: int, heeds_bounds: bool, repeats: bool
) -> None:
    """Keys of a store may be folders of others at the same time: nothing is taken out of the tree."""
    with pytest.MonkeyPatch.context() as patch:
        _be_small(patch)
        assert Pages(tree, rows, heeds_bounds, repeats).walk(at_once=at_once) == sorted(tree)


NUMBERED = st.sets(
    st.tuples(
        st.sampled_from(["", "d/", "d/e/"]), st.sampled_from(["", "im_", "a"]), st.text("019af_/", max_size=5)
    ).map("".join)
).map(lambda keys: {key for key in keys if key and not key.endswith("/")})


@settings(max_examples=150, deadline=None)
@given(NUMBERED, st.integers(1, 5), st.sampled_from([2, 4, 16]), st.booleans(), st.booleans())
def test_folders_that_are_cut_at_numbers_and_hashes_lose_and_double_nothing(
    tree: set[str], rows: int, at_once: int, heeds_bounds: bool, is_deep: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _be_small(patch)
        pages = Pages(tree, rows, heeds_bounds)
        if is_deep:
            assert pages.walk(at_once=at_once) == sorted(tree)
        else:
            choice = _Matching("x://b/d/*", None)
            found = [uri.removeprefix("x://b/") for uri in walk_keys(pages, "x://b/", "d/", choice, at_once)]
            assert found == sorted(key for key in tree if key.startswith("d/") and key.count("/") == 1)


@settings(max_examples=100, deadline=None)
@given(TREES, st.lists(PARTS, min_size=1, max_size=4).map("/".join), st.sampled_from([1, 4]))
def test_a_pattern_matches_keys_as_it_matches_files(tree: set[str], pattern: str, at_once: int) -> None:
    names = _files_of(tree)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        _be_small(patch)
        _make(folder, names)
        choice = _Matching(f"x://b/{pattern}", None)
        prefix = choice.within(choice.root).removeprefix("x://b/")
        found = [uri.removeprefix("x://b/") for uri in walk_keys(Pages(names), "x://b/", prefix, choice, at_once)]
        assert found == [uri.removeprefix(f"{folder}/") for uri in glob_files(f"{folder}/{pattern}")]


@settings(max_examples=60, deadline=None)
@given(TREES, st.sampled_from([1, 4]))
def test_keys_of_folders_that_are_not_entered_are_left_out_also_of_flat_lists(tree: set[str], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _be_small(patch)
        choice = _Everything("x://b/", lambda folder: folder.rpartition("/")[2] != "a-")
        found = list(walk_keys(Pages(tree), "x://b/", "", choice, at_once))
    assert found == [f"x://b/{key}" for key in sorted(tree) if "a-" not in key.split("/")[:-1]]


@pytest.mark.usefixtures("small")
def test_a_folder_that_is_not_entered_is_not_asked_for() -> None:
    pages = Pages([f"{name}/{i}" for name in ("a", "no", "b", "c/no") for i in range(9)])
    choice = _Everything("x://b/", lambda folder: not folder.endswith("/no"))
    assert len(list(walk_keys(pages, "x://b/", "", choice, 64))) == 18
    assert not [span for span, _ in pages.asked if span.prefix.endswith("no/")]


def test_what_cannot_match_is_not_asked_for() -> None:
    keys = [
        f"{day}/{kind}/{i}.{end}"
        for day in ("d1", "d2", "x")
        for kind in ("in", "out")
        for i in range(9)
        for end in "jp"
    ]
    pages = Pages(keys, rows=5)
    choice = _Matching("x://b/d?/in/4*.j", None)
    assert list(walk_keys(pages, "x://b/", "d", choice)) == ["x://b/d1/in/4.j", "x://b/d2/in/4.j"]
    assert [span.prefix for span, _ in pages.asked] == ["d", "d1/in/4", "d2/in/4"]


def test_folders_are_asked_for_at_the_same_time() -> None:
    pages, meeting = Pages([f"{i}/{j}" for i in range(8) for j in range(2)]), threading.Barrier(8)

    def ask(span: Span, token: str | None) -> Page:
        if span.prefix:
            meeting.wait(20)  # fails unless eight are under way
        return pages(span, token)

    assert list(walk_keys(ask, "x://b/", "", _Everything("x://b/", None))) == [f"x://b/{key}" for key in pages.keys]


def test_one_large_folder_among_small_ones_is_not_read_page_after_page() -> None:
    large = [f"m/{i:02}/{j:02}" for i in range(30) for j in range(20)]
    pages = Pages([*large, *(f"{i}/x" for i in range(20))], rows=10)
    meeting, met = threading.Barrier(4), []

    def ask(span: Span, token: str | None) -> Page:
        if span.prefix.startswith("m/") and len(span.prefix) > 2 and not met:
            meeting.wait(20)  # four of its folders at once
            met.append(span)
        return pages(span, token)

    found = list(walk_keys(ask, "x://b/", "", _Everything("x://b/", None)))
    assert found == [f"x://b/{key}" for key in pages.keys]
    assert met


@pytest.mark.parametrize("pattern", ["**", "*"])
def test_a_folder_of_many_numbered_images_is_not_read_page_after_page(pattern: str) -> None:
    pages = Pages((f"im_{i:07}.jpg" for i in range(0, 90_000, 7)), rows=100)
    meeting, met = threading.Barrier(4), []

    def ask(span: Span, token: str | None) -> Page:
        if span.start and not token and not met:
            meeting.wait(20)
            met.append(span)
        return pages(span, token)

    found = list(walk_keys(ask, "x://b/", "", _Matching(f"x://b/{pattern}", None)))
    assert found == [f"x://b/{key}" for key in pages.keys]
    assert met
    assert len(pages.asked) < 2 * len(pages.keys) / 100


def test_a_folder_for_each_image_does_not_cost_a_request_for_each() -> None:
    pages = Pages((f"{i:05}/image.jpg" for i in range(5000)), rows=1000)
    assert len(pages.walk(at_once=16)) == 5000
    assert len(pages.asked) <= 5 * (1 + paging.MANY)


def test_memory_does_not_hold_the_list() -> None:
    def name(i: int) -> str:
        return f"{i:08}-image-of-something-with-a-name-of-its-own.jpg"

    def peak(count: int) -> int:
        def ask(span: Span, token: str | None) -> Page:
            first = int(token or bisect.bisect_left(range(count), span.start, key=name))
            return Page(
                [name(i) for i in range(first, min(first + 1000, count))],
                [],
                str(first + 1000) * (first + 1000 < count) or None,
            )

        tracemalloc.start()
        try:
            assert sum(1 for _ in walk_keys(ask, "x://b/", "", _Everything("x://b/", None), 4)) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(20_000)
    # What comes before its turn is kept at a tenth of its size; the 130,000 uris more would take 14 MB.
    assert peak(150_000) < few + 4_000_000


def test_a_request_that_fails_is_told_and_lets_the_threads_go() -> None:
    before, pages = count_listing_threads(), Pages([f"{i}/{j}" for i in range(8) for j in range(9)])

    def ask(span: Span, token: str | None) -> Page:
        if span.prefix == "5/" and token:
            raise OSError("the line is dead")
        return pages(span, token)

    told = []
    with pytest.raises(OSError, match="the line is dead"):
        told.extend(walk_keys(ask, "x://b/", "", _Everything("x://b/", None)))
    assert [uri[6] for uri in told] == [key[0] for key in pages.keys if key < "5/3"]
    _wait_for_threads(before)


def test_a_walk_that_is_given_up_lets_the_threads_go() -> None:
    before, pages = count_listing_threads(), Pages([f"{i}/{j}" for i in range(8) for j in range(9)])
    walk = walk_keys(pages, "x://b/", "", _Everything("x://b/", None))
    assert next(walk) == "x://b/0/0"
    walk.close()
    _wait_for_threads(before)


def count_listing_threads() -> int:
    """Those that `Pages` starts; what threads other tests of this process have left behind is not theirs."""
    return sum(thread.name == "listing" for thread in threading.enumerate())


def _wait_for_threads(count: int) -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("listing"):
            thread.join(20)
    assert count_listing_threads() <= count


@pytest.mark.parametrize("page", [Page(["b", "a"], [], None), Page([], ["b/", "a/"], None)])
def test_a_store_that_does_not_tell_names_in_their_order_is_refused(page: Page) -> None:
    with pytest.raises(OSError, match="make a manifest"):
        paging.check_order(page, "s3://bucket/x")


# Stores


@pytest.fixture(params=["local", "memory", "gcs", "s3"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder of each kind of store."""
    if request.param in ("gcs", "s3"):
        yield request.getfixturevalue(request.param)
    elif request.param == "local":
        yield str(tmp_path)
    else:
        uri = f"memory:///{uuid.uuid4().hex}"
        yield uri
        storage.remove_folder(uri)


def _fill(base: str, names: Iterable[str]) -> None:
    for name in names:
        storage.write_bytes(f"{base}/{name}", name.encode())


def test_odd_names_come_through_and_lead_to_their_files(base: str) -> None:
    names = [*ODD_NAMES] if base.startswith("s3") else [*ODD_NAMES, NEW_LINE]
    _fill(base, names)
    found = list(walk_files(base))
    assert found == sorted(f"{base}/{name}" for name in names)
    assert [storage.read_bytes(uri) for uri in found] == [uri.removeprefix(f"{base}/").encode() for uri in found]
    assert list(glob_files(f"{base}/**")) == found
    assert list(glob_files(f"{base}/*[[]*")) == [f"{base}/[1].jpg"]
    assert list(glob_files(f"{base}/100%/*/[[]f]/*")) == [f"{base}/100%/d#e/[f]/g?.jpg"]


@pytest.mark.usefixtures("small")
def test_folders_and_patterns_are_told_from_all_stores_alike(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "ROWS", 3)
    names = [f"c{i}{sign}d{j}/{k}.jpg" for i in range(3) for j in range(3) for k in range(2) for sign in "/-."]
    names += ["c1.jpg", "c1/x.jpg", "c1/d1/deep/er/y.jpg", "c2.d1.jpg"]
    _fill(base, names)
    assert list(walk_files(base)) == sorted(f"{base}/{name}" for name in names)
    assert list(walk_files(f"{base}/c1/")) == sorted(f"{base}/{name}" for name in names if name.startswith("c1/"))
    for pattern, matches in {
        "*.jpg": lambda name: "/" not in name,
        "c[12]/d?/1.jpg": lambda name: name[:3] in ("c1/", "c2/") and name[-6:] == "/1.jpg",
        "c1/**": lambda name: name.startswith("c1/"),
        "**/y.jpg": lambda name: name.endswith("/y.jpg"),
        "c1/**/d1/*.jpg": lambda name: name.startswith("c1/d1/") and name.count("/") == 2,
        "c1/x.jpg": lambda name: name == "c1/x.jpg",
        "nowhere/*": lambda name: False,
    }.items():
        assert list(glob_files(f"{base}/{pattern}")) == sorted(f"{base}/{name}" for name in names if matches(name)), (
            pattern
        )


@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_placeholders_of_folders_are_no_files(store: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(store)
    _fill(base, ["a/1.jpg", "empty.jpg"])
    storage.write_bytes(f"{base}/empty.jpg", b"")
    fs, path = storage.open_store(base)
    bucket, key, _ = fs.split_path(path)
    if store == "gcs":
        fs.pipe_file(f"{path}/a/", b"")
        assert fs.call("GET", "b/{}/o/{}", bucket, f"{key}/a/", json_out=True)["name"] == f"{key}/a/"
    else:
        fs.call_s3("put_object", Bucket=bucket, Key=f"{key}/a/", Body=b"")
    assert list(walk_files(base)) == [f"{base}/a/1.jpg", f"{base}/empty.jpg"]
    assert list(glob_files(f"{base}/*")) == [f"{base}/empty.jpg"]
    assert list(glob_files(f"{base}/**")) == [f"{base}/a/1.jpg", f"{base}/empty.jpg"]


@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_a_bucket_is_listed_whole_by_its_name_alone(store: str, request: pytest.FixtureRequest) -> None:
    base = request.getfixturevalue(store)
    _fill(base, ["1.jpg"])
    bucket = base.rsplit("/", 1)[0]
    assert f"{base}/1.jpg" in list(walk_files(bucket))
    assert f"{base}/1.jpg" in list(glob_files(f"{bucket}/*/1.jpg"))
    with pytest.raises(ValueError, match="bucket"):
        list(glob_files(f"{base.split('://')[0]}://buck*/1.jpg"))


@pytest.mark.parametrize("store", ["gcs", "s3"])
def test_a_bucket_that_is_not_there_is_an_error(store: str, request: pytest.FixtureRequest) -> None:
    scheme = request.getfixturevalue(store).split("://")[0]
    with pytest.raises(OSError, match="nobodys-bucket"):
        list(walk_files(f"{scheme}://nobodys-bucket/x"))
