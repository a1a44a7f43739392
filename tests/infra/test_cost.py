"""What a run would cost on other machines, against numbers worked out by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "infra/cost.py"


def load():
    spec = importlib.util.spec_from_file_location("cost", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cost"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


cost = load()

# 1,000 images in 20 s; 5 ms of a processor for each beside the model.
SUMMARY = {"inputs": 1100, "carried": 100, "seconds": 20.0, "seconds_by_stage": {"read": 1, "decode": 4, "model": 15}}


@pytest.mark.parametrize(
    ("machine", "rate", "bottleneck", "price"),
    [
        # 1000 / 20 s on two processors: 25 a processor and second.
        (("cpu", 16, 0.9), 400.0, "processors", 0.625),
        # 8 / 5 ms = 1,600 images/s is what the processors give.
        (("slow", 8, 1.44, 800), 800.0, "GPU", 0.5),
        (("fast", 8, 1.44, 2000), 1600.0, "processors", 0.25),
    ],
)
def test_the_slower_side_decides_what_a_million_images_cost(machine, rate, bottleneck, price) -> None:
    found = cost.estimate(SUMMARY, 2, cost.Machine(*machine))
    assert found.rate == pytest.approx(rate)
    assert found.bottleneck == bottleneck
    assert found.an_hour == pytest.approx(3600 * rate)
    assert found.a_million == pytest.approx(price)


def test_the_script_prints_a_table_of_the_machines_that_one_names(tmp_path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(SUMMARY))
    words = [sys.executable, str(SCRIPT), str(tmp_path), "--cores", "2", "--machine", "mine, a T4=8,1.44,800"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[2:] == ["| mine, a T4 | 800 | 2,880,000 | GPU | 1.44 | 0.50 |"]


@pytest.mark.parametrize("machine", ["mine", "mine=8", "mine=8,free", "mine=1,2,3,4"])
def test_a_machine_that_is_none_is_told_with_the_form(tmp_path, machine) -> None:
    words = [sys.executable, str(SCRIPT), str(tmp_path), "--machine", machine]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "a machine is NAME=VCPUS,DOLLARS_AN_HOUR" in done.stderr
