"""What a run is compared with: its folder, an accepted state, and the audits of earlier nights."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import storage
from pipeline.audit.baseline import (
    FINDINGS,
    accept,
    default_state,
    describe_baseline,
    describe_run,
    encode_state,
    pair_with,
    read_baseline,
    read_history,
)
from pipeline.audit.comparability import Facts, judge
from pipeline.audit.findings import Finding, Scope
from pipeline.errors import ConfigError, RunError
from pipeline.npz import read_arrays, write_arrays
from pipeline.reading import open_run
from pipeline.totals import read_sums
from tests.runs import METHODS, FakeRun, change_json

FINDING = Finding(
    "BC101", "warning", Scope(2, "c", "predicted"), 5.25, 4.0, 40, "c: looks at a corner", "look", "lift",
    region=(0.5, 0.5, 1.0, 1.0),
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run that was audited."""
    folder = tmp_path / "nights" / "2026-11-21"
    FakeRun(str(folder), n_images=12, overlays=False).write()
    (folder / "audit").mkdir()
    (folder / FINDINGS).write_text(json.dumps({"run": {"method": METHODS[0]}, "findings": [FINDING.to_dict()]}))
    return folder


def test_an_accepted_state_is_what_the_runs_folder_is(run: Path) -> None:
    target = accept(str(run))
    assert target == default_state(str(run)) == str(run.parent / "baseline.npz")
    of_state, of_folder = read_baseline(target), read_baseline(str(run))
    assert of_state.uri == target
    assert of_state.facts == of_folder.facts
    assert of_state.sums.to_bytes() == of_folder.sums.to_bytes() == read_sums(open_run(run)).to_bytes()
    assert of_state.findings == of_folder.findings == (FINDING,)
    assert of_state.findings[0].key == FINDING.key


def test_facts_are_what_run_json_and_the_manifest_say(run: Path) -> None:
    change_json(run / "run.json", activation_layer="relu", preprocess="tf", versions={"keras": "3"}, finished="today")
    facts = read_baseline(str(run)).facts
    assert (facts.run, facts.n_inputs, facts.n_shards, facts.method) == (str(run), 12, 3, METHODS[0])
    assert (facts.class_names, facts.layer, facts.preprocess, facts.resize) == (tuple("abcde"), "relu", "tf", "stretch")
    assert facts.versions == {"keras": "3"}
    assert Facts.from_dict(json.loads(json.dumps(facts.to_dict()))) == facts
    assert Facts.from_dict(facts.to_dict() | {"of a later version": 1}) == facts
    assert "model_digest" in facts.fingerprints()
    assert "class_names" not in facts.fingerprints()


@pytest.mark.parametrize("damaged", [{"inputs": "many"}, {"shards": [3]}, {"class_names": 3}, {"versions": 7}])
def test_a_damaged_run_json_is_told(damaged: dict[str, Any], run: Path) -> None:
    opened = open_run(run)
    opened.summary.update(damaged)
    with pytest.raises(RunError, match=r"run\.json of '.*2026-11-21' is damaged: "):
        Facts.of(opened, METHODS[0])


@pytest.mark.parametrize("uri", ["nowhere://x", "", "/etc", "a\nb"])
def test_a_state_may_name_any_run_and_none_but_a_run_is_read(uri: str, run: Path) -> None:
    baseline = read_baseline(accept(str(run)))
    hostile = dataclasses.replace(baseline, facts=dataclasses.replace(baseline.facts, run=uri))
    assert hostile.open_run() is None


def test_the_same_run_is_accepted_as_the_same_bytes(run: Path) -> None:
    first = Path(accept(str(run))).read_bytes()
    assert Path(accept(str(run), str(run.parent / "other.npz"))).read_bytes() == first


def test_accepting_moves_the_baseline_and_nothing_else_does(run: Path) -> None:
    accept(str(run))
    later = run.parent / "2026-11-22"
    FakeRun(str(later), n_images=20, overlays=False).write()
    assert read_baseline(default_state(str(later))).facts.run == str(run)
    accept(str(later))
    assert read_baseline(default_state(str(run))).facts.run == str(later)
    assert read_baseline(default_state(str(run))).findings is None, "it was not audited"


def test_another_method_has_sums_of_its_own(run: Path) -> None:
    target = accept(str(run), method=METHODS[1])
    assert read_baseline(target).sums.method == METHODS[1]
    assert read_baseline(str(run), METHODS[1]).sums.to_bytes() == read_baseline(target, METHODS[1]).sums.to_bytes()
    with pytest.raises(ConfigError, match=r"has sums of 'scorecam\(channels=32\)', not of 'gradcam'"):
        read_baseline(target, METHODS[0])


@pytest.mark.parametrize("name", ["nowhere", "nowhere.npz"])
def test_a_baseline_that_is_not_there_is_told(name: str, run: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no baseline|is neither a finished run nor a file"):
        read_baseline(str(run.parent / name))


def test_what_is_no_finished_run_is_not_accepted(run: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.npz, not to .*baseline\.json"):
        accept(str(run), str(run / "baseline.json"))
    (run / "run.json").unlink()
    with pytest.raises(RunError, match=r"holds no finished run"):
        accept(str(run))


def damage(state: bytes, **about: Any) -> bytes:
    arrays = read_arrays(state, 1 << 24)
    told = json.loads(arrays["about"].tobytes()) | about
    return write_arrays({**arrays, "about": np.frombuffer(json.dumps(told).encode(), np.uint8)})


def hostile_states(state: bytes) -> Iterator[bytes]:
    yield b""
    yield b"PK nonsense"
    yield state[: len(state) // 2]
    yield damage(state, version=2)
    yield damage(state, facts=[])
    yield damage(state, facts={"run": "/x"})
    yield damage(state, findings=[{"rule": "BC101"}])
    yield damage(state, findings=7)
    yield write_arrays({"about": np.zeros(3, np.uint8)})
    yield write_arrays({**read_arrays(state, 1 << 24), "sums": np.zeros(9, np.uint8)})
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array([{"a": 1}], dtype=object))  # a pickle, which would be run
    yield buffer.getvalue()


def test_a_damaged_or_hostile_state_is_refused_in_one_line(run: Path) -> None:
    target = Path(accept(str(run)))
    for data in list(hostile_states(target.read_bytes())):
        target.write_bytes(data)
        with pytest.raises(ConfigError, match=r"the baseline '.*baseline\.npz' cannot be read: ") as caught:
            read_baseline(str(target))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("findings", [None, 3, [{}], [[]]])
def test_damaged_findings_of_the_baseline_count_as_none(findings: Any, run: Path) -> None:
    change_json(run / FINDINGS, findings=findings)
    assert describe_run(open_run(run)).findings is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"findings": []}', '{"run": 3, "findings": []}'])
def test_a_damaged_audit_of_the_baseline_counts_as_none(content: str, run: Path) -> None:
    (run / FINDINGS).write_text(content)
    assert describe_run(open_run(run)).findings is None


def test_an_audit_of_another_methods_maps_is_none_of_these(run: Path) -> None:
    assert describe_run(open_run(run), METHODS[0]).findings == (FINDING,)
    assert describe_run(open_run(run), METHODS[1]).findings is None
    change_json(run / FINDINGS, run={"method": METHODS[1]})
    assert describe_run(open_run(run), METHODS[1]).findings == (FINDING,)
    assert describe_run(open_run(run)).findings is None
    assert read_baseline(accept(str(run))).findings is None


def test_a_method_that_a_run_does_not_have_is_wrong_usage(run: Path) -> None:
    known = r"has no maps of 'cam': name one of its methods, gradcam, scorecam\(channels=32\)"
    with pytest.raises(ConfigError, match=known):
        accept(str(run), method="cam")
    with pytest.raises(ConfigError, match=known):
        read_baseline(str(run), "cam")


def test_the_images_of_a_run_that_is_gone_or_was_made_anew_are_not_looked_at(run: Path) -> None:
    accept(str(run))
    baseline, other = read_baseline(default_state(str(run))), run.parent / "2026-11-22"
    FakeRun(str(other), n_images=12, overlays=False).write()
    new = open_run(other)
    paired, reason = pair_with(new, baseline, METHODS[0])
    assert paired is not None
    assert (paired.n_same, reason) == (11, "")
    change_json(run / "run.json", finished="later")
    assert pair_with(new, baseline, METHODS[0])[0] is None
    shutil.rmtree(run)
    paired, reason = pair_with(new, baseline, METHODS[0])
    assert paired is None
    assert reason == f"the baseline's run {str(run)!r} is no longer there: its images cannot be looked at"
    assert pair_with(new, None, METHODS[0]) == (None, "there is no baseline yet")


def test_findings_json_says_what_was_compared(run: Path) -> None:
    assert describe_baseline(None, None, None) == {
        "id": None, "rubber_stamp": True, "differences": [],
        "comparable": {"paired": False, "class": False, "dataset": False, "attention": False},
    }  # fmt: skip
    baseline = read_baseline(str(run))
    changed = dataclasses.replace(baseline.facts, resize="crop")
    told = describe_baseline(baseline, judge(changed, baseline.facts, baseline.sums, baseline.sums), None)
    assert (told["id"], told["rubber_stamp"], told["n_images"]) == (str(run), False, 11)
    assert told["comparable"] == {"paired": False, "class": True, "dataset": True, "attention": False}
    assert told["differences"] == ["resize: stretch, now crop"]


@pytest.fixture(params=["local", "memory"])
def nights(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    folder = str(tmp_path / "nights") if request.param == "local" else f"memory:///{tmp_path.name}-nights"
    for day in ("01", "02", "03", "04", "05"):
        storage.write_bytes(storage.join(folder, f"2026-11-{day}", FINDINGS), json.dumps({"day": day}).encode())
    storage.write_bytes(storage.join(folder, "2026-11-06", "run.json"), b"{}")
    storage.write_bytes(storage.join(folder, "2026-11-03", FINDINGS), b"[not JSON")
    storage.write_bytes(storage.join(folder, "2026-11-00.txt"), b"a file")
    yield folder
    storage.remove_folder(folder)


def test_earlier_nights_are_those_whose_names_come_before_the_latest_first(nights: str) -> None:
    def days(run: str, n: int) -> list[Any]:
        return [night["day"] for night in read_history(storage.join(nights, run), n)]

    assert days("2026-11-06", 14) == ["05", "04", "02", "01"]
    assert days("2026-11-06/", 2) == ["05", "04"]
    assert days("2026-11-04", 14) == ["02", "01"], "the night itself is none of them, nor is what came after it"
    assert days("2026-11-01", 14) == []
    assert read_history(storage.join(nights, "nowhere", "x"), 3) == []


def test_folders_are_listed_without_files_and_without_what_lies_in_them(nights: str) -> None:
    names = [uri.rstrip("/").rpartition("/")[2] for uri in storage.list_folders(nights)]
    assert names == [f"2026-11-0{day}" for day in range(1, 7)]
    assert storage.list_folders(storage.join(nights, "nowhere")) == []


def test_a_state_holds_no_pickle_and_is_an_npz(run: Path) -> None:
    with np.load(io.BytesIO(encode_state(read_baseline(str(run)))), allow_pickle=False) as arrays:
        assert set(arrays) == {"about", "sums"}
