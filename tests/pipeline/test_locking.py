"""A run belongs to one job at a time, and to nobody once that job is dead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.layout import RunLayout
from pipeline.locking import hold_run

HOLDER = (
    "import sys, time\nfrom pipeline.layout import RunLayout\nfrom pipeline.locking import hold_run\n"
    "with hold_run(RunLayout(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(100)\n"
)


@pytest.fixture
def layout(tmp_path) -> RunLayout:
    Path(tmp_path, "manifest.parquet").write_bytes(b"PAR1")
    return RunLayout(str(tmp_path))


def test_a_second_job_is_refused_until_the_first_has_ended(layout) -> None:
    message = f"another job is at work on the run in '{layout.output}'"
    with hold_run(layout), pytest.raises(ConfigError, match=message), hold_run(layout):
        pass
    with hold_run(layout):
        pass
    assert sorted(path.name for path in Path(layout.output).iterdir()) == ["manifest.parquet"]


def test_a_killed_job_holds_nothing(layout) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, layout.output], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match="at work"), hold_run(layout):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate(timeout=20)
    with hold_run(layout):
        pass


def test_a_manifest_that_was_replaced_is_another_lock(layout) -> None:
    manifest = Path(layout.output, "manifest.parquet")
    with hold_run(layout):
        manifest.unlink()
        manifest.write_bytes(b"PAR1")
        with hold_run(layout):  # of the new run
            pass


def test_a_store_without_locks_holds_nobody_up() -> None:
    with hold_run(RunLayout("memory://run")), hold_run(RunLayout("memory://run")):
        pass
