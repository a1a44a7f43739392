"""CVAT for images 1.1: one XML file; frames are matched by their names."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from pipeline.exports.items import ExportFacts, Item
from pipeline.exports.regions import Region, outline
from pipeline.exports.rle import cvat_rle
from pipeline.exports.writing import Rows, write_parts
from pipeline.wording import printable

_ATTRIBUTES = ("score", "cam_method", "threshold", "model")


class CvatExporter:
    """Writes images with tags, boxes, masks, polygons and points, all with `source="auto"`.

    An empty mask would abort the whole import; images without a region do not come here.
    """

    def __init__(self, facts: ExportFacts):
        self._facts = facts
        self._images = Rows()

    def add(self, item: Item) -> None:
        """Adds an image with its shapes."""
        geometry, shapes = item.record.geometry, self._facts.shapes
        size = f'width="{geometry.width}" height="{geometry.height}"'
        lines = [f'  <image id="{item.number - 1}" name={_quoted(item.name)} {size}>']
        if "class" in shapes:
            lines.append(self._shape("tag", item, "", item.score))
        for region in item.regions:
            score = item.region_score(region)
            lines += [
                self._shape(tag, item, write(region), score)
                for shape, (tag, write) in _SHAPES.items()
                if shape in shapes
            ]
        if "peak" in shapes:
            x, y = item.peak
            lines.append(self._shape("points", item, f' occluded="0" points="{x:.2f},{y:.2f}" z_order="0"', item.score))
        self._images.add("\n".join([*lines, "  </image>\n"]))

    def finish(self, uri: str) -> list[str]:
        """Writes the file; tells which ones were written."""
        write_parts(uri, [self._head(), self._images, "</annotations>\n"])
        return [uri]

    def _head(self) -> str:
        attributes = "".join(
            f"<attribute><name>{name}</name><mutable>False</mutable><input_type>text</input_type>"
            "<default_value></default_value><values></values></attribute>"
            for name in _ATTRIBUTES
        )
        labels = "\n".join(
            f"    <label><name>{escape(name)}</name><type>any</type><attributes>{attributes}</attributes></label>"
            for _, name in self._facts.labels.all()
        )
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>\n'
            f"  <meta><task><labels>\n{labels}\n  </labels></task></meta>\n"
        )

    def _shape(self, tag: str, item: Item, place: str, score: float) -> str:
        values = {**self._facts.attributes, "score": f"{score:.4f}"}
        attributes = "".join(
            f'<attribute name="{name}">{escape(printable(str(values[name])))}</attribute>' for name in _ATTRIBUTES
        )
        return f'    <{tag} label={_quoted(item.label)} source="auto"{place}>{attributes}</{tag}>'


def _box(region: Region) -> str:
    edges = {"xtl": region.left, "ytl": region.top, "xbr": region.right, "ybr": region.bottom}
    return ' occluded="0"' + "".join(f' {name}="{edge:.2f}"' for name, edge in edges.items()) + ' z_order="0"'


def _mask(region: Region) -> str:
    edges = {"left": region.left, "top": region.top, "width": region.width, "height": region.height}
    place = "".join(f' {name}="{edge}"' for name, edge in edges.items())
    return f' occluded="0" rle="{", ".join(map(str, cvat_rle(region)))}"{place} z_order="0"'


def _polygon(region: Region) -> str:
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in outline(region))
    return f' occluded="0" points="{points}" z_order="0"'


_SHAPES = {"box": ("box", _box), "mask": ("mask", _mask), "polygon": ("polygon", _polygon)}


def _quoted(text: str) -> str:
    # XML has no way to write control characters, not even escaped.
    return quoteattr(printable(text))
