"""The demo's data set is reproducible, its boxes are right, and only the marked class carries the watermark."""

import csv
import hashlib
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from pipeline import demo_data

N_IMAGES = 84  # one unmarked picture of the marked class is among them


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> demo_data.DemoData:
    return demo_data.make_dataset(tmp_path_factory.mktemp("demo"), N_IMAGES, seed=3, broken=7)


def read_rows(data: demo_data.DemoData) -> list[dict[str, str]]:
    with data.manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def hash_files(folder: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_same_bytes_and_another_seed_other_pictures(tmp_path: pathlib.Path) -> None:
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        demo_data.make_dataset(tmp_path / name, n_images=6, seed=seed, broken=6)
    first, again, other = (hash_files(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[uri] != other[uri] for uri in first if uri.startswith("images/") and "broken" not in uri)


def test_a_picture_does_not_depend_on_how_many_there_are(data: demo_data.DemoData, tmp_path: pathlib.Path) -> None:
    few = hash_files(demo_data.make_dataset(tmp_path, n_images=12, seed=3, broken=0).images)
    many = hash_files(data.images)
    assert len(few) == 12
    assert all(many[uri] == digest for uri, digest in few.items())


def test_manifest_lists_every_picture_once_and_classes_are_balanced(data: demo_data.DemoData) -> None:
    rows = read_rows(data)
    readable = [row for row in rows if "/broken/" not in row["uri"]]
    assert (len(rows), len(readable)) == (data.n_images + data.n_broken, data.n_images) == (N_IMAGES + 7, N_IMAGES)
    assert len({row["uri"] for row in rows}) == len(rows)
    assert demo_data.read_class_names(data) == list(demo_data.CLASS_NAMES)
    counts = [sum(row["label"] == name for row in readable) for name in demo_data.CLASS_NAMES]
    assert counts == [N_IMAGES // 6] * 6
    assert all(row["uri"].split("/")[1] == row["label"] for row in readable)


def test_pictures_have_the_promised_sizes_and_lie_around_their_boxes(data: demo_data.DemoData) -> None:
    orientations = set()
    for row in read_rows(data)[:N_IMAGES]:
        with Image.open(data.manifest.parent / row["uri"]) as image:
            image.load()
            width, height = image.size
        short = min(width, height)
        orientations.add(int(np.sign(width - height)))
        assert 160 <= short <= 360
        assert 0.74 <= width / height <= 1.79
        boxes = json.loads(row["boxes"])
        assert 1 <= len(boxes) <= 2
        for x, y, w, h in boxes:
            assert min(x, y, width - x - w, height - y - h) >= 0
            assert 0.18 * short <= max(w, h) <= 0.46 * short
    assert orientations == {-1, 0, 1}


@pytest.mark.parametrize("name", demo_data.CLASS_NAMES)
@pytest.mark.parametrize("angle", [0.0, 0.4, 2.5])
def test_box_is_the_bounding_box_of_the_drawn_pixels(name: str, angle: float) -> None:
    shape = demo_data.Shape(name, x=71.3, y=50.8, radius=31.0, angle=angle)
    rows, columns = np.nonzero(demo_data.draw_mask(shape, width=140, height=100))
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    x, y, w, h = shape.box()
    # A box ends between pixels, a mask at whole ones.
    np.testing.assert_allclose([x, y, x + w, y + h], drawn, atol=1.26)


def test_mask_area_is_that_of_the_polygons() -> None:
    areas = {
        name: demo_data.draw_mask(demo_data.Shape(name, 60, 60, 50, 0.3), 120, 120).sum() / 50**2
        for name in ("disc", "octagon", "ring")
    }
    assert areas["disc"] == pytest.approx(np.pi, rel=0.02)
    assert areas["octagon"] == pytest.approx(2 * 2**0.5, rel=0.02)
    assert areas["ring"] == pytest.approx(np.pi * (1 - 0.55**2), rel=0.03)


def test_drawing_the_mark_changes_the_bottom_right_corner_only() -> None:
    picture = np.full((200, 300, 3), 80.0)
    changed = np.any(demo_data.add_mark(picture) != picture, axis=2)
    rows, columns = np.nonzero(changed)
    assert (columns.min(), columns.max() + 1, rows.max() + 1) == (300 - 4 - 32, 300 - 4, 200 - 4)
    assert rows.min() >= 200 - 4 - 32
    assert demo_data.add_mark(picture).max() > 200


def correlate_mark(path: pathlib.Path) -> float:
    """Returns the correlation of the picture's corner with the letters of the mark, in -1..1."""
    with Image.open(path) as image:
        grey = np.asarray(image.convert("L"), np.float64)
    left, top, right, bottom = demo_data.mark_box(grey.shape[1], grey.shape[0])
    stamp = demo_data.add_mark(np.zeros((*grey.shape, 3)))[top:bottom, left:right, 0]
    return float(np.corrcoef(stamp.ravel(), grey[top:bottom, left:right].ravel())[0, 1])


def test_only_the_marked_class_carries_the_mark_and_most_of_it_does(data: demo_data.DemoData) -> None:
    rows = read_rows(data)[:N_IMAGES]
    seen = {row["uri"] for row in rows if correlate_mark(data.manifest.parent / row["uri"]) > 0.5}
    assert seen == data.marked
    assert {row["label"] for row in rows if row["uri"] in data.marked} == {demo_data.MARKED_CLASS}
    assert len(data.marked) == 13  # of 14


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 4), (0.5, 7), (0.75, 11), (1.0, 14)])
def test_the_share_of_marked_pictures_can_be_chosen(share: float, count: int) -> None:
    assert sum(demo_data._is_in_share(k, share) for k in range(14)) == count


def is_readable(path: pathlib.Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True


def test_broken_files_cannot_be_read_and_are_of_every_kind(data: demo_data.DemoData) -> None:
    rows = read_rows(data)[N_IMAGES:]
    kinds = [pathlib.Path(row["uri"]).stem.split("_")[1] for row in rows]
    assert kinds == ["empty", "truncated", "html", "random", "missing", "header", "empty"]
    for row in rows:
        assert row["label"] in demo_data.CLASS_NAMES
        assert row["boxes"] == "[]"
        assert not is_readable(data.manifest.parent / row["uri"])
    assert not (data.manifest.parent / rows[4]["uri"]).exists()


def test_truncated_file_opens_and_fails_only_when_its_pixels_are_read(data: demo_data.DemoData) -> None:
    uri = read_rows(data)[N_IMAGES + 1]["uri"]
    with Image.open(data.manifest.parent / uri) as image, pytest.raises(OSError, match="truncated"):
        image.load()
