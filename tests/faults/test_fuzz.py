"""Mutated files, in this process: pixels or an `ImageError`, entries or a `ConfigError`, and nothing else."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults import fuzz
from tests.faults.fuzz import MUTATORS, Edit, Seed, make_input, mutate, seeds, try_input
from tests.faults.images import good_png, into_jpeg

EDITS = st.lists(
    st.builds(Edit, st.integers(0, len(MUTATORS) - 1), st.floats(0, 0.999), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=6,
)

# Deterministic, so that a change of ours is what makes it fail; the long form takes other inputs each time.
FEW = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@FEW
@given(number=st.integers(0, 2**16), edits=EDITS)
def test_a_mutated_image_is_decoded_or_refused(folder: Path, number: int, edits: list[Edit]) -> None:
    images = [seed for seed in seeds() if not seed.suffix]
    assert try_input(mutate(images[number % len(images)], edits), folder)


@FEW
@given(number=st.integers(0, 2**16), edits=EDITS)
def test_a_mutated_manifest_is_read_or_refused(folder: Path, number: int, edits: list[Edit]) -> None:
    manifests = [seed for seed in seeds() if seed.suffix]
    assert try_input(mutate(manifests[number % len(manifests)], edits), folder)


def test_seeds_are_of_every_format_and_suffix() -> None:
    assert {seed.suffix for seed in seeds()} == {"", ".csv", ".jsonl", ".json", ".parquet", ".txt"}
    heads = {seed.data[:2] for seed in seeds() if not seed.suffix}
    assert {b"\xff\xd8", b"\x89P", b"GI", b"II", b"RI", b"BM", b"P6", b"\0\0", b"\xff\x4f"} <= heads


def test_an_input_is_told_by_its_number_alone() -> None:
    assert make_input(3, 7) == make_input(3, 7)
    assert len({make_input(0, number).data for number in range(50)}) > 40
    assert make_input(0, 1) != make_input(1, 1)


@pytest.mark.parametrize("kind", range(len(MUTATORS)))
def test_every_mutator_takes_every_length(kind: int) -> None:
    for data in (b"", b"\x89", b"\xff\xd8", good_png(), into_jpeg()):
        for place in (0.0, 0.5, 0.999):
            for value in (0, 1, 17, 0xFFFFFFFF, 0x12345678):
                assert isinstance(mutate(Seed(data, ""), [Edit(kind, place, value)]).data, bytes)


def test_repaired_checksums_are_those_of_a_png() -> None:
    assert fuzz._repair(good_png(), 0.5, 0) == good_png()
    changed = good_png().replace(b"IEND", b"iEND")
    assert fuzz._repair(changed, 0.5, 0)[-4:] == zlib.crc32(b"iEND").to_bytes(4, "big")


def test_what_is_neither_pixels_nor_a_refusal_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RecursionError

    monkeypatch.setattr(fuzz, "decode_reduced", fail)
    monkeypatch.setattr(fuzz, "read_manifest", fail)
    for suffix in ("", ".csv"):
        with pytest.raises(RecursionError):
            try_input(Seed(b"x", suffix), folder)


def test_a_campaign_tells_of_a_child_that_dies_or_hangs_and_saves_its_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endings = iter([("import os; os.abort()", 5), ("import sys; sys.exit('Timeout (0:00:10)!')", 9), ("", 12)])

    def run(command: list[str], **_: object) -> fuzz.subprocess.CompletedProcess:
        code, number = next(endings)
        (Path(command[-1]) / "at").write_bytes(fuzz.struct.pack("<QQ", number, 1 << 20))
        if not code:
            monkeypatch.setattr(fuzz.time, "time", lambda: 1e12)
        return real([command[0], "-c", code], stderr=_["stderr"], check=False)

    real = fuzz.subprocess.run
    monkeypatch.setattr(fuzz.subprocess, "run", run)
    found = fuzz.fuzz(1, 4, tmp_path)
    assert [(item["number"], fuzz._class_of(item["what"])) for item in found.offenders] == [(5, "crash"), (9, "hang")]
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {make_input(4, 5).data, make_input(4, 9).data}
    assert "1 of crash\n1 of hang\n0 of memory\n0 of error" in found.tell()
