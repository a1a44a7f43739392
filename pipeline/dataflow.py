"""What Dataflow wants of a job: machines with a GPU, one process on each of them, files that all of them can read."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import re
import sys
from collections.abc import Iterator
from typing import Any

from pipeline import storage
from pipeline.config import RunConfig
from pipeline.defaults import Default, Given, missing, option_of

GPU_FAMILIES = {
    "g2": ("nvidia-l4",),
    "n1": ("nvidia-tesla-t4", "nvidia-tesla-v100", "nvidia-tesla-p4", "nvidia-tesla-p100"),
    "a2": ("nvidia-tesla-a100", "nvidia-a100-80gb"),
    "a3": ("nvidia-h100-80gb", "nvidia-h100-mega-80gb", "nvidia-h200-141gb"),
}
"""Families of machines that have GPUs or can be given some, and of which types."""

_GPUS_OF_MACHINES = {
    **{f"g2-standard-{processors}": ("nvidia-l4", 1) for processors in (4, 8, 12, 16, 32)},
    "g2-standard-24": ("nvidia-l4", 2),
    "g2-standard-48": ("nvidia-l4", 4),
    "g2-standard-96": ("nvidia-l4", 8),
    "a2-highgpu-1g": ("nvidia-tesla-a100", 1),
    "a2-ultragpu-1g": ("nvidia-a100-80gb", 1),
}

# As `explainers.devices` decides where the GPU is at hand: by compute capability, which is below 7 for the others.
_GAINS = (
    ("bfloat16", ("nvidia-l4", *GPU_FAMILIES["a2"], *GPU_FAMILIES["a3"])),
    ("float16", ("nvidia-tesla-t4", "nvidia-tesla-v100")),
)

_ARM = ("t2a", "c4a", "n4a", "a4x")
_NEEDED = ("project", "region", "temp_location", "sdk_container_image")
MACHINE = "g2-standard-8"
DRIVER = "install-nvidia-driver:5xx"


def dataflow_defaults(given: Given) -> Iterator[Default]:
    """What is filled in, each with its reason."""
    if not _says(given, "enable_prime"):  # which chooses machines by itself
        yield from _machine_defaults(given)
    most = max(10, given.get("num_workers") or 0)
    yield from missing(
        given,
        Default("--disk_size_gb=50", "Dataflow's own 25 GB are tight for an image with CUDA, packed and unpacked"),
        Default("--number_of_worker_harness_threads=2", "while one bundle ends, the next one keeps the model busy"),
        Default(f"--max_num_workers={most}", "Dataflow's own limit is a thousand machines, and each has a price"),
        # Beam pickles what __main__ holds, which is the command line: workers need nothing of it.
        Default("--no_save_main_session", "workers import the project from the image"),
    )
    if not any(name.endswith("use_multiple_sdk_containers") for name in given.get("experiments") or ()):
        word = "--experiments=no_use_multiple_sdk_containers"
        yield Default(word, "one process a machine: each processor's own would load the model, into the same GPU")


def _machine_defaults(given: Given) -> Iterator[Default]:
    machine = given.get("machine_type") or MACHINE
    word = f"--machine_type={MACHINE}"
    yield from missing(given, Default(word, "one L4, and eight processors to decode for it and encode behind it"))
    gpu = _gpu_of_machine(machine)
    if gpu and not _accelerators(given) and not _accelerator_hints(given):
        word = f"--dataflow_service_options={_as_option(*gpu)}"
        yield Default(word, f"the GPU{'s' if gpu[1] > 1 else ''} of {machine}, with a driver for CUDA 12")


def _gpu_of_machine(machine: str) -> tuple[str, int] | None:
    """The type and the number of the GPUs to be asked for, where both are certain."""
    return ("nvidia-tesla-t4", 1) if _family(machine) == "n1" else _GPUS_OF_MACHINES.get(machine)


def _as_option(kind: str, count: int | str) -> str:
    return f"worker_accelerator=type:{kind};count:{count};{DRIVER}"


def dataflow_objections(given: Given, config: RunConfig) -> Iterator[str]:
    """Why Dataflow would fail a job, or waste its GPUs."""
    if not _is_installed("google.cloud.dataflow"):
        yield "--runner DataflowRunner needs Google's client of Dataflow: pip install 'beamcam[dataflow]'"
    missing = [f"--{name}" for name in _NEEDED if not given.get(name)]
    if missing:
        yield f"--runner DataflowRunner needs {', '.join(missing)}: see infra/dataflow/README.md"
    yield from _place_objections(given, config)
    yield from _machine_objections(given)
    yield from _image_objections(given)
    if given.get("streaming") or given.get("update"):
        yield "--streaming and --update are for jobs without an end: a run has one, and the same command resumes it"


def suit_gpus(given: Given, config: RunConfig) -> tuple[RunConfig, list[Default]]:
    """Decides what a job leaves to the GPU that it finds, for that of the workers: where it is launched there is none.

    Returns:
        The configuration, and what was decided.
    """
    gpus = {_gpu_of(word) for word in (*_accelerators(given), *_accelerator_hints(given))}
    if not gpus:
        return config, []
    gain = next((precision for precision, kinds in _GAINS if gpus <= set(kinds)), "float32")
    decided = [
        Default(f"--precision={gain}", f"what gains most on {' and '.join(sorted(gpus))}"),
        Default("--jit=off", "no GPU is here to tell what XLA would gain: --jit on tries it"),
    ]
    decided = [default for default in decided if getattr(config, option_of(default.word)) == "auto"]
    values: dict[str, Any] = {option_of(default.word): default.word.partition("=")[2] for default in decided}
    return dataclasses.replace(config, **values), decided


def _place_objections(given: Given, config: RunConfig) -> Iterator[str]:
    for name in ("temp_location", "staging_location"):
        place = str(given.get(name) or "gs://")
        if not place.startswith("gs://"):
            yield f"--{name} is a folder in a bucket (gs://...), not {place!r}: Dataflow's machines read from it"
    named = {"output": config.output, "model": config.model, "class-names": config.class_names, "since": config.since}
    for name, uri in named.items():
        if uri is not None and _is_on_this_machine(name, uri):
            yield f"--{name} {uri!r} is on this machine, which Dataflow's cannot read: copy it to a bucket (gs://...)"


def _is_on_this_machine(name: str, uri: str) -> bool:
    # keras.applications:NAME and module:factory are no files.
    is_file = storage.is_local(uri) and (name != "model" or ":" not in uri or uri.startswith(("file:", "/")))
    return is_file or uri.startswith("memory:")


def _machine_objections(given: Given) -> Iterator[str]:
    machine, family = str(given.get("machine_type") or MACHINE), _family(given.get("machine_type") or MACHINE)
    accelerators, hints = _accelerators(given), _accelerator_hints(given)
    if family in _ARM:
        yield f"--machine_type {machine} has Arm processors, and the image is for x86-64: take n1, n2, e2 or g2"
    if accelerators and hints:
        yield (
            f"the GPU is named twice, by worker_accelerator of --dataflow_service_options and by the hint {hints[0]!r}"
            ": leave --resource_hints out, since Dataflow takes one of them"
        )
    if accelerators and _says(given, "enable_prime"):
        yield "enable_prime chooses machines by hints, and fails beside worker_accelerator: leave one of them out"
    known = _gpu_of_machine(machine) or accelerators or hints or _says(given, "enable_prime")
    if family in GPU_FAMILIES and not known:
        option = f"--dataflow_service_options={_as_option('TYPE', 'COUNT')!r}"
        kinds = ", ".join(GPU_FAMILIES[family])
        yield f"which GPUs --machine_type {machine} has is not known here: add {option}, with one of {kinds}"
    for option in accelerators:
        yield from _accelerator_objections(option, machine, given)


def _accelerator_objections(option: str, machine: str, given: Given) -> Iterator[str]:
    family, kind = _family(machine), _gpu_of(option)
    wanted = next((name for name, kinds in GPU_FAMILIES.items() if kind in kinds), None)
    # Nothing is said of a family and a GPU that are both unknown: newer ones than these.
    if (wanted or family in GPU_FAMILIES) and kind not in GPU_FAMILIES.get(family, ()):
        known = ", ".join(itertools.chain(*GPU_FAMILIES.values()))
        way_out = f"take one of the family {wanted}" if wanted else f"it is one of {known}"
        yield f"--machine_type {machine} cannot have the GPU {kind!r}: {way_out}"
    if "install-nvidia-driver" not in option:
        yield f"{option!r} asks for no driver, without which the GPU is paid for and not used: add ;{DRIVER}"
    if given.get("flexrs_goal"):
        yield "--flexrs_goal has no machines with GPUs: leave it out"


def _image_objections(given: Given) -> Iterator[str]:
    image, here = str(given.get("sdk_container_image") or ""), "{}.{}".format(*sys.version_info[:2])
    told = re.search(r"py(?:thon)?-?(3\.\d+)", image)
    if told and told[1] != here:
        yield (
            f"the image {image!r} has Python {told[1]}, and this is Python {here}: what one packs the other cannot "
            f"unpack; launch with Python {told[1]}, or build the image with PYTHON={here} infra/dataflow/build.sh"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def _family(machine: str) -> str:
    return str(machine).removeprefix("custom-").partition("-")[0] if not str(machine).startswith("custom-") else "n1"


def _says(given: Given, name: str) -> bool:
    """Whether an experiment or a service option is asked for."""
    return any(word.partition("=")[0] == name for key in ("experiments", "dataflow_service_options")
               for word in given.get(key) or ())  # fmt: skip


def _accelerators(given: Given) -> list[str]:
    """Accelerators that are asked for as service options; older documents have them as experiments."""
    return [word for key in ("dataflow_service_options", "experiments") for word in given.get(key) or ()
            if word.startswith("worker_accelerator")]  # fmt: skip


def _gpu_of(option: str) -> str:
    return (re.findall(r"type:([\w-]+)", option) or [""])[0]


def _accelerator_hints(given: Given) -> list[str]:
    return [hint for hint in given.get("resource_hints") or () if "accelerator" in hint.partition("=")[0]]
