"""`make bench`, in its smallest form: what it writes follows from what it measured."""

import importlib.util
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import explainers as ex
from tests.benchmarks import bench, programs
from tests.benchmarks.measuring import Figure, LeftOut, Samples, interleave, peak_megabytes
from tests.benchmarks.reporting import Report

TINY = ["--models", "tests.models:gap_dense", "--batch", "4", "--photographs", "8", "--rounds", "4", "--seed", "5"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("bench")
    bench.main(["program", "job", *TINY, "--output", str(folder)])
    return folder, json.loads((folder / "bench.json").read_text())


def test_the_report_holds_seed_device_and_raw_samples(written: tuple[Path, dict]) -> None:
    _, report = written
    assert report["seed"] == 5
    assert report["device"]["processor"]
    assert report["device"]["cores"] >= 1
    assert {"tensorflow", "keras", "python"} <= set(report["device"]["versions"])
    rounds = {(figure["part"], len(figure["ours"]["values"])) for figure in report["figures"]}
    assert rounds == {("program", 4), ("job", 2)}, "as many samples as rounds, half as many of what takes long"
    assert report["left_out"] == []


def test_the_report_covers_every_overlay_and_precision(written: tuple[Path, dict]) -> None:
    whats = [figure["what"] for figure in written[1]["figures"]]
    assert [what for what in whats if what.startswith("overlays")] == [
        f"overlays {s}" for s in ("none", "layer", "blend")
    ]
    assert {f"{programs.ONE}, {precision}" for precision in programs.LOWER} <= set(whats)


def test_ratios_follow_from_the_samples(written: tuple[Path, dict]) -> None:
    for figure in written[1]["figures"]:
        ours, base = figure["ours"], figure["base"]
        pairs = zip(ours["values"], base["values"], strict=True)
        ratios = [(ours["images"] / o) / (base["images"] / b) for o, b in pairs]
        assert figure["rounds"] == pytest.approx(ratios)
        assert figure["value"] == pytest.approx(statistics.median(ratios))


def test_the_exact_program_is_exact_and_lower_precision_is_not(written: tuple[Path, dict]) -> None:
    notes = {figure["what"]: figure["notes"] for figure in written[1]["figures"] if figure["notes"]}
    assert notes[programs.ONE]["largest_map_error"] < 1e-5
    assert 1e-5 < notes[f"{programs.ONE}, bfloat16"]["largest_map_error"] < 0.1


def test_a_job_explains_every_photograph(written: tuple[Path, dict]) -> None:
    jobs = [figure for figure in written[1]["figures"] if figure["part"] == "job"]
    assert [(figure["notes"]["records"], figure["notes"]["failures"]) for figure in jobs] == [(8, 0)] * 3
    assert {figure["ours"]["images"] for figure in jobs} == {8}


def test_the_table_has_a_row_a_figure_and_the_plot_is_drawn_where_it_can_be(written: tuple[Path, dict]) -> None:
    folder, report = written
    rows = [line for line in (folder / "bench.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(report["figures"]) + 2, "and a heading a part"
    assert (folder / "bench.png").exists() == (importlib.util.find_spec("matplotlib") is not None)


def test_a_rate_is_better_high_and_a_growth_low() -> None:
    ours, base = Samples("ours", (2.0, 4.0, 3.0), images=6), Samples("base", (1.0, 1.0, 1.0), images=4)
    rate = Figure("job", "", "rate", ours, base, target=0.5)
    assert rate.rounds == pytest.approx([0.75, 0.375, 0.5])
    assert (rate.value, rate.reached) == (pytest.approx(0.5), True)
    growth = Figure("growth", "", "growth", ours, base, target=1.9)
    assert growth.rounds == pytest.approx([4 / 3, 8 / 3, 2])
    assert (growth.value, growth.reached) == (pytest.approx(2), False)


def test_sides_of_unequal_rounds_are_set_against_the_median() -> None:
    ours, base = Samples("long", (30.0,), images=10), Samples("short", (2.0, 4.0), images=1)
    assert Figure("growth", "", "growth", ours, base).rounds == pytest.approx([1.0])


def test_a_figure_that_is_alone_is_its_median() -> None:
    figure = Figure("startup", "", "seconds", Samples("", (3.0, 1.0, 2.0)), target=2.5)
    assert (figure.value, figure.quartiles, figure.reached) == (2.0, (1.5, 2.5), True)


def test_functions_take_turns_and_what_goes_before_is_not_timed() -> None:
    calls: list[str] = []
    took = interleave(2, {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, lambda: time.sleep(0.02))
    assert calls == ["a", "b", "b", "a", "a", "b"], "a round ahead, and then each begins with another"
    assert all(len(values) == 2 and max(values) < 0.02 for values in took.values())


def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    ours = bytearray(b"\1") * 500 * 2**20
    code = "from tests.benchmarks.measuring import *; held = bytearray(b'1') * 200 * 2**20; print(peak_megabytes())"
    done = subprocess.run([sys.executable, "-c", code], cwd=bench.ROOT, capture_output=True, text=True, check=True)
    assert 200 < float(done.stdout) < 300 < len(ours) / 2**20 < peak_megabytes()


def test_what_is_left_out_is_told() -> None:
    report = Report({"cores": 1, "processor": "", "versions": dict.fromkeys(("tensorflow", "keras", "python"))},
                    {"batch": 1, "seed": 0})  # fmt: skip
    assert report.add(LeftOut("peers", "not installed")) == "peers: left out: not installed"
    assert "peers: left out: not installed" in report.to_markdown()
    assert report.to_dict()["left_out"] == [{"part": "peers", "why": "not installed"}]


@pytest.mark.parametrize("name", ex.METHODS)
def test_every_method_has_few_passes_and_a_stated_cost(name: str) -> None:
    spec, passes = programs.few_passes(name, 3, (9, 8))
    method = ex.methods.get_method(spec)
    forwards, backwards = programs.stated_passes(method.cost, passes)
    assert forwards >= 1
    assert ("b" in method.cost.replace("look-ups", "")) == (backwards > 0)
    assert (passes > 1) == any(word in method.cost for word in ("steps", "samples", "masks", "windows", "C f"))


def test_an_unknown_part_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench.main(["programm"])
    assert "no part 'programm': the parts are program, methods" in capsys.readouterr().err
