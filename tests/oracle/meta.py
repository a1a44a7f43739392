"""Means of a method's maps over changed images; `method` maps one image (H, W, C) to one map (h, w)."""

from __future__ import annotations

import numpy as np

from tests.oracle.perturbation import resize


def smooth(method, x, normals, noise):
    """The mean over the clean image and one noisy image for each of `normals`."""
    sigma = noise * (x.max() - x.min())
    passes = [method(x), *(method(x + sigma * normal) for normal in normals)]
    return sum(passes) / len(passes)


def tta(method, x, scales, hflip):
    """The mean over sizes and mirror images, every map flipped and resized back to the plain one's size."""
    plain = method(x)
    passes = []
    for scale in (1, *scales):
        size = [round(side * scale) for side in x.shape[:2]]
        scaled = np.stack([resize(x[:, :, c], size) for c in range(x.shape[2])], axis=2)
        passes.append(resize(method(scaled), plain.shape))
        if hflip:
            passes.append(resize(method(scaled[:, ::-1])[:, ::-1], plain.shape))
    return sum(passes) / len(passes)
