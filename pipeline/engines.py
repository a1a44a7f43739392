"""What each of Beam's runners wants: options that are filled in, and jobs that are refused since they would fail.

It knows Beam's options by their names alone, so that everything here can be asked without Beam. `given` is always what
was said on the command line (`defaults.Given`).
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline import dataflow, storage
from pipeline.config import RunConfig
from pipeline.defaults import Default, Given, missing
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Engine:
    """What is known of one of Beam's runners."""

    defaults: Callable[[Given], Iterable[Default]]
    objections: Callable[[Given, RunConfig], Iterable[str]]


def fill_in(given: Given) -> list[Default]:
    """The options that a job's runner wants and nobody has said anything about."""
    return list(_engine_of(given).defaults(given))


def check_job(given: Given, config: RunConfig) -> None:
    """Refuses a job that its runner is known to fail, before anything is started.

    Args:
        given: with what `fill_in` adds.
        config: the job.

    Raises:
        ConfigError: with the reason, and the way out.
    """
    for objection in itertools.chain(_template_objections(given), _engine_of(given).objections(given, config)):
        raise ConfigError(objection)


def check_images(given: Given, uris: Iterable[str]) -> None:
    """Refuses images that the workers of a job's runner cannot read.

    Raises:
        ConfigError: with the first one of them.
    """
    if name_of_runner(given) != "dataflow":
        return
    for uri in uris:
        if storage.is_local(uri):
            raise ConfigError(
                f"the image {uri!r} is on this machine, which Dataflow's cannot read: copy the images to a bucket, and "
                "name that as --images, or its uris in the manifest"
            )


def suit_machines(given: Given, config: RunConfig) -> tuple[RunConfig, list[Default]]:
    """Decides what a job leaves to the machine that it starts on, where that is not the one that it runs on.

    Returns:
        The configuration, and what was decided.
    """
    return dataflow.suit_gpus(given, config) if name_of_runner(given) == "dataflow" else (config, [])


def is_detached(given: Given) -> bool:
    """Whether the job goes on without the process that has submitted it, so that workers must sum it up."""
    return bool(given.get("template_location") or given.get("no_wait_until_finish"))


def name_of_runner(given: Given) -> str:
    """The runner's name in one way of writing: `dataflow` for `DataflowRunner`, `dataflow` and its whole path."""
    name = str(given.get("runner") or "direct").rsplit(".", 1)[-1].lower()
    return name.removesuffix("runner") or name


def _engine_of(given: Given) -> Engine:
    return ENGINES.get(name_of_runner(given), ANY)


def _nothing(_: Given) -> Iterator[Default]:
    return iter(())


def _never(_: Given, __: RunConfig) -> Iterator[str]:
    return iter(())


def _template_objections(given: Given) -> Iterator[str]:
    # Others pass over it without a word: the job runs to its end, and is told to be submitted.
    if given.get("template_location") is not None and name_of_runner(given) != "dataflow":
        yield "--template_location is an option of Dataflow, and without --runner DataflowRunner the job runs at once"


# Runners in this process or beside it


_FOR_DATAFLOW = ("machine_type", "max_num_workers", "dataflow_service_options")


def _direct_objections(given: Given, _: RunConfig) -> Iterator[str]:
    for name in _FOR_DATAFLOW:  # Beam would pass over them without a word, and the night's job would run right here
        if given.get(name) is not None:
            yield f"--{name} is an option of Dataflow, and without --runner DataflowRunner the job runs on this machine"


def _prism_objections(given: Given, _: RunConfig) -> Iterator[str]:
    if given.get("prism_location") is None:
        yield (
            "--runner PrismRunner would fetch an executable from the internet that nobody has checked: build it with "
            "infra/prism/get.sh, and give its path as --prism_location"
        )
    if given.get("no_wait_until_finish") and not given.get("job_endpoint"):
        yield "--no_wait_until_finish would end the job at once: Prism is started by this command, and ends with it"


def _dask_objections(given: Given, _: RunConfig) -> Iterator[str]:
    # It drops what a bundle puts out at its end, which is our markers: a run is summed up from those on disk.
    if is_detached(given):
        yield "--runner DaskRunner leaves the step out that sums a run up: let the command wait for the job"


def _interactive_objections(_: Given, __: RunConfig) -> Iterator[str]:
    yield "--runner InteractiveRunner keeps every step's output for a notebook: use --runner DirectRunner"


def _render_objections(_: Given, __: RunConfig) -> Iterator[str]:
    yield "--runner RenderRunner draws a graph and explains no image: say --dry-run for a plan"


# Flink


EMBEDDED = ("[local]", "[auto]")
_NAME_WORKERS = ("environment_type", "environment_config", "environment_options")
FLINK_TIMEOUT = 10.0  # seconds for a cluster to say how many slots it has


def _flink_defaults(given: Given) -> Iterator[Default]:
    cluster = _flink_cluster(given)
    if cluster:
        yield from _image_defaults(given)
    slots = _flink_slots(cluster) if cluster and given.get("parallelism") is None else None
    if isinstance(slots, int) and slots > 0:
        yield Default(f"--parallelism={slots}", "a worker for each free slot of the cluster: Flink would take just one")


def _image_defaults(given: Given) -> Iterator[Default]:
    image, kind = given.get("sdk_container_image"), given.get("environment_type") or "DOCKER"
    if image and kind == "DOCKER" and not given.get("environment_options"):
        yield from missing(
            given,
            Default("--environment_type=DOCKER", "workers come from the image that --sdk_container_image names"),
            Default(f"--environment_config={image}", "Beam on Flink would start its own image, without beamcam in it"),
        )


def _flink_objections(given: Given, _: RunConfig) -> Iterator[str]:
    jar = str(given.get("flink_job_server_jar") or "")
    if jar and "://" not in jar and not Path(jar).exists():
        yield f"--flink_job_server_jar {jar!r} is not there: infra/flink/get.sh makes one"
    cluster = _flink_cluster(given)
    # For a cluster it may be this process itself that puts the jar of a job together and hands that over.
    if not given.get("job_endpoint") and not (cluster and given.get("flink_submit_uber_jar")):
        yield from _job_server_objections(given)
    if cluster is None:
        return
    if not any(given.get(name) for name in _NAME_WORKERS):
        yield (
            "Flink must be told where its Python workers come from: --environment_type=EXTERNAL "
            "--environment_config=localhost:50000 for a pool beside each TaskManager (infra/flink/README.md), or "
            "--environment_type=DOCKER --environment_config=IMAGE for an image with beamcam in it"
        )
    if isinstance(why := _flink_slots(cluster), str):
        yield f"--flink_master: no Flink answers at {cluster} ({why}): is it up, and is that its REST port?"


def _job_server_objections(given: Given) -> Iterator[str]:
    java = str(given.get("job_server_java_launcher") or "java")
    if shutil.which(java) is None:
        yield f"--runner FlinkRunner starts Beam's job server, and there is no {java!r} here: install Java 11 or 17"
    if given.get("no_wait_until_finish"):
        yield (
            "--no_wait_until_finish would submit nothing: Beam's job server is started by this command, and ends with "
            "it before Flink has the job; let the command wait, or name a job server of your own with --job_endpoint"
        )


def _flink_cluster(given: Given) -> str | None:
    """The address of the cluster that this process submits to; None if it does not."""
    master = str(given.get("flink_master") or EMBEDDED[0]).strip()
    if master in EMBEDDED or given.get("job_endpoint"):
        return None
    return master.rstrip("/") if re.match("https?://", master) else f"http://{master}"


def _flink_slots(cluster: str) -> int | str | None:
    """How many slots a cluster has, the free ones if there are some; None if it does not tell; why it is silent."""
    # Not by the proxy that the environment may name: Beam's job server, which is to reach the cluster, uses none.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{cluster}/overview", timeout=FLINK_TIMEOUT) as answer:
            told = json.load(answer)
            total, free = int(told["slots-total"]), int(told.get("slots-available", 0))
            return free if free > 0 else total
    except urllib.error.HTTPError:  # somebody is there, who wants to be asked by the job server alone
        return None
    except OSError as error:
        return str(getattr(error, "reason", error))
    except http.client.InvalidURL as error:
        return str(error)
    except (http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
        return "what answers is no Flink"


ANY = Engine(_nothing, _never)
ENGINES = {
    "direct": Engine(_nothing, _direct_objections),
    "fnapi": Engine(_nothing, _direct_objections),
    "dataflow": Engine(dataflow.dataflow_defaults, dataflow.dataflow_objections),
    "flink": Engine(_flink_defaults, _flink_objections),
    "portable": ANY,
    "prism": Engine(_nothing, _prism_objections),
    "dask": Engine(_nothing, _dask_objections),
    "interactive": Engine(_nothing, _interactive_objections),
    "render": Engine(_nothing, _render_objections),
}
"""By `name_of_runner`; of others nothing is known."""
