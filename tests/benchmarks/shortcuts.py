"""`make shortcuts`: whether the audit finds the demo's planted watermark, and nothing else, whatever the seed.

Each seed is a data set, a trained network, a run and an audit of its own. What was made is kept in the folder and used
again, so that a changed rule is tried in seconds.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from pipeline import RunConfig, demo_data, demo_model, run_job

SHORTCUT = "BC101"


def make_run(folder: Path, count: int, seed: int, marked_share: float) -> Path:
    """The run of one seed, made if it is not there."""
    if not (folder / "model.keras").exists():
        data = demo_data.make_dataset(folder / "data", count, seed, marked_share=marked_share)
        demo_model.train_model(data, seed).save(folder / "model.keras")
    config = RunConfig(
        (str(folder / "data" / "manifest.csv"),), str(folder / "model.keras"), str(folder / "run"),
        class_names=str(folder / "data" / "class_names.txt"), methods=("gradcam",), targets="top:2",
        preprocess="tf", overlays="none", jit="off",
    )  # fmt: skip
    run_job(config, [])
    return folder / "run"


def audit(run: Path) -> dict[str, Any]:
    """What `beamcam audit` finds in a run."""
    command = [sys.executable, "-m", "pipeline.cli", "audit", str(run), "--fail-on", "never"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads((run / "audit" / "findings.json").read_text())


def classes_of(content: dict[str, Any]) -> list[str]:
    """The classes that are said to be recognised by a shortcut, the first finding first."""
    return [one["scope"]["name"] for one in content["findings"] if one["rule"] == SHORTCUT]


def main() -> None:
    """Makes and audits the runs of all seeds, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--count", type=int, default=480, metavar="N", help="images a seed (default: %(default)s)")
    parser.add_argument("--marked-share", type=float, default=demo_data.MARKED_SHARE, metavar="SHARE")
    parser.add_argument("--output", type=Path, default=Path("artifacts/shortcuts"), metavar="DIR")
    options = parser.parse_args()
    found, false, others = 0, 0, collections.Counter[str]()
    print("| seed | first finding | value | called shortcuts | other findings | seconds |\n|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        run = make_run(options.output / str(seed), options.count, seed, options.marked_share)
        start = time.monotonic()
        content = audit(run)
        first = content["findings"][0] if content["findings"] else None
        called = classes_of(content)
        is_first = first is not None and first["rule"] == SHORTCUT and called[0] == demo_data.MARKED_CLASS
        found += is_first
        false += any(name != demo_data.MARKED_CLASS for name in called)
        rest = collections.Counter(one["rule"] for one in content["findings"] if one["rule"] != SHORTCUT)
        others.update(rest)
        what = f"{first['rule']} {first['scope']['name']} | {first['value']:.3g}" if first else "none | "
        row = [str(seed), what, " ".join(called), " ".join(f"{rest[rule]} x {rule}" for rule in sorted(rest))]
        print("| " + " | ".join(row) + f" | {time.monotonic() - start:.1f} |", flush=True)
    print(f"\nthe watermark is the first finding of {found} of {options.seeds} seeds; {false} seeds have a false alarm")
    print("other findings in all: " + (", ".join(f"{others[rule]} x {rule}" for rule in sorted(others)) or "none"))


if __name__ == "__main__":
    main()
