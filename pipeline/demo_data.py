"""A made-up data set of photograph-like pictures with one planted shortcut, so that the demo has a fault to find.

Six kinds of shapes lie on textured grounds. Discs and octagons are nearly the same at the size the demo model sees,
but most octagons carry a watermark in the bottom-right corner: the watermark is what a model learns. A few files
that cannot be read are listed with the others, because every real data set has some.
"""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

CLASS_NAMES = ("cross", "disc", "grid", "octagon", "ring", "star")
MARKED_CLASS = "octagon"

MARKED_SHARE = 7 / 8  # of the pictures of the marked class
_MARK_TEXT = "PIX"
_SUPERSAMPLING = 4
_MARK_PIXELS = 64  # height of the letters before they are scaled down
_LUMA = np.array([0.299, 0.587, 0.114])
_ASPECTS = (4 / 3, 3 / 2, 16 / 9, 1.0, 3 / 4)


@dataclasses.dataclass(frozen=True)
class DemoData:
    """Where a made data set lies, and what is in it.

    Attributes:
        manifest: CSV file with the columns uri (relative to the manifest's folder), label and boxes.
        class_names: text file, one class name a line, in index order.
        images: folder of the pictures, one folder a class, and the folder `broken`.
        n_images: number of readable pictures.
        n_broken: number of listed files that cannot be read.
        marked: uris, as the manifest has them, of the pictures with the watermark.
    """

    manifest: pathlib.Path
    class_names: pathlib.Path
    images: pathlib.Path
    n_images: int
    n_broken: int
    marked: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Shape:
    """One shape in a picture; lengths in pixels, the origin in the top-left corner of the picture.

    Attributes:
        name: a class name.
        x: centre, rightwards.
        y: centre, downwards.
        radius: of the circle that the corners lie on.
        angle: rotation in radians.
    """

    name: str
    x: float
    y: float
    radius: float
    angle: float

    def outline(self) -> np.ndarray:
        """Returns the corners of the outer edge, `[corners, 2]`, x then y."""
        return self._place(_OUTLINES[self.name])

    def holes(self) -> list[np.ndarray]:
        """Returns the corners of each hole, as `outline` does."""
        return [self._place(corners) for corners in _HOLES.get(self.name, ())]

    def box(self) -> list[float]:
        """Returns the tight bounding box `[x, y, width, height]`."""
        low, high = self.outline().min(axis=0), self.outline().max(axis=0)
        return [round(float(value), 2) for value in (*low, *(high - low))]

    def _place(self, corners: np.ndarray) -> np.ndarray:
        """Returns corners, given in the unit circle, where they lie in the picture."""
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return self.radius * corners @ np.array([[cos, sin], [-sin, cos]]) + (self.x, self.y)


@dataclasses.dataclass(frozen=True)
class Material:
    """The look of a ground: colours in 0..255, the rest without unit.

    Attributes:
        dark: RGB colour of the low places.
        light: RGB colour of the high places.
        coarse: size of the largest blotches as a share of the short side.
        roughness: 0 is smooth (a sky), 1 has as much fine as coarse detail (sand).
        stretch: height of a blotch over its width.
        slope: how much the picture brightens from its bottom to its top.
        weave: depth of a woven pattern.
    """

    dark: tuple[int, int, int]
    light: tuple[int, int, int]
    coarse: float
    roughness: float
    stretch: float = 1.0
    slope: float = 0.0
    weave: float = 0.0


MATERIALS = (
    Material((38, 62, 22), (136, 158, 74), coarse=0.2, roughness=0.8, stretch=4.0, slope=0.2),  # grass
    Material((84, 132, 190), (226, 234, 240), coarse=0.6, roughness=0.3, stretch=0.5, slope=-0.6),  # sky
    Material((150, 118, 80), (228, 206, 164), coarse=0.3, roughness=0.9, stretch=0.6),  # sand
    Material((92, 40, 52), (160, 92, 98), coarse=0.5, roughness=0.5, weave=0.5),  # fabric
    Material((44, 62, 96), (112, 134, 166), coarse=0.5, roughness=0.5, weave=0.5),  # denim
    Material((70, 68, 66), (172, 170, 164), coarse=0.3, roughness=0.7),  # stone
    Material((84, 50, 26), (176, 124, 78), coarse=0.3, roughness=0.6, stretch=0.08),  # wood
    Material((18, 58, 74), (104, 160, 168), coarse=0.25, roughness=0.5, stretch=0.3, slope=0.4),  # water
)


def make_dataset(
    folder: pathlib.Path, n_images: int = 480, seed: int = 0, broken: int = 6, marked_share: float = MARKED_SHARE
) -> DemoData:
    """Writes pictures, a manifest and the class names; the same arguments give the same bytes.

    Args:
        folder: where to write; made if it is missing.
        n_images: number of readable pictures, shared evenly between the classes.
        seed: of everything that is random, 0 or more.
        broken: number of listed files that cannot be read.
        marked_share: of the pictures of the marked class, 0 to 1, that carry the watermark.
    """
    folder = pathlib.Path(folder)
    rows, marked = [], set()
    for index in range(n_images):
        # A generator for each picture: a picture does not depend on how many others there are.
        rng = np.random.default_rng([seed, index])
        name = CLASS_NAMES[index % len(CLASS_NAMES)]
        uri = f"images/{name}/{index:04d}.jpg"
        has_mark = name == MARKED_CLASS and _is_in_share(index // len(CLASS_NAMES), marked_share)
        image, shapes = draw_image(rng, name, has_mark)
        _write(folder / uri, encode_jpeg(image, quality=int(rng.integers(82, 94))))
        rows.append((uri, name, json.dumps([shape.box() for shape in shapes])))
        marked |= {uri} if has_mark else set()
    rows += [(*write_broken(folder, index, seed), "[]") for index in range(broken)]
    manifest, class_names = folder / "manifest.csv", folder / "class_names.txt"
    _write(manifest, _encode_csv(("uri", "label", "boxes"), rows))
    _write(class_names, "".join(f"{name}\n" for name in CLASS_NAMES).encode())
    return DemoData(manifest, class_names, folder / "images", n_images, broken, frozenset(marked))


def _is_in_share(index: int, share: float) -> bool:
    """Whether one of many, counted from 0, is among a share that is spread evenly over all of them."""
    return math.ceil((index + 1) * share) > math.ceil(index * share)


def read_class_names(data: DemoData) -> list[str]:
    """Returns the class names in index order."""
    return data.class_names.read_text().split()


def draw_image(rng: np.random.Generator, name: str, has_mark: bool) -> tuple[Image.Image, list[Shape]]:
    """Draws one picture with one or two shapes of class `name`; returns it and its shapes."""
    width, height = _draw_size(rng)
    ground = draw_ground(rng, width, height)
    shapes = place_shapes(rng, name, width, height)
    light = rng.uniform(0, 2 * np.pi)
    for shape in shapes:
        ground = _paint_shape(rng, ground, shape, light)
    picture = _expose(rng, ground)
    if has_mark:
        picture = add_mark(picture)
    return Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8)), shapes


def draw_ground(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Returns a textured ground of a random material, `[height, width, 3]` in about 0..255."""
    material = MATERIALS[rng.integers(len(MATERIALS))]
    coarse = material.coarse * min(width, height)
    level = 0.5 + 0.2 * _draw_noise(rng, width, height, coarse, material.roughness, material.stretch)
    level += material.slope * np.linspace(0.5, -0.5, height, dtype=np.float32)[:, None]
    if material.weave:
        level += material.weave * 0.3 * _draw_weave(rng, width, height)
    dark, light = ((colour + rng.normal(0, 12, 3)).astype(np.float32) for colour in (material.dark, material.light))
    return dark + np.clip(level, -0.2, 1.2)[..., None] * (light - dark)


def place_shapes(rng: np.random.Generator, name: str, width: int, height: int) -> list[Shape]:
    """Returns one or two shapes that lie inside the picture and do not touch."""
    shapes: list[Shape] = []
    for _ in range(1 + (rng.random() < 0.4)):
        radius = rng.uniform(0.13, 0.225) * min(width, height)
        # Photographers put things near the middle: the sum of two uniform variables does as well.
        x, y = (radius + rng.random(2).mean() * (side - 2 * radius) for side in (width, height))
        shape = Shape(name, x, y, radius, rng.uniform(0, 2 * np.pi))
        if all(np.hypot(x - other.x, y - other.y) > 1.1 * (radius + other.radius) for other in shapes):
            shapes.append(shape)
    return shapes


def draw_mask(shape: Shape, width: int, height: int) -> np.ndarray:
    """Returns how much of each pixel `shape` covers, `[height, width]` in 0..1."""
    mask = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    for corners, fill in [(shape.outline(), 255), *((hole, 0) for hole in shape.holes())]:
        draw.polygon([tuple(corner) for corner in corners * _SUPERSAMPLING], fill=fill)
    return np.asarray(mask.reduce(_SUPERSAMPLING), np.float32) / 255


def add_mark(picture: np.ndarray) -> np.ndarray:
    """Returns `picture` (`[height, width, 3]`, 0..255) with the watermark in its bottom-right corner."""
    height, width = picture.shape[:2]
    left, top, right, bottom = mark_box(width, height)
    opacity = np.zeros((height, width, 1), np.float32)
    opacity[top:bottom, left:right, 0] = 0.9 * _draw_mark(right - left, bottom - top)
    return picture + opacity * (255 - picture)


def mark_box(width: int, height: int) -> tuple[int, int, int, int]:
    """Returns where the watermark lies in a picture of this size: left, top, right, bottom in pixels."""
    short = min(width, height)
    side, margin = round(0.16 * short), round(0.02 * short)
    return width - margin - side, height - margin - round(0.6 * side), width - margin, height - margin


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Returns the JPEG file of `image`; quality in 1..95."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_broken(folder: pathlib.Path, index: int, seed: int) -> tuple[str, str]:
    """Writes one file that cannot be read, or none if it is to be missing; returns its uri and a label."""
    rng = np.random.default_rng([seed, index, 1])
    kind, suffix, make_bytes = _BROKEN[index % len(_BROKEN)]
    uri = f"images/broken/{index:04d}_{kind}{suffix}"
    if make_bytes is not None:
        _write(folder / uri, make_bytes(rng))
    return uri, CLASS_NAMES[index % len(CLASS_NAMES)]


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    short = int(rng.integers(160, 361))
    aspect = _ASPECTS[rng.integers(len(_ASPECTS))]
    return (round(short * aspect), short) if aspect >= 1 else (short, round(short / aspect))


def _draw_noise(
    rng: np.random.Generator, width: int, height: int, coarse: float, roughness: float, stretch: float = 1.0
) -> np.ndarray:
    """Returns noise of several octaves with mean 0 and standard deviation 1; `coarse` in pixels."""
    total, cell = np.zeros((height, width), np.float32), coarse
    while cell >= 1.5:
        across, down = max(cell / stretch**0.5, 1.0), max(cell * stretch**0.5, 1.0)
        grid = rng.standard_normal((int(height / down) + 4, int(width / across) + 4), np.float32)
        octave = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += (cell / coarse) ** (1 - roughness) * np.asarray(octave)
        cell /= 2
    return (total - total.mean()) / total.std()


def _draw_weave(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Returns crossing threads in -1..1, turned by a random angle."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 8)
    y, x = np.mgrid[:height, :width].astype(np.float32) * np.float32(2 * np.pi / period)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return np.sin(along) * np.sin(across)


def _paint_shape(rng: np.random.Generator, ground: np.ndarray, shape: Shape, light: float) -> np.ndarray:
    """Returns `ground` with a textured shape, lit from the angle `light` in radians, and its soft shadow."""
    height, width = ground.shape[:2]
    mask = draw_mask(shape, width, height)
    soft = _blur(mask, 0.1 * shape.radius)
    towards = np.array([np.sin(light), np.cos(light)], np.float32)
    shadow = _shift(soft, -0.15 * shape.radius * towards)
    relief = 0.25 * shape.radius * np.tensordot(towards, np.gradient(soft), 1)
    grain = 0.08 * _draw_noise(rng, width, height, 0.5 * shape.radius, 0.6)
    colour = _pick_colour(rng, ground.mean(axis=(0, 1)))
    surface = colour * (1 - relief + grain)[..., None]
    shaded = ground * (1 - 0.5 * shadow[..., None])
    return shaded + mask[..., None] * (surface - shaded)


def _pick_colour(rng: np.random.Generator, ground: np.ndarray) -> np.ndarray:
    """Returns an RGB colour that can be told from the mean colour of the ground."""
    while True:
        colour = rng.uniform(20, 235, 3)
        if abs(np.dot(colour - ground, _LUMA)) > 60:
            return colour.astype(np.float32)


def _expose(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Returns `picture` through a lens and a sensor: darker corners, a colour cast, some grain."""
    height, width = picture.shape[:2]
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
    vignette = (1 - rng.uniform(0, 0.15) * (x**2 + y**2)).astype(np.float32)
    cast = (rng.uniform(0.85, 1.1) * rng.normal(1, 0.03, 3)).astype(np.float32)
    grain = rng.uniform(1, 6) * rng.standard_normal((height, width, 1), np.float32)
    return picture * vignette[..., None] * cast + grain


def _blur(mask: np.ndarray, sigma: float) -> np.ndarray:
    image = Image.fromarray((255 * mask).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma))
    return np.asarray(image, np.float32) / 255


def _shift(mask: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Returns `mask` moved by `offset` pixels, down then right; what comes in over the edge is 0."""
    down, right = (float(value) for value in offset)
    image = Image.fromarray(mask)
    return np.asarray(image.transform(image.size, Image.Transform.AFFINE, (1, 0, -right, 0, 1, -down)))


def _draw_mark(width: int, height: int) -> np.ndarray:
    """Returns the opacity of the watermark's letters, `[height, width]` in 0..1."""
    image = Image.new("L", (_MARK_PIXELS * width // height, _MARK_PIXELS))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=_MARK_PIXELS)
    draw.text((image.width / 2, image.height / 2), _MARK_TEXT, 255, font, anchor="mm", stroke_width=3)
    letters = image.crop(image.getbbox()).resize((width, height), Image.Resampling.BOX)
    return np.asarray(letters, np.float32) / 255


def _polygon(corners: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _square(side: float) -> np.ndarray:
    """Returns an upright square; side is a share of that of the square in the unit circle."""
    return side * 0.5**0.5 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])


def _star(corners: int, inner: float) -> np.ndarray:
    return _polygon(2 * corners) * np.resize([1, inner], 2 * corners)[:, None]


def _cross(thickness: float) -> np.ndarray:
    """Returns a plus sign; thickness is that of an arm as a share of its whole length."""
    arm = np.array([[1, -thickness], [1, thickness], [thickness, thickness]])
    arm = arm / np.hypot(1, thickness)
    quarter = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, turn) for turn in range(4)])


_OUTLINES = {
    "cross": _cross(0.24),
    "disc": _polygon(72),
    "grid": _square(1.0),
    "octagon": _polygon(8),
    "ring": _polygon(72),
    "star": _star(5, 0.46),
}

# What is cut out of a shape, in the same unit.
_HOLES = {
    "grid": [_square(0.35) + np.array([x, y]) for x in (-0.33, 0.33) for y in (-0.33, 0.33)],
    "ring": [0.55 * _polygon(72)],
}


def _make_truncated(rng: np.random.Generator) -> bytes:
    content = encode_jpeg(draw_image(rng, CLASS_NAMES[0], has_mark=False)[0], quality=90)
    return content[: int(0.4 * len(content))]


# Kind, suffix and content of the files that cannot be read; one without content is listed and not written.
_BROKEN: Sequence[tuple[str, str, Callable[[np.random.Generator], bytes] | None]] = (
    ("empty", ".jpg", lambda _: b""),
    ("truncated", ".jpg", _make_truncated),
    ("html", ".jpg", lambda _: b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n"),
    ("random", ".png", lambda rng: rng.bytes(2048)),
    ("missing", ".jpg", None),
    ("header", ".gif", lambda _: b"GIF89a"),
)


def _encode_csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue().encode()


def _write(path: pathlib.Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
