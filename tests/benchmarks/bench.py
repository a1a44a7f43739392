"""`make bench`: what explaining costs beside the model's own forward pass, measured interleaved, as ratios of one run.

    program   one-pass explanation of a batch in memory against `model(x)` in a `tf.function`
    scorecam  masked forward passes of Score-CAM against plain ones
    job       JPEG files to Parquet and full-size PNG overlays against that forward pass
    memory    peak memory of a long run against that of a short one

Each figure is the median over rounds in which both sides take turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import explainers as ex
from pipeline import RunConfig, open_run, run_job
from pipeline.demo_data import make_dataset

ROOT = Path(__file__).parent.parent.parent
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "images"
SPECS = {name: f"keras.applications:{name}?weights=none" for name in ("MobileNetV2", "ResNet50V2")}
BATCH = 32
SEED = 0


def interleave(rounds: int, *functions: Callable[[], object]) -> list[list[float]]:
    """Seconds of each function, called in turns after a round that does not count."""
    samples: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, times in zip(functions, samples, strict=True):
            start = time.perf_counter()
            function()
            if number:
                times.append(time.perf_counter() - start)
    return samples


def report(what: str, base: list[float], other: list[float], images: tuple[int, int]) -> None:
    """Prints both rates, their ratio, and the raw samples."""
    ratios = [(images[1] / o) / (images[0] / b) for b, o in zip(base, other, strict=True)]
    rates = [statistics.median(n / s for s in times) for n, times in zip(images, (base, other), strict=True)]
    quartiles = np.quantile(ratios, [0.25, 0.75])
    print(f"{what}: {statistics.median(ratios):.3f} of the forward pass (quartiles {quartiles[0]:.3f} to "
          f"{quartiles[1]:.3f}); {rates[1]:.1f} against {rates[0]:.1f} images/s")  # fmt: skip
    print("    forward", " ".join(f"{s:.3f}" for s in base), "| explained", " ".join(f"{s:.3f}" for s in other))


def forward_pass(model: keras.Model) -> Callable[[], np.ndarray]:
    """The user's own model on one batch, as fast as TensorFlow runs it unasked; results are fetched."""
    program = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec((BATCH, 224, 224, 3), tf.float32)
    )
    inputs = tf.random.stateless_uniform((BATCH, 224, 224, 3), (SEED, 1), -1, 1)
    return lambda: program(inputs).numpy()


def build(name: str) -> keras.Model:
    """An architecture of keras.applications with random weights: its speed does not depend on them."""
    keras.utils.set_random_seed(SEED)
    return getattr(keras.applications, name)(weights=None)


def bench_program(rounds: int) -> None:
    """One-pass Grad-CAM of the best class, chosen inside the program, from uint8 pixels."""
    for name in SPECS:
        model = build(name)
        explainer = ex.Explainer(model, ["gradcam"], top_k=1, batch_size=BATCH, preprocess="tf", jit="auto")
        pixels = np.random.default_rng(SEED).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
        forward, explained = interleave(rounds, forward_pass(model), lambda e=explainer, p=pixels: e(p))
        report(
            f"program, Grad-CAM top-1, {name}, XLA {'on' if explainer.jit else 'off'}",
            forward,
            explained,
            (BATCH, BATCH),
        )


SHARING = ["gradcam", "gradcampp", "hirescam", "xgradcam", "layercam", "gradcam_guided"]


def bench_many(rounds: int) -> None:
    """Six methods that share one pass, for the three best classes, against the forward pass."""
    for name in SPECS:
        model = build(name)
        explainer = ex.Explainer(model, SHARING, top_k=3, batch_size=BATCH, preprocess="tf", jit=False)
        pixels = np.random.default_rng(SEED).integers(0, 256, (BATCH, 224, 224, 3), dtype=np.uint8)
        forward, explained = interleave(rounds, forward_pass(model), lambda e=explainer, p=pixels: e(p))
        report(f"program, {len(SHARING)} methods top-3, {name}", forward, explained, (BATCH, BATCH))


CHANNELS = 16


def scorecam_program(exposed: ex.Exposed, inputs: tf.Tensor) -> Callable[[], np.ndarray]:
    """Score-CAM of one unit of each image on its strongest channels, compiled."""
    units = tf.zeros((BATCH, 1), tf.int32)
    scorecam = ex.methods.perturbation.scorecam
    program = tf.function(lambda x: scorecam(exposed, x, units, channels=CHANNELS)[1], autograph=False)
    compiled = program.get_concrete_function(inputs)
    return lambda: compiled(inputs).numpy()


def bench_scorecam(rounds: int) -> None:
    """Masked forward passes of Score-CAM, at the rate of plain ones; the pass that gives the masks counts as one."""
    for name in SPECS:
        model = build(name)
        inputs = tf.random.stateless_uniform((BATCH, 224, 224, 3), (SEED, 1), -1, 1)
        program = scorecam_program(ex.expose(model), inputs)
        forward, masked = interleave(rounds, forward_pass(model), program)
        report(f"Score-CAM, {CHANNELS} channels, {name}", forward, masked, (BATCH, BATCH * (CHANNELS + 1)))


def photographs(folder: Path) -> Path:
    """Two hundred JPEG files: the photographs beside the checkout, or the demo's if there are none."""
    if PHOTOGRAPHS.is_dir():
        return PHOTOGRAPHS
    return make_dataset(folder / "data", 200, SEED, broken=0).images


def bench_job(rounds: int, folder: Path) -> None:
    """The whole job with every overlay, the model loaded, against the forward pass of as many images."""
    images = photographs(folder)
    for name, spec in SPECS.items():
        for overlays in ("none", "blend"):
            config = RunConfig(
                (str(images),), spec, str(folder / "run"), preprocess="tf", resize="crop", overlays=overlays
            )
            forward = forward_pass(build(name))

            def job(config: RunConfig = config) -> None:
                run_job(config, [], overwrite=True)

            def forward_many(forward: Callable[[], object] = forward) -> None:
                for _ in range(200 // BATCH):
                    forward()

            base, other = interleave(rounds, forward_many, job)
            n = open_run(config.output).summary["inputs"]
            report(f"job, overlays {overlays}, {name}", base, other, (200 // BATCH * BATCH, n))


def peak_memory(count: int, folder: Path) -> float:
    """Peak resident memory in MB of a process that explains so many images, listed again and again under new names."""
    source = sorted(photographs(folder).rglob("*.[jJ][pP]*"))
    links = folder / f"links-{count}"
    links.mkdir()
    for i in range(count):
        (links / f"{i:05d}.jpg").symlink_to(source[i % len(source)])
    arguments = [str(links), SPECS["MobileNetV2"], str(folder / f"memory-{count}")]
    code = "import sys; from tests.benchmarks.bench import run_for_memory; run_for_memory(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def run_for_memory(images: str, model: str, output: str) -> None:
    """In a process of its own: the job, then the peak on standard output."""
    run_job(RunConfig((images,), model, output, preprocess="tf", jit="off"), [])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def bench_memory(folder: Path) -> None:
    """Memory must not grow with the number of images."""
    short, long = peak_memory(500, folder), peak_memory(2000, folder)
    print(f"memory, 2,000 images against 500: {long / short:.3f} ({long:.0f} MB against {short:.0f} MB)")


def main() -> None:
    """Runs what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["program", "scorecam", "job", "memory"]
    parser.add_argument("what", nargs="*", default=parts, help=", ".join(parts))
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default: %(default)s)")
    arguments = parser.parse_args()
    device = ", ".join(d.name for d in tf.config.list_physical_devices())
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {os.cpu_count()} cores, {device}")
    print(f"batch {BATCH}, seed {SEED}, medians of interleaved rounds")
    with tempfile.TemporaryDirectory() as folder:
        if "program" in arguments.what:
            bench_program(arguments.rounds)
            bench_many(arguments.rounds)
        if "scorecam" in arguments.what:
            bench_scorecam(max(3, arguments.rounds // 2))
        if "job" in arguments.what:
            bench_job(max(3, arguments.rounds // 2), Path(folder))
        if "memory" in arguments.what:
            bench_memory(Path(folder))


if __name__ == "__main__":
    main()
