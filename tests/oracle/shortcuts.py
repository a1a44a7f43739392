"""BC101's lift in slow loops, written from its formula: the largest lower bound over regions against other classes."""

import itertools
import math

Cell = tuple[int, int]


def regions(h: int, w: int) -> list[set[Cell]]:
    cells = list(itertools.product(range(h), range(w)))
    found = [{cell} for cell in cells]
    found += [{(i, j), (i + 1, j), (i, j + 1), (i + 1, j + 1)} for i in range(h - 1) for j in range(w - 1)]
    found.append({(0, 0), (0, w - 1), (h - 1, 0), (h - 1, w - 1)})
    found.append({(i, j) for i, j in cells if i in (0, h - 1) or j in (0, w - 1)})
    found += [{c for c in cells if c[0] == 0}, {c for c in cells if c[0] == h - 1}]
    found += [{c for c in cells if c[1] == 0}, {c for c in cells if c[1] == w - 1}]
    return found


def wilson_lower(k: float, n: float, z: float = 1.959963984540054) -> float:
    p = k / n
    return (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)


def quantile(values: list[float], q: float) -> float:
    """Linear between order statistics."""
    values, place = sorted(values), q * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def largest_lifts(peaks: list[list[list[int]]], n: list[int], h: int, w: int) -> list[float]:
    """Of each class: peaks a cell, and maps."""
    classes = range(len(n))
    best = [-math.inf] * len(n)
    for region in regions(h, w):
        area = len(region) / (h * w)
        k = [sum(peaks[c][i][j] for i, j in region) for c in classes]
        usual = quantile([(k[c] + 4 * area) / (n[c] + 4) for c in classes], 0.5 if len(n) < 20 else 0.75)
        for c in classes:
            if len(n) < 4:  # the upper end of the others' interval stands for a quantile over so few
                usual = 1 - wilson_lower(sum(n) - n[c] - sum(k) + k[c], sum(n) - n[c])
            others = (sum(k) - k[c] + 4 * area) / (sum(n) - n[c] + 4)
            lift = (max(wilson_lower(k[c], n[c]), 0) if k[c] else 0.0) / max(usual, others, area / 4)
            if k[c] < 8 or k[c] / n[c] < 0.05:
                lift = min(lift, 1.0)
            best[c] = max(best[c], lift)
    return best
