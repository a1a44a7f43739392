"""What `beamcam export` writes, chooses, counts and refuses; in test_official.py the tools themselves are asked."""

from __future__ import annotations

import csv
import json
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import parquet, storage
from pipeline.cli import main
from pipeline.errors import ConfigError, RunError
from pipeline.exports import EXPORTERS, Choice, Cut, ExportConfig, export_run, find_regions
from pipeline.exports.items import Item, Labels, common_root, file_name, name_below
from pipeline.exports.regions import outline
from pipeline.reading import Run, open_run
from pipeline.records import Entry, image_id
from pipeline.wording import printable
from tests.exports.making import METHOD, NAMES, PICTURES, Picture, make_record, make_run, with_names

ALL = Cut(min_area=0.0, min_energy=0.0)
WRITTEN = [one for one in PICTURES if one.name not in ("empty.png", "unsure.png")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("exports"))


def photos(run: Run) -> str:
    return run.path.removesuffix("run") + "photos/"


def export(run: Run, to: str, output: Path, choice: Choice = Choice(METHOD), **options: Any) -> Any:  # noqa: B008
    return export_run(run, ExportConfig(to, str(output), choice, options.pop("cut", ALL), **options))


def read_coco(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def names_of(content: dict[str, Any]) -> list[str]:
    return [image["file_name"] for image in content["images"]]


# What is written


def test_every_image_is_written_or_counted_with_a_reason(run: Run, tmp_path: Path) -> None:
    summary = export(run, "coco", tmp_path / "a.json")
    assert summary.written == len(WRITTEN) == 8
    assert summary.left_out == {"less probable than 0.5": 1, "nothing in its map is positive": 1}
    assert summary.written + summary.left_out.total() == len(run)
    assert summary.lines("x")[0] == "8 of 10 images with 9 regions, in x"


def test_coco_holds_the_regions_and_is_what_converters_accept(run: Run, tmp_path: Path) -> None:
    export(run, "coco", tmp_path / "a.json")
    content = read_coco(tmp_path / "a.json")
    assert names_of(content) == [one.name for one in WRITTEN]
    assert [image["id"] for image in content["images"]] == list(range(1, 9))
    assert [one["id"] for one in content["annotations"]] == list(range(1, 10))
    assert {one["iscrowd"] for one in content["annotations"]} == {0}
    records = {record.uri: record for record in run}
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    assert sizes[4] == (50, 80), "upright, though the file is 80x50"
    per_image = Counter(one["image_id"] for one in content["annotations"])
    assert per_image[7] == 2
    for one in content["annotations"]:
        image = content["images"][one["image_id"] - 1]
        record = records[image["uri"]]
        assert one["category_id"] == record.predicted + 1
        x, y, w, h = one["bbox"]
        assert 0 <= x < x + w <= image["width"]
        assert 0 <= y < y + h <= image["height"]
        assert one["attributes"]["source"] == "auto"
        assert one["attributes"]["cam_method"] == METHOD
    first = find_regions(next(iter(run)).maps[0].array(), next(iter(run)).geometry, ALL)[0]
    assert content["annotations"][0]["score"] == pytest.approx(np.float32(0.9) * first.energy)


def test_classes_of_one_name_stay_two_and_none_is_lost(run: Run, tmp_path: Path) -> None:
    export(run, "coco", tmp_path / "a.json")
    names = [category["name"] for category in read_coco(tmp_path / "a.json")["categories"]]
    assert names == ["crane (0)", NAMES[1], NAMES[2], "crane (3)", NAMES[4], NAMES[5]]


def test_files_of_so_many_images_hold_together_what_one_file_holds(run: Run, tmp_path: Path) -> None:
    export(run, "coco", tmp_path / "whole.json")
    summary = export(run, "coco", tmp_path / "part.json", per_file=3)
    parts = [read_coco(tmp_path / f"part-{i:05d}.json") for i in range(3)]
    assert summary.files == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-00000.json", "part-00001.json", "part-00002.json", "whole.json"]  # fmt: skip
    whole = read_coco(tmp_path / "whole.json")
    for kind in ("images", "annotations"):
        assert [one for part in parts for one in part[kind]] == whole[kind]
    assert [len(part["images"]) for part in parts] == [3, 3, 2]
    for part in parts:
        assert part["categories"] == whole["categories"]
        assert {one["image_id"] for one in part["annotations"]} == {image["id"] for image in part["images"]}


@pytest.mark.parametrize("to", EXPORTERS)
def test_the_same_export_again_has_the_same_bytes(run: Run, tmp_path: Path, to: str) -> None:
    for again in ("a", "b"):
        export(run, to, tmp_path / again / f"out{EXPORTERS[to].suffix or ''}")
    files = [sorted(p.relative_to(tmp_path / a) for p in (tmp_path / a).rglob("*") if p.is_file()) for a in "ab"]
    assert files[0] == files[1] != []
    for name in files[0]:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_cvat_tells_sizes_names_and_that_a_machine_made_it(run: Run, tmp_path: Path) -> None:
    export(run, "cvat", tmp_path / "a.xml", shapes=frozenset({"class", "box", "polygon", "peak"}))
    root = ET.parse(tmp_path / "a.xml").getroot()
    images = list(root.iter("image"))
    assert [image.get("name") for image in images] == [one.name for one in WRITTEN]
    assert [(int(i.get("width", 0)), int(i.get("height", 0))) for i in images] == [one.size for one in WRITTEN]
    assert {shape.get("source") for image in images for shape in image} == {"auto"}
    assert {shape.tag for image in images for shape in image} == {"tag", "box", "polygon", "points"}
    assert [label.findtext("name") for label in root.iter("label")][1] == NAMES[1]
    for image, one in zip(images, WRITTEN, strict=True):
        x, y = map(float, image.find("points").get("points").split(","))  # type: ignore[union-attr]
        assert 0 <= x <= one.size[0]
        assert 0 <= y <= one.size[1]


def test_label_studio_gets_percents_inside_the_image_and_an_interface_with_every_class(
    run: Run, tmp_path: Path
) -> None:
    export(run, "label-studio", tmp_path / "t.json", per_file=5)
    tasks = [task for i in range(2) for task in json.loads((tmp_path / f"t-{i:05d}.json").read_text())]
    assert len(tasks) == 8
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=sub%20folder/tall%2C%201.png"
    interface = ET.parse(tmp_path / "t-interface.xml").getroot()
    values = [choice.get("value") for choice in interface.iter("Choice")]
    assert values == ["crane (0)", NAMES[1], NAMES[2], "crane (3)", NAMES[4], NAMES[5]]
    assert {tag.get("name") for tag in interface} == {"image", "class", "boxes", "masks", "peaks"}
    for task in tasks:
        (prediction,) = task["predictions"]
        assert 0 <= prediction["score"] <= 1
        for result in prediction["result"]:
            value = result["value"]
            assert result["from_name"] in {tag.get("name") for tag in interface}
            if "x" in value:
                assert 0 <= value["x"] <= value["x"] + value.get("width", 0) <= 100 + (result["from_name"] == "peaks")
                assert result["original_width"] > 0


def test_label_studio_asks_buckets_by_their_own_addresses(tmp_path: Path) -> None:
    found = make_run(tmp_path, [Picture("a b.png", (20, 20), (2, 2, 9, 9))])
    export(found, "label-studio", tmp_path / "t.json", prefix="https://photos.example/x/")
    assert json.loads((tmp_path / "t.json").read_text())[0]["data"]["image"] == "https://photos.example/x/a%20b.png"


def test_yolo_counts_classes_from_zero_and_boxes_in_shares(run: Run, tmp_path: Path) -> None:
    export(run, "yolo", tmp_path / "y")
    content = yaml.safe_load((tmp_path / "y/data.yaml").read_text(encoding="utf-8"))
    assert content["names"] == dict(enumerate(["crane (0)", NAMES[1], NAMES[2], "crane (3)", NAMES[4], NAMES[5]]))
    listed = (tmp_path / "y/train.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [f"./images/train/{one.name}" for one in WRITTEN]
    text = (tmp_path / "y/labels/train/sub folder/tall, 1.txt").read_text()
    number, x, y, w, h = text.split()
    record = next(r for r in run if r.uri.endswith("tall, 1.png"))
    region = find_regions(record.maps[0].array(), record.geometry, ALL)[0]
    found = np.array([x, y, w, h], float) * (37, 91, 37, 91)
    assert number == "1"
    np.testing.assert_allclose(
        found,
        [(region.left + region.right) / 2, (region.top + region.bottom) / 2, region.width, region.height],
        atol=1e-4,
    )


def test_heatmaps_are_the_maps_and_no_cell_of_their_table_starts_a_formula(tmp_path: Path) -> None:
    one = Picture("=cmd.png", (40, 30), (5, 5, 20, 20), "pad", "=1+1", 4)
    found = make_run(tmp_path, [one])
    export(found, "heatmaps", tmp_path / "h", copy_images=True)
    shown = np.asarray(Image.open(tmp_path / "h/maps/=cmd.png.png"))
    record = next(iter(found))
    positive = np.maximum(record.maps[0].resized(), 0)
    assert np.abs(shown - 255 * positive / positive.max()).max() <= 0.5 + 1e-3
    assert (tmp_path / "h/images/=cmd.png").read_bytes() == Path(record.uri).read_bytes()
    (row,) = csv.DictReader((tmp_path / "h/index.csv").read_text(encoding="utf-8").splitlines())
    assert row["label"] == "'=1+1"
    assert row["class"] == "'=SUM(A1)"
    assert not any(str(cell).startswith(("=", "+", "-", "@")) for cell in row.values())


def test_images_that_cannot_be_copied_are_counted(tmp_path: Path) -> None:
    found = make_run(tmp_path)
    (tmp_path / "photos/plain.png").unlink()
    summary = export(found, "yolo", tmp_path / "y", copy_images=True)
    assert summary.left_out["its file could not be read to be copied"] == 1
    assert summary.written == 7
    assert not (tmp_path / "y/labels/train/plain.txt").exists()


def test_two_images_that_one_label_file_would_stand_for_are_told(tmp_path: Path) -> None:
    found = make_run(tmp_path, with_names(PICTURES[:2], ["a.png", "a.jpg"]))
    assert export(found, "yolo", tmp_path / "y").left_out == {"another image has the same name in this format": 1}
    assert export(found, "coco", tmp_path / "c.json").written == 2


# What is chosen


def test_classes_scores_and_labels_choose(run: Run, tmp_path: Path) -> None:
    def chosen(**conditions: Any) -> list[str]:
        output = tmp_path / "c.json"
        export(run, "coco", output, Choice(METHOD, **conditions), overwrite=True)
        return names_of(read_coco(output))

    assert chosen(classes=frozenset({1, 5})) == ["sub folder/tall, 1.png", "two.png"]
    assert "unsure.png" in chosen(min_score=0.3)
    assert "unsure.png" not in chosen(min_score=0.301)
    assert chosen(ids=frozenset({image_id(photos(run) + "two.png")})) == ["two.png"]
    by_label = chosen(targets="label")
    assert "wide.png" not in by_label, "it has no label"
    assert "two.png" not in by_label, "its label, crane, has no map"
    assert by_label == [
        "plain.png",
        "sub folder/tall, 1.png",
        "sub/日本.v2.png",
        "sub/turned.jpg",
        "full.png",
        "hole.png",
    ]


def test_samples_are_the_lowest_hashes_of_what_else_is_chosen(run: Run, tmp_path: Path) -> None:
    by_hash = sorted((image_id(photos(run) + one.name), one.name) for one in PICTURES if one.name != "unsure.png")
    export(run, "coco", tmp_path / "n.json", Choice(METHOD, sample=4))
    expected = {name for _, name in by_hash[:4]} - {"empty.png"}
    assert set(names_of(read_coco(tmp_path / "n.json"))) == expected
    summary = export(run, "coco", tmp_path / "s.json", Choice(METHOD, sample=0.5))
    half = {name for id_, name in by_hash if int(id_, 16) <= 2**127} - {"empty.png"}
    assert set(names_of(read_coco(tmp_path / "s.json"))) == half
    assert summary.written + summary.left_out.total() == len(run)


def write_findings(folder: Path, run: Run, files: str | None) -> str:
    ids = {one.name: image_id(photos(run) + one.name) for one in PICTURES}
    one = {"key": "aaa", "rule": "BC101", "examples": {"worst": [{"id": ids["two.png"], "uri": "x"}], "random": []},
           "files": files}  # fmt: skip
    two = {"key": "bbb", "rule": "BC103", "examples": {"worst": [], "random": [{"id": ids["full.png"], "uri": "y"}]},
           "files": None}  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "findings.json").write_text(json.dumps({"findings": [one, two]}))
    row = {"uri": "", "label": 0, "predicted": 0, "confidence": 1.0, "score": 1.0}
    with parquet.findings_writer(str(folder / "findings.parquet"), {}) as write:
        write([{"key": "aaa", "rule": "BC101", "id": ids["plain.png"], **row},
               {"key": "zzz", "rule": "BC999", "id": ids["hole.png"], **row}])  # fmt: skip
    return str(folder / "findings.json")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--rule", "BC101"], ["plain.png", "two.png"]),
        (["--finding", "bbb"], ["full.png"]),
        (["--rule", "BC101", "--rule", "BC103"], ["full.png", "plain.png", "two.png"]),
        ([], ["full.png", "plain.png", "two.png"]),
    ],
)
def test_findings_choose_the_images_that_they_are_about(
    run: Run, tmp_path: Path, options: list[str], names: list[str]
) -> None:
    findings = write_findings(tmp_path / "audit", run, "findings.parquet")
    output = tmp_path / "c.json"
    code = main(["export", run.path, "--to", "coco", "--output", str(output), "--findings", findings, *options])
    assert code == 0
    assert sorted(names_of(read_coco(output))) == names


def test_findings_that_are_not_there_are_told_with_those_that_are(run: Run, tmp_path: Path, capsys) -> None:
    findings = write_findings(tmp_path / "audit", run, None)
    command = ["export", run.path, "--to", "coco", "--output", str(tmp_path / "c.json"), "--findings", findings]
    assert main([*command, "--rule", "BC110"]) == 2
    assert "has no finding of BC110; it has: BC101 aaa, BC103 bbb" in capsys.readouterr().err


@pytest.mark.parametrize(
    "files", ["../secret.parquet", "/etc/passwd", "http://169.254.169.254/x.parquet", "a/b.parquet"]
)
def test_findings_of_somebody_make_no_reader_read_other_files(run: Run, tmp_path: Path, files: str, capsys) -> None:
    findings = write_findings(tmp_path / "audit", run, files)
    output = str(tmp_path / "c.json")
    assert main(["export", run.path, "--to", "coco", "--output", output, "--findings", findings]) == 2
    assert "which is not read" in capsys.readouterr().err


# Names


def make_item(name: str) -> Item:
    record = make_record(PICTURES[0], Entry("/x/" + name, None))
    return Item(1, record, record.maps[0], "crane", name, ())


@given(st.text(max_size=300))
def test_no_name_of_an_image_leads_out_of_the_folder(name: str) -> None:
    found = file_name(make_item(name))
    parts = found.split("/")
    assert not found.startswith("/")
    assert not {"", ".", ".."} & set(parts)
    assert all(len(part.encode("utf-8", "surrogatepass")) < 256 for part in parts)
    assert printable(found) == found


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a/../../b.png", "/etc/passwd", "a//b.png", "c\n.png", "d\\..\\e.png"]
)
def test_names_that_lead_elsewhere_become_ids(name: str) -> None:
    item = make_item(name)
    assert file_name(item).startswith(item.record.id + ".")


def test_hostile_names_are_written_below_the_folder_only(tmp_path: Path) -> None:
    found = make_run(tmp_path / "in", [Picture("a/b.png", (20, 20), (2, 2, 9, 9))])
    summary = export(found, "yolo", tmp_path / "out/y", root=photos(found) + "a/nothing", copy_images=True)
    assert summary.written == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


@pytest.mark.parametrize(
    ("uris", "root"),
    [
        (["/a/b/c.png", "/a/b/d/e.png"], "/a/b/"),
        (["/a/b/c.png", "/a/bc/d.png"], "/a/"),
        (["gs://x/a.png", "gs://y/b.png"], "gs://"),
        (["gs://x/a.png", "/b.png"], ""),
        (["/a.png"], "/"),
        ([], ""),
    ],
)
def test_the_root_is_the_deepest_folder_of_all(uris: list[str], root: str) -> None:
    assert common_root(iter(uris)) == root
    for uri in uris:
        assert name_below(uri, root) == uri[len(root) :].lstrip("/") if root else True


def test_labels_without_names_are_those_that_were_seen() -> None:
    labels = Labels(None)
    assert labels.name(7) == "class 7"
    assert labels.name(2) == "class 2"
    assert labels.all() == [(2, "class 2"), (7, "class 7")]
    assert Labels(["a", "b"], [1]).all() == [(1, "b")]
    assert Labels(["a\x1b[31m", ""]).all() == [(0, "a\\x1b[31m"), (1, "class 1")]


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "voc"}, "--to is one of coco, label-studio"),
        ({"output": "x.txt"}, r"--output of coco is a file whose name ends in \.json"),
        ({"shapes": frozenset({"peak"})}, "--shapes of coco are of box, mask, polygon, not peak"),
        ({"to": "yolo", "per_file": 3}, "yolo is a folder: leave it out"),
        ({"copy_images": True}, "coco is a file: leave it out"),
        ({"per_file": 0}, "--per-file is at least 1, not 0"),
        ({"cut": Cut(1.0)}, "--threshold is a share of the map's maximum between 0 and 1, not 1"),
        ({"cut": Cut(min_area=1.0)}, "--min-area is a share from 0 to below 1, not 1"),
        ({"cut": Cut(min_energy=-0.1)}, "--min-energy is a share"),
        ({"cut": Cut(most=0)}, "--regions is all, or how many"),
        ({"choice": Choice(METHOD, sample=2.5)}, "--sample is a share"),
        ({"choice": Choice(METHOD, sample=0)}, "--sample is a share"),
        ({"choice": Choice(METHOD, min_score=1.5)}, "--min-score is a probability"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(options: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"to": "coco", "output": "x.json", "choice": Choice(METHOD)} | options
    with pytest.raises(ConfigError, match=message):
        ExportConfig(**values).check()


def test_nothing_is_overwritten_unasked_and_no_folder_emptied_that_is_no_export(run: Run, tmp_path: Path) -> None:
    for to, output in (("coco", tmp_path / "a.json"), ("heatmaps", tmp_path / "h")):
        export(run, to, output)
        with pytest.raises(ConfigError, match="is there already: --overwrite replaces it"):
            export(run, to, output)
    export(run, "yolo", tmp_path / "h", overwrite=True)
    assert not (tmp_path / "h/index.csv").exists()
    assert not list((tmp_path / "h/maps").rglob("*.png"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/diary.txt").write_text("x")
    with pytest.raises(ConfigError, match="is there already and no export"):
        export(run, "yolo", tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/diary.txt").read_text() == "x"


def test_an_export_again_keeps_photographs_and_labels_that_people_put_there(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "y"
    export(run, "yolo", folder)
    storage.write_bytes(str(folder / "images/train/plain.png"), b"my photograph")
    (folder / "labels/train/full.txt").write_text("0 0.1 0.1 0.1 0.1\n")  # corrected
    (folder / "labels/train/unsure.txt").write_text("1 0.2 0.2 0.2 0.2\n")  # made by hand
    summary = export(run, "yolo", folder, Choice(METHOD, min_score=0, classes=frozenset({0})), copy_images=True,
                     overwrite=True)  # fmt: skip
    assert (folder / "images/train/plain.png").read_bytes() == b"my photograph"
    assert (folder / "labels/train/full.txt").read_text() == "0 0.1 0.1 0.1 0.1\n"
    assert (folder / "labels/train/unsure.txt").read_text() == "1 0.2 0.2 0.2 0.2\n"
    assert not (folder / "labels/train/two.txt").exists(), "of the earlier export, and of another class"
    assert (folder / "images/train/hole.png").read_bytes() == Path(photos(run) + "hole.png").read_bytes()
    assert summary.hints == (
        "3 files stay as they were, made or changed by somebody since: images/train/plain.png first",
    )
    export(run, "heatmaps", folder, overwrite=True)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*") if path.parent.name == "train"}
    assert left == {"images/train/plain.png", "labels/train/full.txt", "labels/train/unsure.txt"}


def test_the_mark_lists_every_file_that_was_written_also_when_an_export_breaks_off(tmp_path: Path) -> None:
    found = make_run(tmp_path)
    export(found, "yolo", tmp_path / "y")
    listed = json.loads((tmp_path / "y/beamcam-export.json").read_text())["files"]
    there = {path.relative_to(tmp_path / "y").as_posix() for path in (tmp_path / "y").rglob("*") if path.is_file()}
    assert set(listed) == there - {"beamcam-export.json"}
    part = Path(found.path) / "records/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(RunError, match="is damaged"):
        export(open_run(found.path), "yolo", tmp_path / "y", overwrite=True)
    listed = json.loads((tmp_path / "y/beamcam-export.json").read_text())["files"]
    there = {path.relative_to(tmp_path / "y").as_posix() for path in (tmp_path / "y").rglob("*") if path.is_file()}
    assert set(listed) == there - {"beamcam-export.json"}


def test_an_old_export_stays_whole_when_the_new_ones_options_are_refused(run: Run, tmp_path: Path) -> None:
    export(run, "yolo", tmp_path / "y")
    before = {path: path.read_bytes() for path in (tmp_path / "y").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="--min-score"):
        export(run, "yolo", tmp_path / "y", Choice(METHOD, min_score=2), overwrite=True)
    assert {path: path.read_bytes() for path in (tmp_path / "y").rglob("*") if path.is_file()} == before
    (tmp_path / "y/data.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"data.yaml' was changed or made by somebody"):
        export(run, "yolo", tmp_path / "y", overwrite=True)
    assert (tmp_path / "y/data.yaml").read_text() == "mine"
    assert (tmp_path / "y/labels/train/plain.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format": "yolo"}', "broke off before it could list its files"),
        ('{"files": {"../diary.txt": "x"}}', "lies elsewhere"),
        ('{"files": {"/etc/passwd": "x"}}', "lies elsewhere"),
    ],
)
def test_lists_of_files_that_are_none_remove_nothing(run: Run, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "y").mkdir()
    (tmp_path / "y/beamcam-export.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        export(run, "yolo", tmp_path / "y", overwrite=True)


@pytest.mark.parametrize(("first", "second"), [(None, 4), (4, None)])
def test_files_of_the_other_naming_do_not_stay_and_others_do(
    run: Run, tmp_path: Path, first: int | None, second: int | None
) -> None:
    others = {"a-1.json", "a-000000.json", "a-00000.json.bak", "ab.json", "aa-00000.json", "a-00000.xml"}
    for name in others:
        (tmp_path / name).write_text("mine")
    made = {None: {"a.json"}, 4: {"a-00000.json", "a-00001.json"}}
    export(run, "coco", tmp_path / "a.json", per_file=first)
    with pytest.raises(ConfigError, match="is there already: --overwrite replaces it"):
        export(run, "coco", tmp_path / "a.json", per_file=second)
    export(run, "coco", tmp_path / "a.json", per_file=second, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == made[second] | others
    assert all((tmp_path / name).read_text() == "mine" for name in others)


def test_findings_without_images_are_refused_and_an_empty_choice_is_told(run: Run, tmp_path: Path, capsys) -> None:
    one = {"key": "ccc", "rule": "BC301", "examples": {"worst": [], "random": []}, "files": None}
    (tmp_path / "findings.json").write_text(json.dumps({"findings": [one]}))
    command = ["export", run.path, "--to", "coco", "--output", str(tmp_path / "c.json")]
    assert main([*command, "--findings", str(tmp_path / "findings.json"), "--rule", "BC301"]) == 2
    assert "names no image for BC301 ccc: choose findings that are about images" in capsys.readouterr().err
    assert not (tmp_path / "c.json").exists()
    assert main([*command, "--min-score", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count("warning: no image was written") == 1
    assert main([*command, "--overwrite"]) == 0
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["file/x.json", "folder.json"])
def test_places_where_no_file_can_be_are_told_before_any_record_is_read(
    tmp_path: Path, name: str, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make_run(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder.json").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.exports.exporting.choose", lambda *_: pytest.fail("records were read"))
        assert main(["export", found.path, "--to", "coco", "--output", str(tmp_path / name), "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / name) in said
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.json", "manifest", "photos", "run"}


def test_in_buckets_too_only_what_an_export_wrote_is_replaced(run: Run) -> None:
    base = f"memory:///{uuid.uuid4().hex}"
    yolo, tasks = f"{base}/y", f"{base}/t.json"
    export(run, "yolo", yolo)  # type: ignore[arg-type]
    storage.write_bytes(f"{yolo}/images/train/plain.png", b"mine")
    storage.write_bytes(f"{yolo}/labels/train/plain.txt", b"corrected")
    export(run, "yolo", yolo, Choice(METHOD, classes=frozenset({0})), overwrite=True)  # type: ignore[arg-type]
    assert storage.read_bytes(f"{yolo}/images/train/plain.png") == b"mine"
    assert storage.read_bytes(f"{yolo}/labels/train/plain.txt") == b"corrected"
    assert not storage.exists(f"{yolo}/labels/train/two.txt")
    export(run, "label-studio", tasks, per_file=4)  # type: ignore[arg-type]
    export(run, "label-studio", tasks, overwrite=True)  # type: ignore[arg-type]
    left = {uri.rpartition("/")[2] for uri in storage.list_files(base)}
    assert left == {"t.json", "t-interface.xml"}


def test_files_of_an_earlier_longer_export_do_not_stay(run: Run, tmp_path: Path) -> None:
    export(run, "coco", tmp_path / "a.json", per_file=2)
    export(run, "coco", tmp_path / "a.json", per_file=4, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-00000.json", "a-00001.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--to is needed, one of coco, label-studio"),
        (["--to", "coco"], "--output is needed"),
        (
            ["--to", "coco", "--output", "x.json", "--method", "cam"],
            "--method is one that the run has, gradcam, not 'cam'",
        ),
        (["--to", "coco", "--output", "x.json", "--class", "crene"], "not 'crene'; did you mean 'crane'?"),
        (["--to", "coco", "--output", "x.json", "--targets", "top:1"], "--targets of an export is predicted or label"),
        (["--to", "coco", "--output", "x.json", "--regions", "few"], "--regions is all, or how many"),
        (["--calibrate", "boxes", "--threshold", "0.3"], "--threshold is what --calibrate finds"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(run: Run, options: list[str], message: str, capsys) -> None:
    assert main(["export", run.path, *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_command_needs_a_finished_run(tmp_path: Path, capsys) -> None:
    assert main(["export", str(tmp_path), "--to", "coco", "--output", str(tmp_path / "a.json")]) == 1
    assert "beamcam: " in capsys.readouterr().err


def test_the_command_chooses_classes_by_name_and_index(run: Run, tmp_path: Path, capsys) -> None:
    command = ["export", run.path, "--to", "coco", "--output", str(tmp_path / "a.json")]
    assert main([*command, "--class", NAMES[1], "--class", "5", "--regions", "1"]) == 0
    content = read_coco(tmp_path / "a.json")
    assert names_of(content) == ["sub folder/tall, 1.png", "two.png"]
    assert [category["id"] for category in content["categories"]] == [2, 6]
    assert len(content["annotations"]) == 2
    assert "  8 left out: of another class" in capsys.readouterr().out


def test_a_run_opened_anew_gives_the_same(run: Run, tmp_path: Path) -> None:
    export(open_run(run.path), "coco", tmp_path / "a.json")
    export(run, "coco", tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("to", EXPORTERS)
def test_exports_lie_in_buckets_as_on_disk(run: Run, tmp_path: Path, to: str) -> None:
    suffix = EXPORTERS[to].suffix or ""
    export(run, to, tmp_path / f"out{suffix}")
    base = f"memory:///{uuid.uuid4().hex}"
    export(run, to, f"{base}/out{suffix}")  # type: ignore[arg-type]
    local = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    stored = storage.list_files(base, recursive=True)
    assert {uri.removeprefix(base).lstrip("/"): storage.read_bytes(uri) for uri in stored} == local
    with pytest.raises(ConfigError, match="is there already"):
        export(run, to, f"{base}/out{suffix}")  # type: ignore[arg-type]


def test_images_of_any_size_that_a_record_tells_take_no_memory(tmp_path: Path) -> None:
    found = make_run(tmp_path, [PICTURES[0]])
    (record,) = found
    huge = replace(record.geometry, width=100_000, height=100_000)
    forged = replace(record, geometry=huge, maps=(replace(record.maps[0], geometry=huge),))
    storage.write_bytes(f"{found.path}/records/part-00000.parquet", parquet.encode_records([forged], {}))
    assert export(found, "coco", tmp_path / "a.json").left_out == {"of more than 200,000,000 pixels": 1}


def test_damaged_records_are_told_in_one_line_and_leave_no_file(tmp_path: Path, capsys) -> None:
    found = make_run(tmp_path)
    part = Path(found.path) / "records/part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-40])
    assert main(["export", found.path, "--to", "coco", "--output", str(tmp_path / "a.json")]) == 1
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


def test_a_run_without_class_names_is_exported_as_it_was_made(
    tmp_path: Path, photographs: Path, tiny_model_path: str, capsys
) -> None:
    made = str(tmp_path / "run")
    job = ["run", "--images", str(photographs / "manifest.jsonl"), "--model", tiny_model_path, "--preprocess", "tf"]
    assert main([*job, "--methods", "cam", "--targets", "predicted+label", "--jit", "off", "--output", made]) == 0
    command = ["export", made, "--output", str(tmp_path / "a.json"), "--to", "coco", "--min-score", "0"]
    assert main([*command, "--min-area", "0", "--min-energy", "0", "--calibrate", "boxes"]) == 0
    content = read_coco(tmp_path / "a.json")
    records = {record.uri: record for record in open_run(made)}
    assert {one["uri"] for one in content["images"]} <= set(records)
    for one in content["annotations"]:
        image = content["images"][one["image_id"] - 1]
        record = records[image["uri"]]
        with Image.open(record.uri) as picture:
            assert picture.size == (image["width"], image["height"])
        (shown,) = {m.target: m for m in record.maps if m.target == record.predicted}.values()
        cut = Cut(content["info"]["threshold"], 0.0, 0.0)
        boxes = [[r.left, r.top, r.width, r.height] for r in find_regions(shown.array(), record.geometry, cut)]
        assert one["bbox"] in boxes
        assert one["category_id"] == record.predicted + 1
    seen = sorted({one["category_id"] - 1 for one in content["annotations"]})
    assert [category["name"] for category in content["categories"]] == [f"class {index}" for index in seen]
    said = capsys.readouterr().out
    assert f"{len(content['images'])} of 13 images" in said


def test_places_are_the_same_in_every_format(run: Run, tmp_path: Path) -> None:
    """Boxes, outlines and peaks against what the regions and records say, x before y, on images that are not square."""
    export(run, "cvat", tmp_path / "a.xml", shapes=frozenset({"box", "polygon", "peak"}))
    export(run, "label-studio", tmp_path / "a.json", shapes=frozenset({"box", "polygon", "peak"}))
    export(run, "fiftyone", tmp_path / "f")
    images = list(ET.parse(tmp_path / "a.xml").getroot().iter("image"))
    tasks = json.loads((tmp_path / "a.json").read_text())
    samples = json.loads((tmp_path / "f/samples.json").read_text())["samples"]
    records = [r for r in run if any(r.uri == photos(run) + one.name for one in WRITTEN)]
    for record, image, task, sample in zip(records, images, tasks, samples, strict=True):
        size = np.array([record.geometry.width, record.geometry.height])
        shown = record.maps[0]
        regions = find_regions(shown.array(), record.geometry, ALL)
        peak = np.array([shown.peak_x, shown.peak_y])
        results = task["predictions"][0]["result"]
        points = np.array(image.find("points").get("points").split(","), float)  # type: ignore[union-attr]
        np.testing.assert_allclose(points, peak, atol=0.006)
        (value,) = [one["value"] for one in results if one["type"] == "keypointlabels"]
        np.testing.assert_allclose(np.array([value["x"], value["y"]]) * size / 100, peak, atol=1e-6)
        np.testing.assert_allclose(sample["peak"]["keypoints"][0]["points"][0] * size, peak, atol=1e-6)
        boxes = [[float(box.get(name, "nan")) for name in ("xtl", "ytl", "xbr", "ybr")] for box in image.findall("box")]
        assert boxes == [[r.left, r.top, r.right, r.bottom] for r in regions]
        found = [one["bounding_box"] * np.tile(size, 2) for one in sample["regions"]["detections"]]
        np.testing.assert_allclose(found, [[r.left, r.top, r.width, r.height] for r in regions], atol=1e-9)
        outlines = [one["value"]["points"] * size / 100 for one in results if one["type"] == "polygonlabels"]
        for region, line, polygon in zip(regions, outlines, image.findall("polygon"), strict=True):
            np.testing.assert_allclose(line, outline(region), atol=1e-9)
            corners = [[float(c) for c in point.split(",")] for point in polygon.get("points", "").split(";")]
            np.testing.assert_allclose(corners, outline(region), atol=0.006)
        picture = np.asarray(Image.open(tmp_path / "f" / sample["heatmap"]["map_path"]))
        y, x = np.unravel_index(np.argmax(picture), picture.shape)
        if shown.array().std() > 0:
            cell = np.array([shown.geometry.view.scale_x, shown.geometry.view.scale_y]) * 32 / shown.encoded.width
            assert (np.abs(np.array([x + 0.5, y + 0.5]) / picture.shape[::-1] * size - peak) <= cell + 1).all()
