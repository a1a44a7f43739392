"""`beamcam watch`: what it makes of markers, how much it reads, and when it ends."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline import RunError, logs, parquet, progress, storage, summary, watching
from pipeline.layout import RunLayout
from pipeline.records import Entry
from pipeline.summary import read_summary
from pipeline.watching import Sight, Watched, watch_run

FACTS = {"config_digest": "c", "model_digest": "m", "class_names": "null", "schema_version": "1"}


def begin(output: str, n_images: int = 10, shard_size: int = 4) -> RunLayout:
    """A run with a manifest and nothing else."""
    layout = RunLayout(output)
    facts = FACTS | {"n_images": str(n_images), "n_shards": str(-(-n_images // shard_size))}
    facts["config"] = json.dumps({"shard_size": shard_size})
    with tempfile.TemporaryDirectory() as folder:
        parquet.write_manifest(f"{folder}/1", [Entry(f"/{i}.jpg") for i in range(n_images)], shard_size, {})
        parquet.copy_manifest(f"{folder}/1", f"{folder}/2", facts)
        storage.write_file(layout.uri(layout.MANIFEST), f"{folder}/2")
    return layout


def commit(layout: RunLayout, *shards: int, worker: str = "a/1", at: float = 0, **kinds: int) -> None:
    """Markers of shards, which all have the same failures."""
    finished = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    marker = {"failures_by_type": kinds, "worker": worker, "finished": finished}
    for shard in shards:
        storage.write_bytes(layout.uri(layout.marker(shard)), json.dumps(marker).encode())


def finish(layout: RunLayout) -> None:
    counts = {"records": 7, "failures": 3, "overlays": 0, "inputs": 10, "shards": 3}
    words = {"config_digest": "c", "model_digest": "m", "class_names": None}
    storage.write_bytes(layout.uri(layout.SUMMARY), json.dumps(counts | words).encode())


def watch(layout: RunLayout, *, once: bool = False, stalled_after: float = 5.0) -> list[tuple[str, dict[str, Any]]]:
    """What is said, with a look every few milliseconds."""
    said: list[tuple[str, dict[str, Any]]] = []
    watch_run(layout.output, lambda line, **fields: said.append((line, fields)), once=once, interval=0.005,
              stalled_after=stalled_after)  # fmt: skip
    return said


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def counts(sight: Sight | None) -> tuple[int, ...]:
    assert sight is not None
    return sight.images_done, sight.images, sight.shards_done, sight.shards


@pytest.fixture(params=["local", "gcs", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path) -> str:
    return str(tmp_path / "run") if request.param == "local" else request.getfixturevalue(request.param)


def test_a_run_is_followed_from_before_its_beginning_to_its_end(anywhere: str) -> None:
    watched = Watched(RunLayout(anywhere))
    assert watched.look() is None
    layout = begin(anywhere)
    assert counts(watched.look()) == (0, 10, 0, 3)
    commit(layout, 2, **{"decode:Broken": 1})
    assert counts(watched.look()) == (2, 10, 1, 3)  # the last shard is a short one
    commit(layout, 0, worker="b/1")
    storage.write_bytes(layout.uri("shards/README.txt"), b"no marker")
    sight = watched.look()
    assert counts(sight) == (6, 10, 2, 3)
    assert (sight.failures, sight.failures_by_type, sight.workers, sight.is_complete) == (
        1,
        {"decode:Broken": 1},
        2,
        False,
    )
    commit(layout, 1)
    finish(layout)
    sight = watched.look()
    assert (counts(sight), sight.is_complete, sight.workers) == ((10, 10, 3, 3), True, 2)


def test_a_marker_is_read_once_and_few_at_a_look(tmp_path, monkeypatch) -> None:
    layout = begin(str(tmp_path), n_images=20, shard_size=2)
    commit(layout, *range(10), **{"read:A": 1})
    read: list[str] = []
    read_bytes = storage.read_bytes
    monkeypatch.setattr(watching, "READ", 4)
    monkeypatch.setattr(storage, "read_bytes", lambda uri, *limit: read.append(uri) or read_bytes(uri, *limit))
    watched = Watched(layout)
    sights = [watched.look() for _ in range(5)]
    assert [sight.images_done for sight in sights] == [20] * 5  # names alone tell that
    assert [sight.shards_read for sight in sights] == [4, 7, 10, 10, 10]
    assert [sight.failures for sight in sights] == [4, 7, 10, 10, 10]
    assert len(read) == len(set(read)) == 10
    assert "4 failures (4 x read:A) in 4 shards looked into" in sights[0].describe()
    assert sights[2].describe().endswith("10 failures (10 x read:A)")


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b'{"failures_by_type": 3}', b'{"failures_by_type": {"a": "x"}}', b"\xff", b"[" * 100_000,
     b'{"failures_by_type": {}, "worker": "a/1", "finished": "yesterday"}', b'{"failures_by_type": {"a": 1e999}}',
     b'{"failures_by_type": {"a": NaN}}', b'{"failures_by_type": {"a": -3}}',
     b'{"failures_by_type": {"a": %s}}' % (b"9" * 4300)],
)  # fmt: skip
def test_a_damaged_marker_is_a_shard_that_is_done_all_the_same(tmp_path, content: bytes) -> None:
    layout = begin(str(tmp_path))
    commit(layout, 0, **{"a:B": 2})
    storage.write_bytes(layout.uri(layout.marker(1)), content)
    sight = Watched(layout).look()
    assert (counts(sight), sight.failures, sight.shards_read) == ((8, 10, 2, 3), 2, 2)


def test_a_huge_marker_is_not_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(watching, "MAX_MARKER", 1000)
    layout = begin(str(tmp_path))
    commit(layout, 0, **{"x" * 2000: 1})
    assert Watched(layout).look().failures == 0


def test_a_run_that_begins_anew_is_counted_anew(tmp_path) -> None:
    layout = begin(str(tmp_path))
    commit(layout, 0, 1, **{"a:B": 1})
    watched = Watched(layout)
    assert counts(watched.look()) == (8, 10, 2, 3)
    storage.remove_folder(layout.uri("shards"))
    begin(str(tmp_path), n_images=9, shard_size=3)
    commit(layout, 2, worker="z/1")
    sight = watched.look()
    assert (counts(sight), sight.failures, sight.workers) == ((3, 9, 1, 3), 0, 1)


@pytest.mark.parametrize(
    ("n_images", "n_shards", "size"),
    [("many", "1", "4"), ("9" * 400, "1", "4"), ("-1", "1", "4"), ("1", str(2**53), "4"), ("1", "1", "1e999"),
     ("1", "1", "[" * 100_000), ("1", "1", "-4"), ("1", "1", "null")],
)  # fmt: skip
def test_a_damaged_manifest_is_told(tmp_path, n_images: str, n_shards: str, size: str) -> None:
    layout = begin(str(tmp_path))
    with tempfile.TemporaryDirectory() as folder:
        parquet.write_manifest(f"{folder}/1", [Entry("/1.jpg")], 4, {})
        facts = FACTS | {"n_images": n_images, "n_shards": n_shards, "config": f'{{"shard_size": {size}}}'}
        parquet.copy_manifest(f"{folder}/1", f"{folder}/2", facts)
        storage.write_file(layout.uri(layout.MANIFEST), f"{folder}/2")
    with pytest.raises(RunError, match=r"manifest of the run in .* is damaged"):
        Watched(layout).look()


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"{", b"[]", b"3", b'["records", "failures"]', b"\xff", b" " * 2000 + b"{}",
     b'{"records": 1e999, "failures": 3, "overlays": 0}', b'{"records": [], "failures": 3, "overlays": 0}'],
)  # fmt: skip
def test_a_damaged_summary_is_told_in_a_line(tmp_path, monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(summary, "MAX_JSON", 1000 if content.startswith(b" ") else summary.MAX_JSON)
    layout = begin(str(tmp_path))
    whole = {"config_digest": "c", "model_digest": "m", "class_names": None, "inputs": 10, "shards": 3}
    if content.endswith(b"0}"):
        content = json.dumps(whole | json.loads(content)).replace("Infinity", "1e999").encode()
    storage.write_bytes(layout.uri(layout.SUMMARY), content)
    with pytest.raises(RunError, match=r"^run\.json of .*") as caught:
        watch(layout)
    assert len(str(caught.value)) < 400


def test_a_summary_of_a_usual_size_is_read_whatever_its_limit_is_for(tmp_path, monkeypatch) -> None:
    layout = begin(str(tmp_path))
    finish(layout)
    size = len(storage.read_bytes(layout.uri(layout.SUMMARY)))
    monkeypatch.setattr(summary, "MAX_JSON", size)
    assert read_summary(layout)["records"] == 7
    monkeypatch.setattr(summary, "MAX_JSON", size - 1)
    with pytest.raises(RunError, match=r"larger than [0-9]+ bytes"):
        read_summary(layout)


# How fast


def test_a_rate_is_that_of_the_last_ten_minutes(tmp_path) -> None:
    layout, clock = begin(str(tmp_path), n_images=400, shard_size=4), Clock()
    watched, done = Watched(layout, clock), itertools.count()
    rates = []
    for shards in [0, *[5] * 10, *[1] * 20]:  # of 60 seconds each
        commit(layout, *itertools.islice(done, shards))
        sight = watched.look()
        rates.append(sight.images_per_second)
        clock.now += 60
    assert rates[5] == pytest.approx(20 / 60)
    assert rates[-1] == pytest.approx(4 / 60)
    assert sight.seconds_left == pytest.approx((400 - 280) * 60 / 4)


def test_a_run_that_stands_still_has_no_rate(tmp_path) -> None:
    layout, clock = begin(str(tmp_path)), Clock()
    commit(layout, 0, at=100)
    commit(layout, 1, at=200)
    watched = Watched(layout, clock)
    assert watched.look().images_per_second == pytest.approx(4 / 100)  # what the markers say
    clock.now += 10
    assert watched.look().images_per_second == pytest.approx(4 / 100)
    clock.now += 900
    sight = watched.look()
    assert (sight.images_per_second, sight.seconds_left) == (0, None)


@pytest.mark.parametrize("budget", [20, 500])
@pytest.mark.parametrize("order", ["by number", "any"])
def test_a_first_look_tells_the_rate_of_late_by_some_of_the_markers(tmp_path, monkeypatch, budget, order) -> None:
    monkeypatch.setattr(watching, "READ", budget)
    layout = begin(str(tmp_path), n_images=4000, shard_size=10)
    for shard in range(100):  # an hour ago, and then one every ten seconds
        place = shard if order == "by number" else 37 * shard % 100
        commit(layout, place, at=0 if shard < 60 else 3600 + 10 * shard)
    sight = Watched(layout).look()
    assert sight.shards_read == min(budget, 100)
    assert sight.images_per_second == pytest.approx(1.0, rel=0.3 if order == "any" and budget == 20 else 1e-9)


def test_markers_of_older_runs_tell_no_rate(tmp_path) -> None:
    layout = begin(str(tmp_path))
    for shard in range(2):
        storage.write_bytes(layout.uri(layout.marker(shard)), b'{"failures_by_type": {}}')
    sight = Watched(layout).look()
    assert (sight.images_per_second, sight.workers, sight.shards_read) == (None, 0, 2)


# What is said, and when it ends


def test_a_complete_run_is_told_and_that_is_all(tmp_path) -> None:
    layout = begin(str(tmp_path))
    commit(layout, 0, 1, 2, **{"decode:Broken": 1})
    finish(layout)
    (line, fields), (last, counted) = watch(layout)
    assert line == "10 of 10 images (100.0 %), 3 of 3 shards, 1 worker, 3 failures (3 x decode:Broken)"
    assert fields == {
        "images": 10, "images_done": 10, "shards": 3, "shards_done": 3, "shards_read": 3, "failures": 3,
        "failures_by_type": {"decode:Broken": 3}, "workers": 1, "images_per_second": None, "seconds_left": None,
        "is_complete": True,
    }  # fmt: skip
    assert (last, counted) == (
        "the run is complete: 7 records, 3 failures, 0 overlays", {"records": 7, "failures": 3, "overlays": 0}
    )  # fmt: skip


def test_one_look_is_one_line_whatever_there_is(tmp_path) -> None:
    layout = RunLayout(str(tmp_path / "run"))
    with pytest.raises(RunError, match=r"holds no run: there is no manifest\.parquet"):
        watch(layout, once=True)
    begin(layout.output)
    commit(layout, 1)
    ((line, fields),) = watch(layout, once=True)
    assert line == "4 of 10 images (40.0 %), 1 of 3 shards, 1 worker, 0 failures"
    assert not fields["is_complete"]


@pytest.fixture
def working(tmp_path, monkeypatch) -> RunLayout:
    """A run that is a step further at each look: not there, begun, a shard more, and complete."""
    layout, look = RunLayout(str(tmp_path / "run")), Watched.look
    shards = (functools.partial(commit, layout, shard) for shard in range(3))
    steps = iter([lambda: None, lambda: begin(layout.output), *shards, lambda: finish(layout)])

    def look_after_a_step(watched: Watched) -> Sight | None:
        next(steps)()
        return look(watched)

    monkeypatch.setattr(Watched, "look", look_after_a_step)
    return layout


def test_lines_tell_of_each_look_and_of_the_wait_for_a_run(working, capsys) -> None:
    layout = working
    said = watch(layout)
    done = [fields["shards_done"] for _, fields in said[:-1]]
    assert done == sorted(done)
    assert set(done) == {0, 1, 2, 3}
    told = [(f["shards_done"], f["is_complete"]) for _, f in said[:-1]]
    assert told.count((3, True)) == 1
    assert capsys.readouterr().err == f"there is no run in {layout.output} yet: waiting for its manifest.parquet\n"


def test_a_terminal_gets_a_bar_with_the_same_numbers(working, capsys, monkeypatch) -> None:
    monkeypatch.setattr(watching, "shows_bars", lambda: True)
    said = watch(working)
    assert len(said) == 2
    shown = capsys.readouterr().err
    assert "4/10 images" in shown
    assert "2 of 3 shards, 1 worker, 0 failures" in shown


def test_no_bar_is_drawn_into_json(monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert progress.shows_bars()
    monkeypatch.setitem(logs._state, "settings", logs.LogSettings("json"))
    assert not progress.shows_bars()


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        (None, "there is no run that can be read"),
        ((0, 2), "2 of 3 shards are committed. If no job works on it"),
        ((0, 1, 2), "every shard is committed, and nobody has summed them up"),
    ],
)
def test_a_run_that_does_not_move_is_given_up(tmp_path, shards: tuple[int, ...] | None, words: str) -> None:
    layout = RunLayout(str(tmp_path / "run"))
    if shards is not None:
        begin(layout.output)
        commit(layout, *shards)
    with pytest.raises(RunError, match=rf"nothing has moved in .* for 0 s: {words}"):
        watch(layout, stalled_after=0.0001)


def test_a_store_that_does_not_answer_is_asked_again(tmp_path, capsys, monkeypatch) -> None:
    layout, looks = begin(str(tmp_path)), itertools.count()
    commit(layout, 0, 1, 2)
    look = Watched.look

    def look_with_trouble(watched: Watched) -> Sight | None:
        if (number := next(looks)) in (1, 2):
            raise OSError("503, and sig=abcdef")
        if number == 4:
            finish(layout)
        return look(watched)

    monkeypatch.setattr(Watched, "look", look_with_trouble)
    assert watch(layout)[-1][0].startswith("the run is complete")
    assert capsys.readouterr().err == 2 * "the run could not be looked at: 503, and sig=***\n"


def test_a_store_that_answers_now_and_then_makes_no_run_move(tmp_path, monkeypatch) -> None:
    layout, clock, looks = begin(str(tmp_path)), Clock(), itertools.count()
    look = Watched.look

    def look_now_and_then(watched: Watched) -> Sight | None:
        clock.now += 30
        if next(looks) % 2:
            raise OSError("503")
        return look(watched)

    monkeypatch.setattr(Watched, "look", look_now_and_then)
    monkeypatch.setattr(watching.time, "sleep", lambda _: None)
    with pytest.raises(RunError, match=r"nothing has moved in .* for 10 min 0 s"):
        list(watching._looks(Watched(layout, clock), 2.0, 600.0))
    assert next(looks) == 21


def test_a_look_that_takes_long_is_followed_by_a_longer_rest(tmp_path, monkeypatch) -> None:
    layout, clock, rests = begin(str(tmp_path)), Clock(), []
    marked = Watched._marked

    def mark_slowly(watched: Watched) -> set[int]:
        clock.now += 3
        return marked(watched)

    monkeypatch.setattr(Watched, "_marked", mark_slowly)
    monkeypatch.setattr(watching.time, "sleep", rests.append)
    looks: Iterator[Sight] = watching._looks(Watched(layout, clock), 2.0, 1000.0)
    for _ in range(3):
        next(looks)
    assert rests == [30, 30]


def looking(layout: RunLayout, monkeypatch, looks: list[tuple[float, bool]]) -> tuple[list[float], list[int]]:
    """The rests between looks of which each takes some seconds and may fail, and the shards that were seen.

    A shard more is committed before each of them; those behind the last fail at once.
    """
    clock, rests, coming, shards = Clock(), [], iter(looks), itertools.count()
    look = Watched.look

    def look_for(watched: Watched) -> Sight | None:
        took, is_good = next(coming, (0.0, False))
        clock.now += took
        if not is_good:
            raise OSError("503")
        commit(layout, next(shards))
        return look(watched)

    def rest(seconds: float) -> None:
        rests.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(Watched, "look", look_for)
    monkeypatch.setattr(watching.time, "sleep", rest)
    seen: list[int] = []
    with pytest.raises(RunError, match="nothing has moved"):
        seen.extend(sight.shards_done for sight in watching._looks(Watched(layout, clock), 60.0, 1800.0))
    return rests, seen


def test_a_look_that_hangs_and_fails_is_followed_by_no_longer_rest(tmp_path, monkeypatch) -> None:
    layout = begin(str(tmp_path), n_images=400)
    rests, seen = looking(layout, monkeypatch, [(1, True), (300, False), (0, False), (1, True)])
    assert rests[:4] == [60, 60, 60, 60]
    assert seen == [1, 2]
    assert len(rests) == 3 + 1800 // 60, "and a store that never answers again ends it"


def test_no_rest_is_longer_than_a_quarter_of_the_patience(tmp_path, monkeypatch) -> None:
    layout = begin(str(tmp_path), n_images=400)
    rests, seen = looking(layout, monkeypatch, [(300, True), (0, False), (300, True)])
    assert rests[:3] == [450, 60, 450]
    assert seen == [1, 2]


def test_a_hiccup_after_a_look_that_found_nothing_new_ends_no_watch(tmp_path, monkeypatch) -> None:
    layout, clock, steps = begin(str(tmp_path)), Clock(), iter(["", "", "503", "commit"])
    look = Watched.look

    def look_at(watched: Watched) -> Sight | None:
        clock.now += 350
        step = next(steps)
        if step == "503":
            raise OSError(step)
        if step == "commit":
            commit(layout, 0)
        return look(watched)

    monkeypatch.setattr(Watched, "look", look_at)
    monkeypatch.setattr(watching.time, "sleep", lambda _: None)
    looks = watching._looks(Watched(layout, clock), 2.0, 600.0)
    assert [next(looks).shards_done for _ in range(3)] == [0, 0, 1]


def test_failures_of_many_kinds_are_told_by_the_most_frequent() -> None:
    kinds = {f"read:Kind{i}": i + 1 for i in range(8)}
    sight = Sight(100, 50, 10, 5, 5, 36, kinds, 1, 2.0, False)
    assert sight.describe() == (
        "50 of 100 images (50.0 %), 2.0 images/s, 25 s left, 5 of 10 shards, 1 worker, 36 failures (8 x read:Kind7, "
        "7 x read:Kind6, 6 x read:Kind5, 5 x read:Kind4, 4 x read:Kind3, ...)"
    )
