"""Each format is read by the official package of its tool, which finds our masks and boxes to the pixel.

The packages (the extra `labels`) weigh more than TensorFlow and keep NumPy back, and no export needs them. Each check
is a program of its own, run by the first interpreter that has the package: this one, or one of `BEAMCAM_LABELS`, a
list of interpreters with ":" between them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from pipeline.exports import Choice, Cut, ExportConfig, Region, export_run, find_regions
from pipeline.exports.items import SHAPES
from pipeline.reading import Run
from tests.exports.making import METHOD, PICTURES, make_run, with_names

CHECKERS = Path(__file__).parent / "checkers"
CUT = Cut(min_area=0.0, min_energy=0.0)


@lru_cache
def interpreter_with(package: str) -> str | None:
    for python in (sys.executable, *filter(None, os.environ.get("BEAMCAM_LABELS", "").split(":"))):
        code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
        if subprocess.run([python, "-c", code], check=False).returncode == 0:
            return python
    return None


def check(package: str, script: str, *arguments: object) -> str:
    """What the official package says; skips the test where it is not there."""
    python = interpreter_with(package)
    if python is None:
        pytest.skip(f"{package} is not here: pip install it somewhere, and name that interpreter in BEAMCAM_LABELS")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [python, str(CHECKERS / script), *map(str, arguments)], capture_output=True, text=True, check=False,
        timeout=240, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    sys.stdout.write(result.stdout)
    return result.stdout


def paint(region: Region, width: int, height: int) -> np.ndarray:
    whole = np.zeros((height, width), bool)
    whole[region.top : region.top + region.height, region.left : region.left + region.width] = region.mask
    return whole


def write_truth(run: Run, path: Path, by: str = "name", filled: bool = False) -> Path:
    """The masks that an export should hold, by the image's name or id and a number."""
    masks = {}
    for record in run:
        (shown,) = record.maps
        if shown.probability < 0.5:
            continue
        name = record.uri.partition("/photos/")[2] if by == "name" else record.id
        for number, region in enumerate(find_regions(shown.array(), record.geometry, CUT)):
            mask = paint(region, record.geometry.width, record.geometry.height)
            masks[f"{name}|{number}"] = ndimage.binary_fill_holes(mask) if filled else mask
    assert len(masks) == 9
    np.savez(path, **masks)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("official"))


@pytest.fixture(scope="module")
def flat_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Without sub-folders, which supervision and datumaro do not look into in this layout; Ultralytics does."""
    names = [one.name.replace("/", " ") for one in PICTURES]
    return make_run(tmp_path_factory.mktemp("flat"), with_names(PICTURES, names))


def export(run: Run, to: str, output: Path, shapes: frozenset[str] | None = None, copy: bool = False) -> Path:
    choice, root = Choice(METHOD), run.path.removesuffix("run") + "photos/"
    export_run(run, ExportConfig(to, str(output), choice, CUT, shapes, root=root, copy_images=copy))
    return output


def test_pycocotools_finds_our_masks_and_boxes(run: Run, tmp_path: Path) -> None:
    exported = export(run, "coco", tmp_path / "coco.json")
    said = check("pycocotools", "check_coco.py", exported, write_truth(run, tmp_path / "truth.npz"))
    assert "AP 1.0" in said


def test_pycocotools_finds_our_polygons_nearly_as_the_masks(run: Run, tmp_path: Path) -> None:
    exported = export(run, "coco", tmp_path / "coco.json", frozenset({"box", "polygon"}))
    truth = write_truth(run, tmp_path / "truth.npz", filled=True)  # a polygon has no holes
    check("pycocotools", "check_coco.py", exported, truth, "polygons")


def test_label_studio_sdk_finds_no_error_and_our_brushes(run: Run, tmp_path: Path) -> None:
    exported = export(run, "label-studio", tmp_path / "tasks.json", frozenset(SHAPES))
    truth = write_truth(run, tmp_path / "truth.npz", by="id")
    check("label_studio_sdk", "check_label_studio.py", exported, tmp_path / "tasks-interface.xml", truth)


def test_datumaro_and_cvat_sdk_find_our_masks_boxes_and_tags(run: Run, tmp_path: Path) -> None:
    exported = export(run, "cvat", tmp_path / "cvat.xml", frozenset(SHAPES))
    shutil.copytree(Path(run.path).parent / "photos", tmp_path / "images")  # datumaro looks for them; CVAT has its own
    check("datumaro", "check_cvat.py", exported, write_truth(run, tmp_path / "truth.npz"))


def test_supervision_finds_our_boxes(flat_run: Run, tmp_path: Path) -> None:
    exported = export(flat_run, "yolo", tmp_path / "yolo", copy=True)
    check("supervision", "check_yolo.py", exported, write_truth(flat_run, tmp_path / "truth.npz"))


def test_datumaro_imports_the_layout_of_ultralytics(flat_run: Run, tmp_path: Path) -> None:
    exported = export(flat_run, "yolo", tmp_path / "yolo", copy=True)
    check("datumaro", "check_yolo_datumaro.py", exported, write_truth(flat_run, tmp_path / "truth.npz"))


def test_fiftyone_takes_our_samples_and_masks(run: Run, tmp_path: Path) -> None:
    exported = export(run, "fiftyone", tmp_path / "dataset")
    check("fiftyone", "check_fiftyone.py", exported, write_truth(run, tmp_path / "truth.npz", by="id"))
