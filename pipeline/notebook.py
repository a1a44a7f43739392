"""How runs, records and maps show themselves in a notebook: small pictures, and nothing that a page would obey."""

from __future__ import annotations

import base64
import html
import io
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipeline import storage
from pipeline.decode import Decoded, decode_reduced
from pipeline.errors import ImageError
from pipeline.overlay import color_table, draw_overlay
from pipeline.png import encode_png
from pipeline.wording import shown

COLORMAP = "inferno"

SIDE = 320
"""Longest side of a record's pictures, pixels."""

THUMBNAIL = 160
"""Likewise of a run's."""

FIRST = 6
"""Records of a run that are shown."""

MOST_MAPS = 12
"""Maps of a record that are shown."""

_MOST_BYTES = 200_000_000  # of a photograph
_MOST_PIXELS = 100_000_000


def map_png(values: Any, side: int = SIDE) -> bytes:
    """A map without its photograph, in the image's proportions, as a transparent PNG.

    Args:
        values: a `MapRecord`.
        side: the longest side, pixels.
    """
    pixels = draw_overlay(None, _positive(values), values.geometry, "layer", COLORMAP, side)
    return encode_png(pixels, color_table(COLORMAP))


def record_html(record: Any, names: Sequence[str] | None = None) -> str:
    """A record: its photograph beside the maps over it, and what the model said.

    A photograph that cannot be read is left out, with the reason; maps are then shown alone.

    Args:
        record: a `Record`.
        names: of the classes.
    """
    photograph, trouble = _read_photograph(record, SIDE)
    size = f"{record.geometry.width} x {record.geometry.height} pixels"
    said = f"predicted {_class_name(record.predicted, names)}"
    if record.label is not None:
        said += f", label {record.label}"
    figures = [_figure(_fit(photograph, SIDE), "")] if photograph is not None else []
    for values in record.maps[:MOST_MAPS]:
        caption = f"{values.method}: {_class_name(values.target, names)}, p {values.probability:.3f}"
        figures.append(_figure(_draw(values, photograph, SIDE), caption))
    notes = [said, size, *([trouble] if trouble else [])]
    if len(record.maps) > MOST_MAPS:
        notes.append(f"{MOST_MAPS} of {len(record.maps)} maps")
    return f"<div><b>{_text(record.uri)}</b><br>{'<br>'.join(map(_text, notes))}<br>{''.join(figures)}</div>"


def run_html(run: Any) -> str:
    """A run: its counts, and its first records with their strongest class's map.

    Args:
        run: a `Run`.
    """
    summary = run.summary
    counts = [(name, summary.get(name)) for name in ("model", "inputs", "records", "failures", "overlays", "shards")]
    counts += [(kind, count) for kind, count in summary.get("failures_by_type", {}).items()]
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in counts)
    figures = "".join(_thumbnails(itertools.islice(run, FIRST), run.class_names))
    return f"<div><b>{_text(run.path)}</b><table>{rows}</table>{figures}</div>"


def _thumbnails(records: Iterable[Any], names: Sequence[str] | None) -> Iterable[str]:
    for record in records:
        photograph, _ = _read_photograph(record, THUMBNAIL)
        best = next((values for values in record.maps if values.target == record.predicted), None)
        caption = f"{_class_name(record.predicted, names)}" + (f" ({record.label})" if record.label is not None else "")
        if best is not None:
            yield _figure(_draw(best, photograph, THUMBNAIL), f"{caption}, {best.method}")
        elif photograph is not None:
            yield _figure(_fit(photograph, THUMBNAIL), caption)


def _read_photograph(record: Any, side: int) -> tuple[Decoded | None, str | None]:
    """The photograph, or why there is none."""
    uri = record.uri
    if not storage.is_local(uri) and not uri.startswith(("gs://", "s3://")):
        return None, "the photograph is not shown: it is neither on this machine nor in a bucket"
    try:
        data = storage.read_bytes(uri, limit=_MOST_BYTES)
        found = decode_reduced(data, _MOST_PIXELS, (side, side))
    except (OSError, ImageError) as error:
        return None, f"the photograph cannot be shown: {type(error).__name__}: {error}"
    if (found.width, found.height) != (record.geometry.width, record.geometry.height):
        return None, "the photograph is not shown: it has another size than when it was explained"
    return found, None


def _draw(values: Any, photograph: Decoded | None, side: int) -> bytes:
    if photograph is None:
        return map_png(values, side)
    reduction = photograph.reduction
    blend = draw_overlay(photograph.image, _positive(values), values.geometry, "blend", COLORMAP, side, reduction)
    return _encode(Image.fromarray(blend))


def _fit(photograph: Decoded, side: int) -> bytes:
    picture = photograph.image.copy()
    picture.thumbnail((side, side))
    return _encode(picture)


def _encode(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)  # a tenth of the bytes that a notebook would keep of a PNG
    return buffer.getvalue()


def _positive(values: Any) -> np.ndarray:
    positive = np.maximum(values.array(), 0)
    peak = positive.max()
    return positive / peak if peak > 0 else positive


def _figure(picture: bytes, caption: str) -> str:
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    data = base64.b64encode(picture).decode()
    return (
        '<figure style="display:inline-block;margin:4px;vertical-align:top">'
        f'<img src="data:image/{kind};base64,{data}" alt="{_text(caption)}">'
        f'<figcaption style="max-width:{SIDE}px">{_text(caption)}</figcaption></figure>'
    )


def _class_name(index: int, names: Sequence[str] | None) -> str:
    return names[index] if names is not None and index < len(names) else f"class {index}"


def _text(value: Any) -> str:
    """What a page shows as it is, in one line."""
    return html.escape(shown(str(value)))
