"""Statistics of attention, cell by cell, as sums over rectangles: slow, float64, from the definitions."""

from __future__ import annotations

import math

import numpy as np

from pipeline.geometry import Geometry

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom as shares of the image."""

FRAME: Rectangle = (0.1, 0.1, 0.9, 0.9)


def cell_rectangle(row: int, column: int, shape: tuple[int, int], geometry: Geometry) -> Rectangle:
    """Where a cell of a map of that shape lies in the image, and beyond it."""
    view, (height, width) = geometry.view, shape
    left, top = view.to_original(column * view.width / width, row * view.height / height)
    right, bottom = view.to_original((column + 1) * view.width / width, (row + 1) * view.height / height)
    return left / geometry.width, top / geometry.height, right / geometry.width, bottom / geometry.height


def overlap(a: Rectangle, b: Rectangle) -> Rectangle:
    """The common part of two rectangles, of no size if there is none."""
    left, top = max(a[0], b[0]), max(a[1], b[1])
    return left, top, max(left, min(a[2], b[2])), max(top, min(a[3], b[3]))


def area(a: Rectangle) -> float:
    """Width times height."""
    return (a[2] - a[0]) * (a[3] - a[1])


def energy_in(values: np.ndarray, geometry: Geometry, region: Rectangle) -> float:
    """How much of a map's positive part lies in a region, if each cell's lies evenly on it."""
    total = 0.0
    for (row, column), value in np.ndenumerate(np.asarray(values, np.float64)):
        cell = cell_rectangle(row, column, values.shape, geometry)
        total += max(value, 0.0) * area(overlap(cell, region)) / area(cell)
    return total


def describe(values: np.ndarray, geometry: Geometry) -> dict[str, float]:
    """What `attention.MapStatistics` says of a map of few cells with energy in the image."""
    positive = np.maximum(np.asarray(values, np.float64), 0)
    total, whole = positive.sum(), (0.0, 0.0, 1.0, 1.0)
    cells = []  # of the image: part, energy, height, place
    for (row, column), value in np.ndenumerate(positive):
        cell = cell_rectangle(row, column, values.shape, geometry)
        part = overlap(cell, whole)
        if area(part) > 1e-13:
            cells.append((part, value * area(part) / area(cell), value, (row, column)))
    energy = sum(cell[1] for cell in cells)
    p = [cell[1] / energy for cell in cells]
    x = sum(q * (c[0][0] + c[0][2]) / 2 for q, c in zip(p, cells, strict=True))
    y = sum(q * (c[0][1] + c[0][3]) / 2 for q, c in zip(p, cells, strict=True))
    # The mean squared distance is an integral over each part: of (t - x)^2 over [a, b] that is a difference of cubes.
    squares = sum(
        q * (_mean_square(c[0][0], c[0][2], x) + _mean_square(c[0][1], c[0][3], y))
        for q, c in zip(p, cells, strict=True)
    )
    seen = sum(area(c[0]) for c in cells)
    seen_frame = seen - sum(area(overlap(c[0], FRAME)) for c in cells)
    border = 1 - energy_in(values, geometry, FRAME) / total
    far = 1e9
    corners = [
        energy_in(values, geometry, region) / total
        for region in ((-far, -far, 0.2, 0.2), (0.8, -far, far, 0.2), (-far, 0.8, 0.2, far), (0.8, 0.8, far, far))
    ]
    half = max(c[2] for c in cells) / 2
    strong = {c[3]: area(c[0]) for c in cells if c[2] >= half}
    regions = connected(strong)
    return {
        "com_x": x * geometry.width,
        "com_y": y * geometry.height,
        "peak_cell": int(np.argmax(values)),
        "spread": math.sqrt(squares),
        "eff_area": math.exp(-sum(q * math.log(q / area(c[0])) for q, c in zip(p, cells, strict=True) if q > 0)),
        "gini": gini([area(c[0]) for c in cells], p),
        "coverage50": sum(strong.values()),
        "border_energy": border,
        "border_ratio": border / (seen_frame / seen),
        "corner_energy": max(corners),
        "corner": int(np.argmax(corners)),
        "components50": len(regions),
        "largest_share50": max(sum(strong[place] for place in region) for region in regions) / sum(strong.values()),
    }


def _mean_square(start: float, end: float, centre: float) -> float:
    return ((end - centre) ** 3 - (start - centre) ** 3) / (3 * (end - start))


def gini(areas: list[float], energies: list[float]) -> float:
    """Half the relative mean difference of the density at two random points of the image."""
    total_area, total = sum(areas), sum(energies)
    difference = sum(
        a * b * abs(e / a - f / b)
        for a, e in zip(areas, energies, strict=True)
        for b, f in zip(areas, energies, strict=True)
    )
    return difference / (2 * total_area * total)


def connected(places: dict[tuple[int, int], float]) -> list[set[tuple[int, int]]]:
    """The regions that steps in eight directions lead through."""
    left, regions = set(places), []
    while left:
        waiting = [left.pop()]
        region = set(waiting)
        while waiting:
            row, column = waiting.pop()
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            region |= near
            waiting.extend(near)
        regions.append(region)
    return regions


def on_grid(values: np.ndarray, geometry: Geometry, shape: tuple[int, int]) -> np.ndarray:
    """A map's energy in each cell of a grid over the image, of sum 1."""
    height, width = shape
    grid = np.array(
        [
            [
                energy_in(values, geometry, (j / width, i / height, (j + 1) / width, (i + 1) / height))
                for j in range(width)
            ]
            for i in range(height)
        ]
    )
    return grid / grid.sum() if grid.sum() > 0 else grid
