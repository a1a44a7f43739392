"""SIGKILL and the same command again, in the short form."""

import io
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import RunConfig, run_job
from pipeline.storage import TEMPORARY
from tests.faults.jobs import Whole, Workplace, describe_difference
from tests.faults.kill import kill_round
from tests.faults.places import Place

SHORT = {"local": ("commit", "processes"), "gcs": ("commit",), "s3": ("anywhere",)}


@pytest.mark.slow
def test_a_killed_job_resumes_to_what_nothing_disturbed(work: Workplace, place: Place) -> None:
    _ = work.whole
    chance = random.Random(os.urandom(8))
    for aim in SHORT[place.store]:
        done = kill_round(work, place.new(), aim, chance)
        assert done.problems == (), done
        assert done.notes["kills"], "it was killed while it ran"


@pytest.mark.slow
def test_what_killed_writers_left_is_removed_wherever_it_lies(work: Workplace, tmp_path) -> None:
    host = re.sub(r"[^A-Za-z0-9.]", "", socket.gethostname())
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    config = RunConfig((str(work.images),), str(work.model), str(tmp_path / "run"), preprocess="tf", jit="off",
                       shard_size=work.shard_size, batch_size=8)  # fmt: skip
    run_job(config, [])
    target = Place("local", config.output, {})
    for name in ("run.json", "shards/00003.json"):  # as if it had been killed with one shard to go
        Path(config.output, name).unlink()
    for folder in (".", "shards", "records", "failures", "overlays", "overlays/00"):
        target.write(f"{folder}/{TEMPORARY}{host}-{gone.pid}-{'0' * 32}", b"half of a file")
    run_job(config, [])
    assert list(work.whole.compare(target)) == []


def test_the_comparison_finds_what_it_is_for(tmp_path) -> None:
    mine, theirs = (Place("local", str(tmp_path / name), {}) for name in ("mine", "theirs"))
    for place in (mine, theirs):
        for name in ("manifest.parquet", "records/part-00000.parquet", "overlays/00/a.png", "shards/00000.json"):
            place.write(name, name.encode())
    whole = Whole.of(mine, 0, 0)
    assert list(whole.compare(theirs)) == []
    theirs.write("shards/00000.json", b"other times")
    assert list(whole.compare(theirs)) == []
    theirs.write("records/part-00000.parquet", b"other")
    theirs.write("overlays/00/b.png", b"")
    theirs.write(f"failures/{TEMPORARY}x", b"")
    found = "; ".join(whole.compare(theirs))
    assert "1 files of other content, such as records/part-00000.parquet" in found
    assert "2 files too much" in found
    assert "1 files left from a writer that was killed, such as failures/.tmp-x" in found
    mine.write("overlays/00/c.png", b"")
    assert "1 files missing, such as overlays/00/c.png" in "; ".join(Whole.of(mine, 0, 0).compare(theirs))
    assert describe_difference(b"ab", b"c") == "2 bytes undisturbed, 1 here"


def test_a_picture_packed_in_another_way_is_the_same_picture(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    mine, theirs = (Place("local", str(tmp_path / name), {}) for name in ("mine", "theirs"))
    packed = [_png(pixels, level) for level in (1, 9)]
    mine.write("overlays/00/a.png", packed[0])
    theirs.write("overlays/00/a.png", packed[1])
    whole = Whole.of(mine, 0, 0)
    assert packed[0] != packed[1]
    assert list(whole.compare(theirs)) == []
    assert whole.repacked == ["overlays/00/a.png"]
    pixels[3, 4, 0] ^= 1
    theirs.write("overlays/00/a.png", _png(pixels, 1))
    assert "1 of 1800 values differ, by 1 at most" in "; ".join(whole.compare(theirs))


def _png(pixels: np.ndarray, level: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=level)
    return file.getvalue()
