"""A run with photographs on disk, and an audit of it: what the pages of its report are to show is known."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.audit.findings import DATASET, Audit, Example, Examples, Finding, RuleResult, Scope
from pipeline.observations import Observations, read_observations
from pipeline.reading import Run, open_run
from pipeline.records import Entry
from pipeline.sums import Sums
from pipeline.totals import read_sums
from tests.runs import FakeRun

HOSTILE = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror=window.hacked=1>',
    "</script><script>window.hacked=1</script>",
    "{{ 7 * 7 }} & <b>bold</b>",
    "=cmd|'/c calc'!A0 \u202egnp\u0007",
)
"""Names of five classes that none may obey."""


@dataclasses.dataclass(frozen=True)
class PhotoRun(FakeRun):
    """A made-up run whose images are there."""

    photos: str = ""

    def entry(self, number: int) -> Entry:
        """One image; labels are names and indices."""
        entry = super().entry(number)
        label = None if number % 9 == 4 else str(number % 5)
        return dataclasses.replace(entry, label=label, uri=f"{self.photos}/{number:07d}.jpg")


def make_run(folder: Path, n_images: int = 40, names: Sequence[str] | None = None) -> Run:
    """A finished run of JPEGs of several shapes, 5 classes."""
    (folder / "photos").mkdir(parents=True)
    for number in range(n_images):
        size = ((64, 48), (48, 64), (300, 120))[number % 3]
        color = tuple(int(c) for c in np.random.default_rng(number).integers(0, 256, 3))
        Image.new("RGB", size, color).save(folder / "photos" / f"{number:07d}.jpg")
    PhotoRun(str(folder / "run"), n_images, shard_size=16, photos=str(folder / "photos")).write()
    path = folder / "run" / "run.json"
    summary = json.loads(path.read_text()) | {"finished": "2026-11-22T05:12:07Z", "activation_layer": "last"}
    path.write_text(json.dumps(summary | ({"class_names": list(names)} if names else {})))
    return open_run(folder / "run")


def observe_run(run: Run) -> Observations:
    """All that a run says of its images by its first method, in one piece."""
    parts = list(read_observations(run, "gradcam"))
    joined = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in dataclasses.fields(Observations)
        if isinstance(getattr(parts[0], field.name), np.ndarray)
    }
    scalars = {name: np.concatenate([part.scalars[name] for part in parts]) for name in parts[0].scalars}
    return dataclasses.replace(parts[0], uris=[uri for part in parts for uri in part.uris], scalars=scalars, **joined)


def sum_up(run: Run) -> Sums:
    """The sums of a run."""
    return read_sums(run)


def make_finding(run: Run, index: int = 0, rule: str = "BC101", **changes: Any) -> Finding:
    """A finding on a class of the run, with two images that it predicts so, and two of all."""
    seen = observe_run(run)
    examples = [Example(key.decode(), uri) for key, uri in zip(seen.ids, seen.uris, strict=True)]
    named = (run.class_names or [f"class {i}" for i in range(5)])[index]
    worst = [examples[i] for i in np.flatnonzero(seen.predicted == index)[:2]]
    finding = Finding(
        rule, "error", Scope(index, named, "predicted"), 20.5, 4.0, 46,
        f"{named}: 23 % of the maps peak in one place", "look at <this> corner", "lift < 4 & more", (0.17, 0.30),
        (0.0, 0.5, 0.25, 1.0), "bottom-left corner", Examples(tuple(worst), tuple(examples[:2])),
        evidence={"transplant": {"rise": 0.29, "mirror": 0.002}},
    )  # fmt: skip
    return dataclasses.replace(finding, **changes)


def make_audit(
    run: Run, *findings: Finding, baseline: dict[str, Any] | None = None, **measurements: Any
) -> dict[str, Any]:
    """What findings.json says of a run."""
    rules = {finding.rule for finding in findings} | set(measurements)
    results = [
        RuleResult(rule, True, None, 5, tuple(f for f in findings if f.rule == rule), measurements.get(rule, {}))
        for rule in sorted(rules)
    ]
    results.append(RuleResult.skipped("BC108", "there are no boxes"))
    nothing = {"id": None, "rubber_stamp": True, "comparable": {}, "differences": []}
    about = {"id": run.path, "n_images": len(run), "n_failed": run.summary["failures"], "fingerprints": {}}
    return Audit("beamcam 0.1.0", about, baseline or nothing, tuple(results), findings).to_dict()


def everything(run: Run) -> dict[str, Any]:
    """An audit of three findings: an error, a warning on another class, and one on all images."""
    return make_audit(
        run,
        make_finding(run),
        make_finding(run, 1, "BC105", severity="warning", region=None, ci=None, files="findings/BC105.parquet"),
        make_finding(run, 0, "BC205", severity="info", scope=DATASET, message="all images: the mix has changed"),
    )
