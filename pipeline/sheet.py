"""Contact sheets: pictures with captions in a grid, where people would rather look than read."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from pipeline.wording import printable

GAP = 8
LINE = 15  # the least height of a line of text, pixels
MAX_LETTERS = 500  # of a line, which shows fewer


def make_sheet(tiles: Sequence[tuple[Image.Image, str]], columns: int, tile_size: int = 200) -> bytes:
    """A PNG of captioned pictures, a tile each, fitted into squares.

    Args:
        tiles: pictures (RGB) with captions; lines are split at newlines, and cut where they do not fit.
        columns: tiles a row.
        tile_size: side of a tile's picture, pixels.
    """
    line_height = max(LINE, tile_size // 24)
    lines = max((caption.count("\n") + 1 for _, caption in tiles), default=1)
    cell_height = tile_size + line_height * lines + GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (tile_size + GAP) + GAP, rows * cell_height + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(line_height - 4)
    for i, (picture, caption) in enumerate(tiles):
        left, top = GAP + (i % columns) * (tile_size + GAP), GAP + (i // columns) * cell_height
        small = picture.copy()
        small.thumbnail((tile_size, tile_size), Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (tile_size - small.width) // 2, top + (tile_size - small.height) // 2))
        for number, line in enumerate(caption.split("\n")):
            draw.text(
                (left, top + tile_size + 1 + line_height * number),
                _fit(printable(line[:MAX_LETTERS]), font, tile_size),
                fill="black",
                font=font,
            )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _fit(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
