"""What a notebook shows: the right pictures, and no text of anybody's that a page would obey."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.notebook import FIRST, MOST_MAPS, SIDE, THUMBNAIL
from pipeline.reading import Run
from pipeline.records import Record
from tests.exports.making import NAMES, PICTURES, Picture, make_run, with_names


class Page(HTMLParser):
    """Tags, their attributes, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text += data


def pictures_of(text: str) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([A-Za-z0-9+/=]+)", text)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("notebook"))


def record_of(run: Run, name: str) -> Record:
    return next(record for record in run if record.uri.endswith(name))


def test_a_map_is_a_layer_in_the_images_proportions_strong_where_it_is(run: Run) -> None:
    shown = record_of(run, "tall, 1.png").maps[0]
    picture = Image.open(io.BytesIO(shown._repr_png_())).convert("RGBA")
    assert picture.size == (37, 91)
    opacity = np.asarray(picture)[:, :, 3].astype(int)
    y, x = np.unravel_index(np.argmax(opacity), opacity.shape)
    assert opacity.max() == round(0.85 * 255)
    assert 20 <= x < 37
    assert 60 <= y < 91
    assert opacity[:50].max() == 0


def test_a_large_map_is_shown_small(tmp_path: Path) -> None:
    (record,) = make_run(tmp_path, [Picture("a.png", (1000, 500), (100, 100, 400, 300))])
    assert Image.open(io.BytesIO(record.maps[0]._repr_png_())).size == (SIDE, SIDE // 2)
    for picture in pictures_of(record._repr_html_()):
        assert picture.size == (SIDE, SIDE // 2)


def test_a_record_shows_the_photograph_turned_upright_and_the_map_over_it(run: Run) -> None:
    record = record_of(run, "turned.jpg")
    photograph, blend = pictures_of(record._repr_html_())
    assert photograph.size == blend.size == (50, 80)
    plain = np.asarray(photograph.convert("L")).astype(int)
    assert plain[:18, :13].min() > 200, "the marker is at the upper left, as it is seen"
    assert plain[30:, 25:].max() < 80
    changed = np.abs(np.asarray(blend).astype(int) - np.asarray(photograph.convert("RGB")).astype(int)).sum(axis=2)
    assert changed[:18, :13].mean() > 10 * changed[40:].mean()
    text = Page(record._repr_html_()).text
    assert "predicted class 3" in text
    assert "p 0.900" in text
    assert "50 x 80 pixels" in text


def test_a_run_shows_its_counts_and_first_records_by_name(run: Run) -> None:
    text = run._repr_html_()
    pictures, page = pictures_of(text), Page(text)
    assert len(pictures) == FIRST
    assert max(max(picture.size) for picture in pictures) <= THUMBNAIL
    assert "records10" in page.text
    assert f"{NAMES[1]} ({NAMES[1]})" in page.text


def test_a_photograph_that_is_gone_or_another_is_told_and_the_map_is_shown_alone(tmp_path: Path) -> None:
    found = make_run(tmp_path, PICTURES[:2])
    first, second = found
    Path(first.uri).unlink()
    (alone,) = pictures_of(first._repr_html_())
    assert alone.format == "PNG"
    assert "the photograph cannot be shown: FileNotFoundError" in Page(first._repr_html_()).text
    Image.new("RGB", (5, 5)).save(second.uri)
    assert "another size than when it was explained" in Page(second._repr_html_()).text
    assert len(pictures_of(found._repr_html_())) == 2


@pytest.mark.parametrize("uri", ["http://169.254.169.254/a.png", "https://example.org/a.png", "ssh://host/a.png"])
def test_showing_a_record_of_somebody_asks_no_server(run: Run, uri: str) -> None:
    text = Page(replace(record_of(run, "plain.png"), uri=uri)._repr_html_()).text
    assert "neither on this machine nor in a bucket" in text


def test_names_and_labels_of_anybody_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">\'\x1b[31m\u202e'
    picture = replace(PICTURES[0], label=evil)
    found = make_run(tmp_path, with_names([picture], ["<script>x<b>.png"]), [evil] * 6)
    for text in (found._repr_html_(), next(iter(found))._repr_html_()):
        page = Page(text)
        assert set(page.tags) <= {"div", "b", "br", "table", "tr", "td", "figure", "img", "figcaption"}
        assert set(page.attributes) <= {"style", "src", "alt"}
        assert page.tags.count("img") == len(pictures_of(text))
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_very_many_maps_are_not_all_shown(run: Run) -> None:
    record = record_of(run, "plain.png")
    text = replace(record, maps=record.maps * 40)._repr_html_()
    assert len(pictures_of(text)) == 1 + MOST_MAPS
    assert f"{MOST_MAPS} of 40 maps" in text
