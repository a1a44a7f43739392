"""What is filled in for an engine, and what is refused: asked with words of the command line, as Beam parses them."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from pipeline import ConfigError, RunConfig, RunError, dataflow, engines, open_run, patience, run, run_job
from pipeline.graph import _given, parse_beam_options, prepare_options, suit_machines
from pipeline.run import cover, finish_detached, read_plan
from pipeline.verify import verify_run

DATAFLOW = ["--runner=DataflowRunner", "--project=my-project", "--region=europe-west4", "--temp_location=gs://b/tmp",
            "--sdk_container_image=europe-docker.pkg.dev/p/r/beamcam:1"]  # fmt: skip

CONFIG = RunConfig(("gs://b/photos/",), "gs://b/m.keras", "gs://b/run", preprocess="tf")


@pytest.fixture(autouse=True)
def client_of_dataflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is filled in and what is refused does not need it."""
    monkeypatch.setattr(dataflow, "_is_installed", lambda _: True)


def options_of(*words: str) -> dict:
    """What Beam is told in the end, of what was typed."""
    return prepare_options([*DATAFLOW, *words], CONFIG).get_all_options()


def gpu(kind: str) -> str:
    return f"--dataflow_service_options=worker_accelerator=type:{kind};count:1;install-nvidia-driver"


def refusal(*words: str, config: RunConfig = CONFIG) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare_options(list(words), config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_dataflow_gets_what_nobody_has_said() -> None:
    options = options_of()
    told = {name: options[name] for name in ("machine_type", "disk_size_gb", "number_of_worker_harness_threads",
            "max_num_workers", "experiments", "dataflow_service_options", "save_main_session")}  # fmt: skip
    assert told == {
        "machine_type": "g2-standard-8",
        "disk_size_gb": 50,
        "number_of_worker_harness_threads": 2,
        "max_num_workers": 10,
        "experiments": ["no_use_multiple_sdk_containers"],
        "dataflow_service_options": ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:5xx"],
        "save_main_session": False,
    }


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("--machine_type=n1-standard-4", "machine_type", "n1-standard-4"),
        ("--disk_size_gb=200", "disk_size_gb", 200),
        ("--number_of_worker_harness_threads=1", "number_of_worker_harness_threads", 1),
        ("--max_num_workers=400", "max_num_workers", 400),
        ("--save_main_session", "save_main_session", True),
    ],
)
def test_what_was_said_stays(word: str, name: str, value: object) -> None:
    assert options_of(word)[name] == value


def test_options_of_several_values_keep_those_that_were_given() -> None:
    options = options_of("--experiments=upload_graph", "--dataflow_service_options=enable_google_cloud_profiler")
    assert options["experiments"] == ["upload_graph", "no_use_multiple_sdk_containers"]
    assert options["dataflow_service_options"] == [
        "enable_google_cloud_profiler", "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:5xx"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("machine", "gpu"),
    [
        ("g2-standard-4", "nvidia-l4"),
        ("n1-standard-8", "nvidia-tesla-t4"),
        ("custom-8-16384", "nvidia-tesla-t4"),  # of N1
        ("n1-custom-8-16384", "nvidia-tesla-t4"),
        ("a2-highgpu-1g", "nvidia-tesla-a100"),
        ("n2-standard-8", None),
        ("e2-standard-16", None),
    ],
)
def test_the_gpu_is_one_that_the_machine_can_have(machine: str, gpu: str | None) -> None:
    given = [] if gpu is None else [f"worker_accelerator=type:{gpu};count:1;install-nvidia-driver:5xx"]
    assert options_of(f"--machine_type={machine}")["dataflow_service_options"] == (given or None)


@pytest.mark.parametrize(
    ("machine", "gpus"),
    [
        ("g2-standard-24", "type:nvidia-l4;count:2"),
        ("g2-standard-32", "type:nvidia-l4;count:1"),
        ("g2-standard-48", "type:nvidia-l4;count:4"),
        ("g2-standard-96", "type:nvidia-l4;count:8"),
        ("a2-ultragpu-1g", "type:nvidia-a100-80gb;count:1"),
    ],
)
def test_a_machine_gets_the_gpus_that_it_has_and_no_others(machine: str, gpus: str) -> None:
    told = [f"worker_accelerator={gpus};install-nvidia-driver:5xx"]
    assert options_of(f"--machine_type={machine}")["dataflow_service_options"] == told


@pytest.mark.parametrize("machine", ["a2-highgpu-2g", "a2-megagpu-16g", "a3-megagpu-8g", "g2-custom-8-32768"])
def test_of_a_machine_whose_gpus_are_not_certain_they_are_asked_for(machine: str) -> None:
    said = refusal(*DATAFLOW, f"--machine_type={machine}")
    assert said.startswith(
        f"which GPUs --machine_type {machine} has is not known here: add --dataflow_service_options="
        "'worker_accelerator=type:TYPE;count:COUNT;install-nvidia-driver:5xx', with one of nvidia-"
    )
    kind = dataflow.GPU_FAMILIES[machine[:2]][-1]
    for word in (gpu(kind), f"--resource_hints=accelerator=type:{kind};count:1"):
        options_of(f"--machine_type={machine}", word)


def test_machines_and_gpus_that_are_newer_than_the_table_are_not_refused() -> None:
    machine = "--machine_type=g4-standard-48"
    ours = gpu("nvidia-rtx-pro-6000")
    assert options_of(machine, ours)["dataflow_service_options"] == [ours.partition("=")[2]]
    assert options_of(machine)["dataflow_service_options"] is None
    assert "g4-standard-48 cannot have the GPU 'nvidia-l4': take one of the family g2" in refusal(
        *DATAFLOW, machine, gpu("nvidia-l4")
    )


def test_no_gpu_is_named_beside_one_that_was_named() -> None:
    ours = "worker_accelerator=type:nvidia-tesla-p4;count:2;install-nvidia-driver"
    options = options_of("--machine_type=n1-standard-8", f"--dataflow_service_options={ours}")
    assert options["dataflow_service_options"] == [ours]
    assert options_of("--resource_hints=accelerator=type:nvidia-l4;count:1")["dataflow_service_options"] is None
    assert options_of("--dataflow_service_options=enable_prime")["machine_type"] is None


def test_more_workers_to_begin_with_are_not_more_than_there_may_be() -> None:
    assert options_of("--num_workers=25")["max_num_workers"] == 25


def test_a_process_for_each_processor_is_had_by_those_who_ask_for_it() -> None:
    assert options_of("--experiments=use_multiple_sdk_containers")["experiments"] == ["use_multiple_sdk_containers"]


def test_each_option_that_is_filled_in_is_said_with_its_reason() -> None:
    said: list[str] = []
    prepare_options([*DATAFLOW, "--disk_size_gb=80"], CONFIG, said.append)
    assert [line.partition(": ")[0].partition("=")[0] for line in said] == [
        "--machine_type", "--dataflow_service_options", "--number_of_worker_harness_threads", "--max_num_workers",
        "--no_save_main_session", "--experiments",
    ]  # fmt: skip
    assert all(len(line.partition(": ")[2]) > 20 for line in said)


def test_a_job_on_this_machine_gets_nothing_and_is_told_nothing() -> None:
    said: list[str] = []
    local = RunConfig(("photos",), "m.keras", "run", preprocess="tf")
    for words in (
        [],
        ["--runner=DirectRunner", "--direct_num_workers=2"],
        ["--runner=FlinkRunner"],
        ["--runner=flink"],
    ):
        assert (
            prepare_options(words, local, said.append).get_all_options() == parse_beam_options(words).get_all_options()
        )
    assert said == []


WITHOUT = {name: [word for word in DATAFLOW if not word.startswith(f"--{name}=")] for name in
           ("project", "region", "temp_location", "sdk_container_image")}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--runner=DataflowRunner"], "needs --project, --region, --temp_location, --sdk_container_image: see infra"),
        *((words, rf"needs --{name}: see") for name, words in WITHOUT.items()),
        ([*WITHOUT["temp_location"], "--temp_location=/tmp/x"], r"--temp_location is a folder in a bucket .*'/tmp/x'"),
        ([*DATAFLOW, "--staging_location=s3://b"], r"--staging_location is a folder in a bucket .* not 's3://b'"),
        ([*DATAFLOW, "--machine_type=t2a-standard-8"], "t2a-standard-8 has Arm processors, .*: take n1, n2, e2 or g2"),
        ([*DATAFLOW, gpu("nvidia-l4"), "--resource_hints=accelerator=type:nvidia-l4;count:1"],
         "the GPU is named twice, .*: leave --resource_hints"),
        ([*DATAFLOW, "--experiments=enable_prime", gpu("nvidia-l4")],
         "enable_prime .*fails beside worker_accelerator: leave one"),
        ([*DATAFLOW, "--machine_type=n2-standard-8", gpu("nvidia-l4")],
         "n2-standard-8 cannot have the GPU 'nvidia-l4': take one of the family g2"),
        ([*DATAFLOW, gpu("nvidia-k9")],
         "g2-standard-8 cannot have the GPU 'nvidia-k9': it is one of nvidia-l4, nvidia-tesla-t4, "),
        ([*DATAFLOW, gpu("nvidia-l4").rpartition(";")[0]],
         "asks for no driver, without which the GPU is paid for and not used: add ;install-nvidia-driver:5xx"),
        ([*DATAFLOW, "--flexrs_goal=COST_OPTIMIZED"], "--flexrs_goal has no machines with GPUs: leave it out"),
        ([*DATAFLOW, "--streaming"], "--streaming and --update are for jobs without an end"),
        ([*DATAFLOW, "--update"], "--streaming and --update are for jobs without an end"),
        ([*WITHOUT["sdk_container_image"], "--sdk_container_image=europe/p/r/beamcam:0.1-py3.9"],
         rf"has Python 3.9, and this is Python 3.{sys.version_info[1]}: .*launch with Python 3.9, or"),
        (["--template_location=gs://b/t"], "--template_location is an option of Dataflow, and without --runner Data"),
        (["--runner=FlinkRunner", "--template_location=gs://b/t"], "--template_location is an option of Dataflow, and"),
        (["--runner=PrismRunner", "--prism_location=/prism", "--template_location=gs://b/t"],
         "--template_location is an option of Dataflow, and without --runner DataflowRunner the job runs at once"),
        (["--runner=direct", "--machine_type=g2-standard-8"], "--machine_type is an option of Dataflow, and without"),
        (["--runner=PrismRunner"], "would fetch an executable from the internet .*: build it with infra/prism/get.sh"),
        (["--runner=PrismRunner", "--prism_location=/prism", "--no_wait_until_finish"],
         "--no_wait_until_finish would end the job at once: Prism is started by this command, and ends with it"),
        (["--runner=InteractiveRunner"], "InteractiveRunner keeps every step's output|Beam refuses these options"),
        (["--runner=apache_beam.runners.render.RenderRunner"], "RenderRunner draws a graph and explains no image"),
    ],
)  # fmt: skip
def test_what_would_fail_or_do_something_else_is_refused_with_the_way_out(words: list[str], told: str) -> None:
    assert re.search(told, refusal(*words)), refusal(*words)


@pytest.mark.parametrize(
    ("option", "value"),
    [("output", "runs/one"), ("output", "file:///runs/one"), ("model", "/models/m.keras"), ("model", "m.h5"),
     ("class_names", "names.txt"), ("since", "runs/before"), ("output", "memory://runs/one")],
)  # fmt: skip
def test_files_that_dataflows_machines_cannot_read_are_refused(option: str, value: str) -> None:
    config = RunConfig(**{**vars(CONFIG), option: value})
    name = option.replace("_", "-")
    assert refusal(*DATAFLOW, config=config) == (
        f"--{name} {value!r} is on this machine, which Dataflow's cannot read: copy it to a bucket (gs://...)"
    )


@pytest.mark.parametrize(
    "model", ["keras.applications:ResNet50", "mine.models:make", "gs://b/m.keras", "s3://b/m.keras"]
)
def test_models_that_every_machine_finds_are_not_refused(model: str) -> None:
    prepare_options(DATAFLOW, RunConfig(**{**vars(CONFIG), "model": model}))


def test_images_on_this_machine_are_refused_before_anything_is_written(tmp_path: Path, photographs: Path) -> None:
    config = RunConfig((str(photographs / "manifest.jsonl"),), "gs://b/m.keras", "gs://b/run", preprocess="tf")
    with pytest.raises(ConfigError, match=r"the image '/.*00\.jpg' is on this machine, which Dataflow's cannot read"):
        run_job(config, DATAFLOW)


@pytest.mark.parametrize(
    ("words", "detached"),
    [([], False), (DATAFLOW, False), ([*DATAFLOW, "--template_location=gs://b/t"], True),
     (["--no_wait_until_finish"], True)],
)  # fmt: skip
def test_a_job_is_detached_if_nobody_waits_for_it(words: list[str], detached: bool) -> None:
    assert engines.is_detached(_given(parse_beam_options(words))) is detached


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ([], "bfloat16"),
        (["--machine_type=n1-standard-8"], "float16"),
        (["--machine_type=n1-standard-8", gpu("nvidia-tesla-p4")], "float32"),
        (["--resource_hints=accelerator=type:nvidia-tesla-a100;count:1"], "bfloat16"),
        (["--machine_type=n2-standard-8"], "auto"),
    ],
)
def test_precision_is_decided_for_the_gpu_that_the_job_will_have(words: list[str], precision: str) -> None:
    """And not by the machine that launches it, which mostly has none."""
    said: list[str] = []
    config = suit_machines(prepare_options([*DATAFLOW, *words], CONFIG), CONFIG, said.append)
    assert (config.precision, config.jit) == (precision, "auto" if precision == "auto" else "off")
    assert len(said) == (0 if precision == "auto" else 2)


def test_what_was_decided_is_not_decided_again() -> None:
    config = RunConfig(**{**vars(CONFIG), "precision": "float32", "jit": "on"})
    assert suit_machines(prepare_options(DATAFLOW, config), config, pytest.fail) == config
    assert suit_machines(prepare_options([], CONFIG), CONFIG, pytest.fail) == CONFIG


def test_without_the_client_of_dataflow_the_job_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataflow, "_is_installed", lambda module: module != "google.cloud.dataflow")
    assert refusal(*DATAFLOW).endswith("needs Google's client of Dataflow: pip install 'beamcam[dataflow]'")


@pytest.mark.parametrize("name", ["DataflowRunner", "dataflow", "Dataflow",
                                  "apache_beam.runners.dataflow.dataflow_runner.DataflowRunner"])  # fmt: skip
def test_a_runner_is_the_same_however_it_is_written(name: str) -> None:
    assert engines.name_of_runner({"runner": name}) == "dataflow"


# Numbers of shards as ranges


def written_out(ranges: list[tuple[int, int]]) -> list[int]:
    return [number for first, end in ranges for number in range(first, end)]


@pytest.mark.parametrize("numbers", [[], [0], [7], [0, 1, 2], [0, 2, 3, 9], [5, 6, 8, 9, 11, 30]])
def test_few_ranges_are_exactly_the_numbers(numbers: list[int]) -> None:
    assert written_out(cover(numbers)) == numbers


def test_many_ranges_become_few_over_the_smallest_gaps() -> None:
    assert cover([0, 2, 10, 12, 50, 51], 3) == [(0, 3), (10, 13), (50, 52)]
    assert cover([0, 2, 10, 12, 50, 51], 1) == [(0, 52)]
    every_second = cover(range(0, 400_000, 2))
    assert len(every_second) == 1000
    assert written_out(every_second) == sorted(set(written_out(every_second)))
    assert set(range(0, 400_000, 2)) <= set(written_out(every_second))


# The whole job, on the runner at hand


# What two jobs in one process never have in common, one after the other, in two folders.
DIFFERENT = {"seconds", "seconds_by_stage", "waiting_by_stage", "model_waits", "bottleneck", "model_loads", "finished",
             "config"}  # fmt: skip


def test_a_detached_job_ends_with_the_same_summary(tmp_path: Path, photographs: Path, tiny_model_path: str) -> None:
    """The graph of a job that nobody waits for writes the run.json that a waiting one writes, but for what it took."""

    def explain(name: str, *words: str) -> dict:
        config = RunConfig((str(photographs / "manifest.jsonl"),), tiny_model_path, str(tmp_path / name),
                           preprocess="tf", jit="off", shard_size=4)  # fmt: skip
        returned = run_job(config, list(words))
        assert bool(returned) == (not words)
        assert list(verify_run(config.output)) == []
        return dict(open_run(config.output).summary)

    patience.new_troubles()  # those of earlier tests in this process, which the first job would count as its own
    waited, detached = explain("waited"), explain("detached", "--no_wait_until_finish")
    assert set(waited) == set(detached)
    differing = {name for name in waited if waited[name] != detached[name]}
    assert differing <= DIFFERENT
    assert {**waited["config"], "output": None} == {**detached["config"], "output": None}
    assert (detached["records"], detached["shards_this_time"], detached["shards"]) == (13, 4, 4)
    assert detached["seconds"] > 0


def test_a_detached_job_fails_where_more_images_failed_than_it_allows(tmp_path, photographs, tiny_model_path) -> None:
    manifest = tmp_path / "m.txt"
    manifest.write_text(f"{photographs}/00.jpg\n{tmp_path}/none.jpg\n")
    config = RunConfig((str(manifest),), tiny_model_path, str(tmp_path / "run"), preprocess="tf", jit="off",
                       max_failures=0)  # fmt: skip
    with pytest.raises(RunError, match="1 images failed, and --max-failures allows 0"):
        run_job(config, ["--no_wait_until_finish"])
    assert open_run(config.output).summary["failures"] == 1  # the run is whole all the same, as where somebody waits


def test_summing_up_a_second_time_is_no_harm_and_not_done_for_others(tmp_path, photographs, tiny_model_path) -> None:
    """Engines give a step to another worker if they are not sure of the first one."""
    config = RunConfig((str(photographs / "manifest.jsonl"),), tiny_model_path, str(tmp_path / "run"),
                       preprocess="tf", jit="off", precision="float32", shard_size=4, overlays="none")  # fmt: skip
    summary = run_job(config, [])
    ending = dataclasses.replace(read_plan(config).ending(), n_pending=4)
    again = finish_detached(ending)
    assert {name: again[name] for name in again if name not in DIFFERENT} == {
        name: summary[name] for name in summary if name not in DIFFERENT
    }
    assert list(verify_run(config.output)) == []

    (tmp_path / "run/shards/00002.json").unlink()
    with pytest.raises(RunError, match=r"shards/00002.json of .* cannot be read"):
        finish_detached(ending)
    run_job(config, [], overwrite=True)
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(RunError, match=r"another job has overwritten the run in .* meanwhile: it is not summed up"):
        finish_detached(ending)
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_a_run_that_is_overwritten_while_it_is_summed_up_keeps_the_summary_of_its_own(
    tmp_path, photographs, tiny_model_path, monkeypatch
) -> None:
    config = RunConfig((str(photographs / "manifest.jsonl"),), tiny_model_path, str(tmp_path / "run"),
                       preprocess="tf", jit="off", shard_size=4, overlays="none")  # fmt: skip
    run_job(config, [])
    ending = dataclasses.replace(read_plan(config).ending(), n_pending=4)
    write_total, after = run.write_total, []

    def overwritten(*arguments: object) -> object:
        monkeypatch.undo()
        total = write_total(*arguments)
        run_job(config, [], overwrite=True)
        after.append((tmp_path / "run/run.json").read_bytes())
        return total

    monkeypatch.setattr(run, "write_total", overwritten)
    with pytest.raises(RunError, match=r"another job has overwritten the run in .* meanwhile: it is not summed up"):
        finish_detached(ending)
    assert [(tmp_path / "run/run.json").read_bytes()] == after


def test_shards_that_are_committed_are_passed_over_inside_a_range(tmp_path, photographs, tiny_model_path) -> None:
    """A job with more gaps than ranges is given committed shards too, and does not make them again."""
    config = RunConfig((str(photographs / "manifest.jsonl"),), tiny_model_path, str(tmp_path / "run"),
                       preprocess="tf", jit="off", shard_size=2, overlays="none")  # fmt: skip
    run_job(config, [])
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/shards").glob("*.json")}
    for number in (0, 2, 4, 6):
        (tmp_path / f"run/shards/{number:05d}.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.transforms.cover", lambda numbers: cover(numbers, 2))
        run_job(config, [])
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/shards").glob("*.json")}
    assert {name for name in before if after[name] == before[name]} == {f"{number:05d}.json" for number in (1, 3, 5)}
    assert list(verify_run(config.output)) == []
    assert open_run(config.output).summary["records"] == 13
