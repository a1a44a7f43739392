"""The report's pages: what they say, where their links lead, and what no name can make of them."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.audit import gallery, phrases, report, views
from pipeline.audit.findings import TITLES, Scope
from pipeline.errors import ConfigError
from pipeline.patience import UnavailableError
from pipeline.sums import EDGES, Sums
from tests.audits import Looks, make_observations, make_sums
from tests.reports import HOSTILE, everything, make_audit, make_finding, make_run, observe_run, sum_up

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """What a page consists of; raises if an element is not closed where it should be."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.open, self.elements, self.text, self.data = path, [], [], "", ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        kind = self.open[-1] if self.open else ""
        if kind == "script" and not self.data:
            self.data = data
        elif kind not in ("script", "style"):
            self.text += data + " "

    def links(self) -> list[str]:
        return [v for _, attrs in self.elements for k, v in attrs.items() if k in ("src", "href", "xlink:href") and v]

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [attrs for tag, attrs in self.elements if kind in (attrs.get("class") or "").split()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with hostile class names."""
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder, names=HOSTILE)
    (folder / "out").mkdir()
    (folder / "out/findings.json").write_text("{}")
    report.write_report(everything(run), sum_up(run), run, str(folder / "out"))
    return folder / "out"


def pages_of(folder: Path) -> list[Page]:
    return [Page(path) for path in sorted(folder.rglob("*.html"))]


# Nothing from elsewhere


def test_every_link_leads_to_a_file_of_the_report(written: Path) -> None:
    pages = pages_of(written)
    assert len(pages) == 3
    for page in pages:
        inside = [link for link in page.links() if not link.startswith(("data:", "#"))]
        assert inside
        anchors = {attrs["id"] for _, attrs in page.elements if "id" in attrs}
        for link in inside:
            if not link.endswith("findings/BC105.parquet"):  # written by the audit
                assert (page.path.parent / link).resolve().is_relative_to(written)
                assert (page.path.parent / link).is_file(), link
        assert {link[1:] for link in page.links() if re.fullmatch(r"#[\w-]+", link)} <= anchors


def test_no_page_asks_a_network(written: Path) -> None:
    for page in pages_of(written):
        text = page.path.read_text()
        assert not re.search(
            r"(?:src|href|action)\s*=\s*[\"']?\s*(?:https?:)?//|@import|url\(|fetch\(|XMLHttp|WebSocket", text
        )


def test_only_the_reports_own_script_may_run(written: Path) -> None:
    for page in pages_of(written):
        text = page.path.read_text()
        (policy,) = (attrs["content"] for tag, attrs in page.elements if attrs.get("http-equiv"))
        script = text.rsplit("<script>", 1)[1].rsplit("</script>", 1)[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
        assert "default-src 'none'" in policy
        assert "unsafe-eval" not in policy


# Hostile names


def test_no_name_becomes_an_element_or_an_attribute(written: Path) -> None:
    for page in pages_of(written):
        assert [tag for tag, _ in page.elements].count("script") == 2
        assert "b" not in {tag for tag, attrs in page.elements if tag == "b" and attrs}
        assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]
        assert "x" not in page.links()
        assert "49" not in re.findall(r"\w+(?= & )", page.text)


def test_names_are_shown_as_they_are_but_for_what_turns_writing_round(written: Path) -> None:
    index = Page(written / "index.html")
    names = json.loads(index.data)["classes"]["name"]
    assert names == [*HOSTILE[:4], "=cmd|'/c calc'!A0 \\u202egnp\\x07"]
    assert HOSTILE[0] in index.text
    assert "\u202e" not in index.path.read_text()


def test_data_for_the_script_ends_no_element() -> None:
    text = report._as_json({"name": "</script><!--<script>&amp;\u2028"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": "</script><!--<script>&amp;\u2028"}


@given(name=st.text(), index=st.integers(0, 10**6))
def test_no_name_of_a_class_leads_out_of_the_folder_of_classes(name: str, index: int) -> None:
    slug = phrases.class_slug(index, name)
    assert report._OURS.fullmatch(f"class/{slug}")
    assert int(re.match(r"\d+", slug)[0]) == index


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "/etc/passwd", "https://a.b/c", "javascript:alert(1)", "a/../../b", ""]
)
def test_files_of_a_finding_are_linked_only_below_the_report(tmp_path: Path, path: str) -> None:
    finding = make_finding(make_run(tmp_path), files=path).to_dict()
    assert views.Card(finding, "", None, None).file is None


def test_ids_that_are_no_ids_name_no_files(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    audit = everything(run)
    audit["findings"][0]["examples"]["worst"] = [
        {"id": "../../../evil", "uri": "/etc/passwd"},
        {"id": "F" * 32, "uri": "x"},
    ]
    report.write_report(audit, sum_up(run), run, str(tmp_path / "out"))
    names = {path.name for path in tmp_path.rglob("*")}
    assert not {name for name in names if "evil" in name or "FFFF" in name}


# What is said


def test_the_first_thing_said_is_what_was_found(written: Path) -> None:
    index = Page(written / "index.html")
    text = " ".join(index.text.split())
    assert text.index("1 error and 1 warning") < text.index("suspected shortcut") < text.index("What to do")
    assert "23 % of the maps peak in one place" in text
    assert "Look at <this> corner" in text
    assert "lift < 4 & more" in text
    assert "transplant · rise 0.29" in text
    assert "did not run: there are no boxes" in text


def test_numbers_are_those_of_the_images(tmp_path: Path) -> None:
    run = make_run(tmp_path, 60)
    seen, sums = observe_run(run), sum_up(run)
    report.write_report(make_audit(run), sums, run, str(tmp_path / "out"))
    index = Page(tmp_path / "out/index.html")
    table = json.loads(index.data)["classes"]
    assert table["index"] == [0, 1, 2, 3, 4]
    for k in range(5):
        mine = seen.label == k
        assert table["n"][k] == mine.sum()
        assert table["accuracy"][k] == pytest.approx((seen.predicted[mine] == k).mean(), abs=1e-4)
        assert table["confidence"][k] == pytest.approx(seen.confidence[mine].mean(), abs=1e-4)
        counts = np.bincount(seen.peak[mine], minlength=6)
        assert table["share"][k] == pytest.approx(counts.max() / mine.sum(), abs=1e-4)
        mean = seen.maps[mine].mean(axis=0).ravel()
        assert report.views.encode_cells(mean.reshape(2, 3)) == table["cells"][k]
    labelled = seen.label >= 0
    right = (seen.predicted[labelled] == seen.label[labelled]).mean()
    text = " ".join(index.text.split())
    assert f"{right:.0%}".replace("%", " % predicted as labelled") in text
    assert f"{len(seen.label)} images explained" in text
    assert f"{60 - len(seen.label)} images failed" in text


def test_pictures_are_of_the_images_that_the_finding_names(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finding = make_finding(run)
    report.write_report(make_audit(run, finding), sum_up(run), run, str(tmp_path / "out"))
    shown = [attrs["src"] for attrs in Page(tmp_path / "out/index.html").of("photo")]
    ids = [example.id for example in (*finding.examples.worst, *finding.examples.random)]
    assert shown == [f"thumbs/{key}.jpg" for key in ids]


def test_an_image_that_is_gone_is_shown_by_its_map_and_the_reason(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finding = make_finding(run)
    Path(finding.examples.worst[0].uri).unlink()
    Path(finding.examples.worst[1].uri).write_text("no image any more")
    report.write_report(make_audit(run, finding), sum_up(run), run, str(tmp_path / "out"))
    index = Page(tmp_path / "out/index.html")
    assert len(index.of("gone")) == 2
    assert "no photograph: FileNotFoundError" in index.text
    assert "no photograph: ImageError: not an image" in index.text
    assert len(index.of("attention")) == 4


def test_the_map_of_a_picture_is_that_of_its_record(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    finding, seen = make_finding(run), observe_run(run)
    report.write_report(make_audit(run, finding), sum_up(run), run, str(tmp_path / "out"))
    layers = [attrs["src"] for attrs in Page(tmp_path / "out/index.html").of("cells") if "data-cells" not in attrs]
    place = seen.ids.tolist().index(finding.examples.worst[0].id.encode())
    assert layers[0] == views.view_map(seen.maps[place], overlay=True).png


def test_every_rule_says_what_its_findings_mean() -> None:
    assert set(phrases.MEANINGS) == set(TITLES)


@pytest.mark.parametrize(
    ("counts", "status", "expected"),
    [
        ((1, 0), "error", ("error", "1 error")),
        ((0, 2), "findings", ("warning", "2 warnings")),
        ((12, 1), "error", ("error", "12 errors and 1 warning")),
        ((0, 0), "ok", ("ok", "Nothing to worry about")),
        ((0, 0), "error", ("error", "This run cannot be judged")),
    ],
)
def test_the_verdict_is_in_words(counts: tuple[int, int], status: str, expected: tuple[str, str]) -> None:
    audit = {"counts": {"error": counts[0], "warning": counts[1]}, "status": status}
    assert phrases.verdict(audit) == expected


@pytest.mark.parametrize(
    ("share", "said"),
    [(0.0, "0 %"), (0.00001, "< 0.1 %"), (0.012, "1.2 %"), (0.0999, "10.0 %"), (0.235, "24 %"), (0.995, "99.5 %"),
     (0.99999, "> 99.9 %"), (1.0, "100 %"), (None, "–")],
)  # fmt: skip
def test_no_share_is_rounded_to_none_or_all(share: float | None, said: str) -> None:
    assert phrases.say_share(share) == said


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_medians_of_histograms_are_a_bin_near(values: list[float]) -> None:
    counts, _ = np.histogram(values, EDGES["confidence"])
    ordered = sorted(values)
    low, high = ordered[(len(values) - 1) // 2], ordered[len(values) // 2]
    assert low - 1 / 32 <= views.median_of(counts, EDGES["confidence"]) <= high + 1 / 32


def test_measurements_are_told_in_lines_and_many_numbers_by_their_range() -> None:
    told = phrases.flatten(
        {"BC1": {"largest": 2.345678, "by": {str(k): k / 100 for k in range(1000)}, "none": None, "yes": True},
         "BC2": {"few": [1, 2], "images": [{"id": "a"}, {"id": "b"}]}}
    )  # fmt: skip
    assert told == [
        ("BC1 · largest", "2.346"), ("BC1 · by", "1,000 values, from 0 to 9.99"), ("BC1 · none", "none"),
        ("BC1 · yes", "yes"), ("BC2 · few", "1, 2"), ("BC2 · images", "2 entries, in findings.json"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "shape", "place"),
    [((0, 0), (7, 7), "top left"), ((3, 3), (7, 7), "centre"), ((6, 0), (7, 7), "bottom left"), ((0, 3), (7, 7), "top"),
     ((6, 6), (7, 7), "bottom right"), ((1, 13), (2, 14), "bottom right"), ((0, 0), (1, 1), "centre")],
)  # fmt: skip
def test_places_are_named_as_people_see_them(cell: tuple[int, int], shape: tuple[int, int], place: str) -> None:
    assert phrases.name_place(*cell, shape) == place


# Files


def test_a_single_file_has_all_of_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    report.write_report(everything(run), sum_up(run), run, str(tmp_path / "out"), single_file=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["index.html"]
    index = Page(tmp_path / "out/index.html")
    assert len(index.of("photo")) >= 6
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs in index.of("photo"))
    assert not [link for link in index.links() if link.startswith("class/")]


def test_an_earlier_report_leaves_nothing_and_other_files_stay(tmp_path: Path) -> None:
    run, out = make_run(tmp_path), tmp_path / "out"
    report.write_report(make_audit(run, make_finding(run, 2)), sum_up(run), run, str(out))
    others = [out / "class/notes.html", out / "thumbs/holiday.jpg", out / "mine.html"]
    for path in others:
        path.write_text("mine")
    earlier = {path for path in out.rglob("*") if path.is_file()} - set(others)
    report.write_report(make_audit(run), sum_up(run), run, str(out))
    left = {path for path in out.rglob("*") if path.is_file()}
    assert left == {*others, out / "index.html"}
    assert len(earlier) > 3


def test_the_page_of_any_class_can_be_made_by_name_or_index(tmp_path: Path) -> None:
    run = make_run(tmp_path, names=["ant", "bee", "cat", "dog", "eel"])
    sums, seen = sum_up(run), observe_run(run)
    for wanted in ("dog", "3"):
        uri = report.write_class_page(make_audit(run), sums, run, wanted, str(tmp_path / "out"))
        assert uri == str(tmp_path / "out/class/0003-dog.html")
    page = Page(Path(uri))
    assert "No rule found anything in this class" in page.text
    assert len(page.of("photo")) == min(36, int((seen.label == 3).sum()))
    with pytest.raises(ConfigError, match=r"no image of this run is of class 'cow': .* such as 'ant'"):
        report.write_class_page(make_audit(run), sums, run, "cow", str(tmp_path / "out"))


def test_a_class_page_tells_what_its_images_are_taken_for(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sums, seen = sum_up(run), observe_run(run)
    found = views.confusions(sums, 1, None, most=100)
    pairs = [
        (f"class {a}", f"class {b}", int(((seen.label == a) & (seen.predicted == b)).sum()))
        for a in range(5)
        for b in range(5)
        if a != b and 1 in (a, b)
    ]
    assert sorted(found) == sorted(pair for pair in pairs if pair[2])
    assert [n for *_, n in found] == sorted((n for *_, n in found), reverse=True)


def test_classes_without_images_of_their_label_are_there_by_their_predictions() -> None:
    sums = make_sums(Looks(n=40), Looks(n=40, accuracy=0.5, taken_for=2))
    rows = views.class_rows(sums, None, [])
    assert [(row.index, row.by, row.n) for row in rows] == [(0, "label", 40), (1, "label", 40), (2, "predicted", 20)]


# Sizes


def test_a_thousand_classes_with_findings_make_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    names = [f"a class with quite a long name {i}" for i in range(1000)]
    run.class_names = names
    some = make_finding(run)
    findings = [
        dataclasses.replace(some, scope=Scope(i, names[i], "label"), severity="info" if i % 3 else "warning")
        for i in range(1000)
    ]
    sums = make_sums(*[Looks(n=2)] * 1000, grid=(14, 14))
    report.write_report(
        make_audit(run, *findings), dataclasses.replace(sums, method="gradcam"), run, str(tmp_path / "out")
    )
    index = tmp_path / "out/index.html"
    assert index.stat().st_size < 1_500_000
    page = Page(index)
    assert len(page.of("card")) == report.MAX_CARDS
    assert len(page.of("line")) == report.MAX_LINES
    assert "as are 480 further ones that are not listed here" in " ".join(page.text.split())
    assert len(list((tmp_path / "out/class").iterdir())) == report.MAX_PAGES


def test_maps_of_the_table_are_left_out_before_the_page_grows_too_large() -> None:
    sums = make_sums(*[Looks(n=1)] * 60, grid=(16, 16))
    rows = views.class_rows(sums, None, [])
    kept = views.MAP_LETTERS
    try:
        views.MAP_LETTERS = 256 * 10
        told = views.table_data(rows)["cells"]
    finally:
        views.MAP_LETTERS = kept
    assert sum(cells is not None for cells in told) == 10


def test_noise_has_no_contour_and_a_blob_has_one() -> None:
    rng = np.random.default_rng(0)
    assert views.view_map(rng.random((16, 16)), overlay=True).contour == ""
    blob = np.exp(-((np.mgrid[:16, :16] - 8) ** 2).sum(axis=0) / 8)
    assert len(views.view_map(blob, overlay=True).contour) > 100


# What may lack


def test_a_run_without_maps_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    some = make_observations(Looks(n=20), Looks(n=20))
    nothing = {"maps": np.zeros((40, 0, 0), np.float32), "peak": np.full(40, -1, np.int32)}
    sums = Sums.of(dataclasses.replace(some, **nothing))
    report.write_report(make_audit(run, make_finding(run)), sums, run, str(tmp_path / "out"))
    report.write_class_page(make_audit(run), sums, run, "1", str(tmp_path / "out"))
    assert json.loads(Page(tmp_path / "out/index.html").data)["classes"]["place"] == [None, None]


def test_a_run_of_failures_alone_has_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sums = dataclasses.replace(Sums.empty("gradcam"), n_failed=3, failures_by_type={"decode:<b>": 3})
    report.write_report(make_audit(run), sums, run, str(tmp_path / "out"))
    index = Page(tmp_path / "out/index.html")
    assert "3 images could not be explained" in index.text
    assert "decode:<b>" in index.text


def test_a_store_that_does_not_answer_is_not_asked_for_every_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = make_run(tmp_path, 60), []

    def stall(uri: str) -> None:
        asked.append(uri)
        raise UnavailableError("no answer in 300 s")

    monkeypatch.setattr(gallery, "make_thumbnail", stall)
    monkeypatch.setattr(gallery, "_THREADS", 1)
    ids = {key.decode() for key in observe_run(run).ids.tolist()}
    pictures = gallery.make_pictures(gallery.find_facts(run, "gradcam", ids), None, str(tmp_path / "out"))
    assert len(asked) == gallery.PATIENCE
    assert [p.problem for p in pictures.values()][-1] == "not tried, since 8 others could not be read"
    assert len(pictures) == len(ids) > gallery.PATIENCE


def test_a_report_lies_on_any_store(tmp_path: Path) -> None:
    run, out = make_run(tmp_path), "memory://audits/tonight"
    for _ in range(2):
        uri = report.write_report(everything(run), sum_up(run), run, out)
    assert uri == f"{out}/index.html"
    names = {found.rsplit("tonight/", 1)[1] for found in storage.list_files(out, recursive=True)}
    assert {"index.html", "class/0000-a.html", "class/0001-b.html"} <= names
    assert set(re.findall(r'src="(thumbs/[^"]+)"', storage.read_bytes(uri).decode())) <= names


# The comparison


def test_without_a_baseline_the_page_says_how_to_make_one(written: Path) -> None:
    assert "beamcam audit accept" in Page(written / "index.html").text


def test_with_a_baseline_it_shows_what_was_and_is(tmp_path: Path) -> None:
    run = make_run(tmp_path, names=["ant", "bee", "cat", "dog", "eel"])
    seen = observe_run(run)
    change = {
        "id": seen.ids[0].decode(), "uri": seen.uris[0], "label": 0, "predicted_before": 3, "predicted": 1,
        "confidence_before": 0.875, "confidence": 0.9, "correlation": 0.1,
    }  # fmt: skip
    kinds = "same flipped worse better labelled moved came went changed failed recovered"
    counts = {f"n_{name}": i + 1000 for i, name in enumerate(kinds.split())}
    baseline = {"id": "/audits/<yesterday>", "rubber_stamp": False, "differences": ["model: a, now b"],
                "comparable": {"paired": True, "class": True, "dataset": True, "attention": False}}  # fmt: skip
    audit = make_audit(
        run, make_finding(run, 1, "BC204", message="bee: accuracy was 80 % and is 70 %"), baseline=baseline,
        BC203={**counts, "regressions": [change], "flips": [change], "moved": []},
        BC206={"confidence": 0.71, "confidence_before": 0.75, "empty": 0.02, "empty_before": 0.01},
    )  # fmt: skip
    report.write_report(audit, sum_up(run), run, str(tmp_path / "out"))
    index = Page(tmp_path / "out/index.html")
    text = " ".join(index.text.split())
    assert "Compared with /audits/<yesterday>" in text
    assert "✕ maps (not comparable)" in text
    assert (
        "1,000 images are the same in both runs; 1,001 of them are predicted as another class (1,002 were right" in text
    )
    assert "1,005 are looked at in another place, 1,008 have another content, 1,006 are new, 1,007 are gone" in text
    assert "Mean confidence 0.750 0.710" in text
    assert "before: 0.88 dog" in text
    assert text.count("before: 0.88 dog") == 1  # an image is shown once, as the gravest
    assert "model: a, now b" in text
    assert "1 finding comes from the comparison: bee, class accuracy changed" in text


def test_a_comparison_in_which_nothing_changed_says_so() -> None:
    counts = {"n_same": 600, "n_flipped": 0, "n_labelled": 600, "n_worse": 0, "n_better": 0, "n_moved": 0}
    said = phrases.say_paired({"measurements": {"BC203": counts}})
    assert said == ["600 images are the same in both runs; all of them are predicted as before."]
    assert phrases.say_paired({"measurements": {}}) == []


def test_the_region_and_the_peak_are_drawn_where_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    sums = sum_up(run)
    report.write_report(make_audit(run, make_finding(run)), sums, run, str(tmp_path / "out"))
    index = Page(tmp_path / "out/index.html")
    edges = [[float(attrs[name]) for name in ("x", "y", "width", "height")] for attrs in index.of("region")]
    assert edges == [[0.0, 1.0, 0.75, 1.0]] * 2  # 0, 0.5, 0.25, 1 of an image of 2 x 3 cells
    mean = sums.by_predicted.mean_map(0)
    row, column = np.unravel_index(mean.argmax(), mean.shape)
    assert index.of("peak")[0]["d"] == f"M{column + 0.5} {row + 0.5}h0"
