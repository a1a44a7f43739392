"""What Dataflow is sent: jobs submitted to an emulated bucket as users submit them, and read back from there.

`--template_location` writes to a bucket what is else sent to Google, and nothing else about the job is different. No
credentials are looked for, as in Beam's own tests: it would take 23 seconds.
"""

from __future__ import annotations

import base64
import bz2
import contextlib
import json
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import RunConfig, open_run, run_job, storage
from pipeline.graph import define_pipeline, prepare_options, run_graph
from pipeline.run import Plan, read_plan
from pipeline.verify import verify_run
from tests.infra.dataflow_service import run_graph_of_job, running_service

pytest.importorskip("google.cloud.dataflow", reason="no client of Dataflow: pip install 'beamcam[dataflow]'")

ROOT = Path(__file__).parent.parent.parent
IMAGE = "europe-west4-docker.pkg.dev/my-project/beamcam/beamcam:0.1.0"
GPU = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver:5xx"

PIP_FREEZE = {"staged/JOB/submission_environment_dependencies.txt"}
"""What Beam notes where there is a pip; workers write it into their log."""

WITHOUT_CREDENTIALS = "from apache_beam.internal.gcp import auth; auth._Credentials._credentials_init = True; "
CLI = "import sys; from pipeline.cli import main; sys.exit(main())"
LAUNCHED = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass(frozen=True)
class Submission:
    """What a launch has left behind."""

    ended: subprocess.CompletedProcess
    job: dict[str, Any]
    graph: Any  # the pipeline's proto
    staged: dict[str, int]  # names of all files below temp, staging and the template's place -> bytes
    data: bytes  # of the graph's file

    @property
    def pool(self) -> dict[str, Any]:
        """The one pool of workers."""
        (pool,) = self.job["environment"]["workerPools"]
        return pool

    @property
    def environments(self) -> dict[str, Any]:
        """Containers that steps run in."""
        return dict(self.graph.components.environments)

    def steps(self, depth: int = 1) -> list[str]:
        """The names of steps, in the graph's order."""
        names = [step.unique_name for step in self.graph.components.transforms.values()]
        return sorted(name for name in names if name.count("/") < depth and not name.startswith("ref_"))


def launch(command: str, words: list[str]) -> subprocess.CompletedProcess:
    program = [sys.executable, "-c", WITHOUT_CREDENTIALS + command]
    env = os.environ | {"PYTHONPATH": str(ROOT), "BEAMCAM_IMAGE": IMAGE}
    return subprocess.run(
        [*program, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def read_submission(ended: Any, place: str) -> Submission:
    from apache_beam.portability.api import beam_runner_api_pb2

    staged = {
        uri.removeprefix(f"{place}/"): storage.read_bytes(uri)
        for uri in storage.list_files(f"{place}/staged", recursive=True)
    }
    (data,) = (content for name, content in staged.items() if name.endswith("/pipeline.pb"))
    job = json.loads(storage.read_bytes(f"{place}/template/job"))
    sizes = {re.sub(r"/[^/]*\d[^/]*/", "/JOB/", name): len(content) for name, content in staged.items()}
    return Submission(ended, job, beam_runner_api_pb2.Pipeline.FromString(data), sizes, data)


def job_words(place: str) -> list[str]:
    words = ["--runner=DataflowRunner", "--project=my-project", "--region=europe-west4"]
    words += [f"--sdk_container_image={IMAGE}", f"--temp_location={place}/staged"]
    return [*words, f"--template_location={place}/template/job"]


@pytest.fixture(scope="module")
def place(gcs_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory, photographs: Path,
          tiny_model_path: str) -> str:  # fmt: skip
    """A folder in a bucket with thirteen photographs, a manifest of them, and a model."""
    place = "gs://bucket/dataflow"
    for path in photographs.glob("??.*"):
        storage.write_bytes(f"{place}/photographs/{path.name}", path.read_bytes())
    storage.write_bytes(f"{place}/model.keras", Path(tiny_model_path).read_bytes())
    return place


@pytest.fixture(scope="module")
def submission(place: str) -> Submission:
    """One by the command line."""
    words = ["run", f"--images={place}/photographs/", f"--model={place}/model.keras", f"--output={place}/run",
             "--preprocess=tf", "--jit=off", "--shard-size=4", *job_words(place), "--job_name=night-1",
             "--no_use_public_ips", "--subnetwork=regions/europe-west4/subnetworks/inner",
             "--service_account_email=worker@my-project.iam.gserviceaccount.com",
             "--labels=night=2026-11-22"]  # fmt: skip
    ended = launch(CLI, words)
    assert ended.returncode == 0, ended.stderr
    return read_submission(ended, place)


def unpacked(data: bytes) -> bytes:
    """All that is packed inside of a graph: pickled functions are compressed, and a plain search would find nothing."""
    found = [data]
    for packed in re.findall(rb"[A-Za-z0-9+/]{40,}={0,2}", data):
        for start in range(8):  # the bytes ahead of it, which tell its length, may be letters too
            raw = packed[start:]
            for unpack in (zlib.decompress, bz2.decompress):
                with contextlib.suppress(zlib.error, OSError, ValueError):
                    found.append(unpack(base64.b64decode(raw)))
    assert len(found) > 5
    return b"\n".join(found)


# What Dataflow reads of the job


def test_the_command_says_what_it_filled_in_and_that_the_job_goes_on_alone(place, submission) -> None:
    said = submission.ended.stdout.splitlines()
    assert "--machine_type=g2-standard-8: one L4, and eight processors to decode for it and encode behind it" in said
    assert said[-2:] == [
        "13 images in 4 shards; gradcam at last",
        f"submitted: the engine goes on alone, and writes {place}/run/run.json when every image is explained",
    ]
    assert storage.exists(f"{place}/run/manifest.parquet")
    assert not storage.exists(f"{place}/run/run.json")


def test_the_job_asks_for_the_machines_that_it_needs(submission) -> None:
    pool = submission.pool
    told = {name: pool[name] for name in ("machineType", "diskSizeGb", "numThreadsPerWorker", "autoscalingSettings")}
    assert told == {
        "machineType": "g2-standard-8",
        "diskSizeGb": 50,
        "numThreadsPerWorker": 2,
        "autoscalingSettings": {"maxNumWorkers": 10},
    }
    assert submission.job["environment"]["serviceOptions"] == [GPU]
    assert submission.job["type"] == "JOB_TYPE_BATCH"
    assert submission.job["name"] == "night-1"
    assert submission.job["labels"] == {"night": "2026-11-22"}


def test_the_job_runs_as_who_it_should_and_where_it_should(submission) -> None:
    environment, pool = submission.job["environment"], submission.pool
    assert environment["serviceAccountEmail"] == "worker@my-project.iam.gserviceaccount.com"
    assert pool["ipConfiguration"] == "WORKER_IP_PRIVATE"
    assert pool["subnetwork"] == "regions/europe-west4/subnetworks/inner"
    assert environment["sdkPipelineOptions"]["options"]["region"] == "europe-west4"


def test_one_process_a_machine_has_the_gpu(submission) -> None:
    experiments = submission.job["environment"]["experiments"]
    assert "no_use_multiple_sdk_containers" in experiments
    assert "use_multiple_sdk_containers" not in experiments
    assert "use_runner_v2" in experiments


def test_all_steps_run_in_the_one_image(submission) -> None:
    assert submission.pool["workerHarnessContainerImage"] == IMAGE
    assert [image["containerImage"] for image in submission.pool["sdkHarnessContainerImages"]] == [IMAGE]
    ((name, environment),) = submission.environments.items()
    assert environment.urn == "beam:env:docker:v1"
    assert environment.payload == bytes([10, len(IMAGE)]) + IMAGE.encode()  # DockerPayload.container_image
    used = {step.environment_id for step in submission.graph.components.transforms.values()}
    assert used == {name, ""}  # Impulse and GroupByKey are the service's own


def test_no_step_asks_for_resources_of_its_own(submission) -> None:
    """Another environment would split fusion, and load the model in a second process."""
    (environment,) = submission.environments.values()
    assert dict(environment.resource_hints) == {}


def test_nothing_is_installed_on_workers_and_nothing_of_the_launcher_travels(submission) -> None:
    assert set(submission.staged) - PIP_FREEZE == {"staged/JOB/pipeline.pb"}
    assert {f"staged/JOB/{package['name']}" for package in submission.pool.get("packages", ())} <= PIP_FREEZE


def test_images_stay_inside_one_stage(submission) -> None:
    """Fusion breaks twice: between numbers of shards, and between sums. Nothing between them has a key."""
    steps = submission.graph.components.transforms.values()
    assert sorted(step.unique_name for step in steps if step.spec.urn == "beam:transform:group_by_key:v1") == [
        "Spread/ReshufflePerKey/GroupByKey", "WriteSums/CombineSums/CombinePerKey/GroupByKey"
    ]  # fmt: skip
    assert submission.steps() == ["FinishRun", "PendingShards", "ProcessShards", "Spread", "WriteSums"]


def test_no_list_of_images_travels(place, submission) -> None:
    content = unpacked(submission.data)
    assert f"{place}/run".encode() in content  # where the manifest lies
    assert b"pipeline.transforms" in content
    assert b".jpg" not in content
    assert b".png" not in content


@pytest.mark.slow
def test_the_graph_that_was_submitted_explains_the_images(place, submission) -> None:
    """Read back from the bucket, and run by Beam's own runner in a process that knows nothing but the graph."""
    run_graph_of_job(submission.data)
    assert list(verify_run(f"{place}/run")) == []
    config = RunConfig((f"{place}/photographs/",), f"{place}/model.keras", f"{place}/waited", preprocess="tf",
                       jit="off", precision="bfloat16", shard_size=4)  # fmt: skip
    run_job(config, [])
    there, here = open_run(f"{place}/run"), open_run(f"{place}/waited")
    assert [record.logits.tolist() for record in there] == [record.logits.tolist() for record in here]
    assert [values.encoded for record in there for values in record.maps] == [
        values.encoded for record in here for values in record.maps
    ]
    same = ("inputs", "records", "failures", "overlays", "shards", "shards_this_time", "sums", "config_digest")
    assert {name: there.summary[name] for name in same} == {name: here.summary[name] for name in same}


# How large a job may become


def plan_of(pending: tuple[int, ...], n_images: int = 100_000_000) -> Plan:
    config = RunConfig(("gs://bucket/photos/",), "gs://bucket/model.keras", "gs://bucket/big", preprocess="tf",
                       methods=("gradcam", "layercam"), storage_options=("gs.project=my-project",))  # fmt: skip
    metadata = {
        "config_digest": "c",
        "model_digest": "d",
        "class_names": json.dumps([f"class {i}" for i in range(1000)]),
    }
    return Plan(config, n_images, 0, -(-n_images // 256), pending, metadata)


def submit(plan: Plan, place: str, *words: str) -> Submission:
    options = prepare_options([*job_words(place), *words], plan.config)
    run_graph(plan, options)
    return read_submission(None, place)


@pytest.fixture
def no_credentials(gcs: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Beam's clients ask for none in this process; yields a place."""
    from apache_beam.internal.gcp import auth

    monkeypatch.setattr(auth._Credentials, "_credentials_init", True)
    return gcs


@pytest.mark.parametrize(
    ("every", "largest"),
    [(1, 100_000), (2, 150_000)],
    ids=["a fresh run", "every second shard is left"],
)
def test_a_night_of_a_hundred_million_images_is_a_small_job(no_credentials, every, largest) -> None:
    plan = plan_of(tuple(range(0, 390_625, every)))
    assert plan.n_shards == 390_625
    found = submit(plan, no_credentials)
    sizes = len(json.dumps(found.job)), len(found.data)
    assert sum(sizes) < largest, sizes  # of the ten million bytes that Dataflow takes


def test_a_hint_of_the_user_is_the_whole_graphs_and_takes_the_place_of_the_service_option(no_credentials) -> None:
    hint = "type:nvidia-l4;count:1;install-nvidia-driver"
    found = submit(plan_of((0, 1)), no_credentials, f"--resource_hints=accelerator={hint}")
    (environment,) = found.environments.values()
    assert dict(environment.resource_hints) == {"beam:resources:accelerator:v1": hint.encode()}
    assert "serviceOptions" not in found.job["environment"]


def test_a_machine_without_a_gpu_asks_for_none(no_credentials) -> None:
    found = submit(plan_of((0, 1)), no_credentials, "--machine_type=n2-standard-8", "--num_workers=3")
    assert "serviceOptions" not in found.job["environment"]
    assert (found.pool["machineType"], found.pool["numWorkers"]) == ("n2-standard-8", 3)


# A job that is waited for


def words_of_waiting(place: str, endpoint: str, name: str) -> list[str]:
    words = [word for word in job_words(f"{place}/{name}") if not word.startswith("--template_location")]
    words += [f"--images={place}/photographs/", f"--model={place}/model.keras", f"--output={place}/{name}/run"]
    words += ["--preprocess=tf", "--jit=off", "--precision=float32", "--shard-size=4", "--overlays=none"]
    return ["run", *words, f"--dataflow_endpoint={endpoint}"]


@pytest.mark.slow
def test_a_job_that_is_waited_for_is_summed_up_by_who_waits(place) -> None:
    with running_service() as service:
        ended = launch(CLI, words_of_waiting(place, service.endpoint, "whole"))
        (job,) = service.jobs.values()
    assert ended.returncode == 0, ended.stderr
    assert "13 records, 0 failures, 0 overlays" in ended.stdout
    assert job["currentState"] == "JOB_STATE_DONE"
    assert job["environment"]["workerPools"][0]["machineType"] == "g2-standard-8"
    assert list(verify_run(f"{place}/whole/run")) == []
    assert open_run(f"{place}/whole/run").summary["shards_this_time"] == 4


@pytest.mark.slow
def test_a_job_that_fails_over_there_is_told_in_one_line_and_gone_on_with(place) -> None:
    """One whose model has vanished when the workers start: nothing is committed, and the reason is the worker's own."""
    with running_service() as service:
        storage.write_bytes(f"{place}/broken/model.keras", storage.read_bytes(f"{place}/model.keras"))
        words = [word.replace(f"{place}/model.keras", f"{place}/broken/model.keras")
                 for word in words_of_waiting(place, service.endpoint, "broken")]  # fmt: skip
        service.before = lambda: storage.remove_file(f"{place}/broken/model.keras")
        ended = launch(CLI, words)
        assert ended.returncode == 1
        (line,) = (line for line in ended.stderr.splitlines() if line.startswith("beamcam: "))
        assert re.search(
            r"the job broke off: .*model\.keras.*0 of 4 shards are committed and kept; the same command", line
        )
        storage.write_bytes(f"{place}/broken/model.keras", storage.read_bytes(f"{place}/model.keras"))
        service.before = lambda: None
        assert launch(CLI, words).returncode == 0
    assert list(verify_run(f"{place}/broken/run")) == []


# The template


def test_a_launch_that_finds_nothing_to_do_still_gives_a_job(no_credentials, photographs, tiny_model_path) -> None:
    """The service waits for one; this one makes sure that the run is summed up, and nothing else."""
    place = no_credentials
    for path in photographs.glob("0?.*"):
        storage.write_bytes(f"{place}/photographs/{path.name}", path.read_bytes())
    storage.write_bytes(f"{place}/model.keras", Path(tiny_model_path).read_bytes())
    config = RunConfig((f"{place}/photographs/",), f"{place}/model.keras", f"{place}/run", preprocess="tf", jit="off",
                       precision="float32", overlays="none")  # fmt: skip
    summary = run_job(config, [])
    assert summary["records"] == 10
    assert run_job(config, job_words(place)) == {}
    found = read_submission(None, place)
    assert found.steps() == ["FinishRun", "Nothing"]
    before = storage.read_bytes(f"{place}/run/run.json")
    with beam.Pipeline(FnApiRunner()) as root:  # what a worker would do
        define_pipeline(root, read_plan(config), detached=True)
    assert storage.read_bytes(f"{place}/run/run.json") == before
    assert list(verify_run(config.output)) == []


def test_a_launch_of_the_template_is_the_same_job(place, submission) -> None:
    words = [str(ROOT / "infra/dataflow/main.py"), f"--images={place}/photographs/", f"--model={place}/model.keras",
             f"--output={place}/templated", "--preprocess=tf", "--jit=off", "--shard_size=4", "--since=",
             "--overwrite=false", "--labels_from=none", *job_words(f"{place}/2"), "--job_name=night-2",
             "--launcher_machine_type=n1-standard-4"]  # fmt: skip
    words = [word for word in words if not word.startswith(("--runner", "--sdk_container_image"))]
    ended = launch(LAUNCHED, words)
    assert ended.returncode == 0, ended.stderr
    assert "--launcher_machine_type is passed over: Beam has no such option" in ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert lines[-1]["message"].startswith("submitted: the engine goes on alone")
    found = read_submission(ended, f"{place}/2")
    assert found.job["name"] == "night-2"
    for name in ("machineType", "diskSizeGb", "numThreadsPerWorker", "workerHarnessContainerImage"):
        assert found.pool[name] == submission.pool[name]
    assert found.job["environment"]["serviceOptions"] == submission.job["environment"]["serviceOptions"]
    assert found.job["environment"]["experiments"] == submission.job["environment"]["experiments"]
    assert found.steps(9) == submission.steps(9)
    assert f"{place}/templated".encode() in unpacked(found.data)
