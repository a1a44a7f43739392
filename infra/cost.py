"""Images an hour and price per million images on machines that one does not have, from a run on the machine one has.

python infra/cost.py RUN [--machine NAME=VCPUS,DOLLARS_AN_HOUR[,IMAGES_A_SECOND_OF_ITS_GPU]] ...

What a processor does for an image (reading, decoding, records, overlays) was measured: run.json has it. What a GPU does
for it was not: that number, and the prices, are the caller's, or the assumptions below.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Machine:
    """A worker's machine: processors, US dollars an hour for all of it, images/s of its GPU, if any."""

    name: str
    vcpus: float
    dollars: float
    gpu: float | None = None


ASSUMED = (
    # Dataflow's batch prices of us-central1 as remembered in 2026, with the GPU and a disk of 100 GB, and a network of
    # ResNet50's size at 224 pixels in low precision: look up your own.
    Machine("n1-standard-8, T4", 8, 8 * 0.056 + 30 * 0.003557 + 0.42 + 100 * 0.000054, 800),
    Machine("g2-standard-8, L4", 8, 8 * 0.056 + 32 * 0.003557 + 0.672 + 100 * 0.000054, 2000),
    Machine("n2d-standard-16", 16, 16 * 0.056 + 64 * 0.003557 + 100 * 0.000054),
)


@dataclass(frozen=True)
class Cost:
    """What a machine makes of a data set: its pace, what holds it up, and what a million images cost."""

    machine: Machine
    rate: float  # images/s
    bottleneck: str  # "processors" or "GPU"

    @property
    def an_hour(self) -> float:
        """Images of an hour of one machine."""
        return 3600 * self.rate

    @property
    def a_million(self) -> float:
        """US dollars for a million images."""
        return self.machine.dollars * 1e6 / self.an_hour


def estimate(summary: Mapping[str, Any], cores: float, machine: Machine) -> Cost:
    """The cost of a run's images on another machine.

    Args:
        summary: the content of a run.json. Its `seconds_by_stage` are those of a processor, but for the model's.
        cores: those that the run was measured on; the other machine's count as much.
        machine: the other one.
    """
    images, stages = summary["inputs"] - summary.get("carried", 0), summary["seconds_by_stage"]
    if machine.gpu is None:  # the whole of it, as it ran
        return Cost(machine, images / summary["seconds"] * machine.vcpus / cores, "processors")
    beside = sum(seconds for stage, seconds in stages.items() if stage != "model") / images
    rate = min(machine.gpu, machine.vcpus / beside)
    return Cost(machine, rate, "GPU" if rate == machine.gpu else "processors")


def parse_machine(text: str) -> Machine:
    """NAME=VCPUS,DOLLARS[,IMAGES]."""
    name, _, numbers = text.partition("=")
    try:
        vcpus, dollars, *gpu = map(float, numbers.split(","))
        return Machine(name, vcpus, dollars, *gpu)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"a machine is NAME=VCPUS,DOLLARS_AN_HOUR or NAME=VCPUS,DOLLARS_AN_HOUR,IMAGES_A_SECOND, not {text!r}"
        ) from None


def describe(costs: Sequence[Cost]) -> list[str]:
    """A table in Markdown."""
    lines = [
        "| machine | images/s | images an hour | held up by | $ an hour | $ a million images |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {cost.machine.name} | {cost.rate:,.0f} | {cost.an_hour:,.0f} | {cost.bottleneck} | "
        f"{cost.machine.dollars:.2f} | {cost.a_million:.2f} |"
        for cost in costs
    ]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser("cost.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", help="folder of a finished run on this disk")
    parser.add_argument(
        "--machine", action="append", type=parse_machine, help="one to tell the cost of; may be given again"
    )
    parser.add_argument(
        "--cores", type=int, default=os.cpu_count(), help="of the machine of the run (default: this one's)"
    )
    arguments = parser.parse_args(argv)
    summary = json.loads((Path(arguments.run) / "run.json").read_text())
    costs = [estimate(summary, arguments.cores, machine) for machine in arguments.machine or ASSUMED]
    sys.stdout.write("\n".join(describe(costs)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
