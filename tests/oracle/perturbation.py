"""Methods that watch the score while they change the signal or the image: one image, one unit, one pass a change."""

from __future__ import annotations

import numpy as np

from tests.oracle.layers import forward


def ablationcam(stem, head, x, unit):
    """Ramaswamy & Desai 2020: w_k = (y - y_k) / |y|, y_k with A_k set to zero; map = sum_k w_k A_k."""
    A = forward(stem, x)
    y = forward(head, A).reshape(-1)[unit]
    out = np.zeros(A.shape[:2])
    for k in range(A.shape[2]):
        ablated = A.copy()
        ablated[:, :, k] = 0
        out += (y - forward(head, ablated).reshape(-1)[unit]) / abs(y) * A[:, :, k]
    return out


def scorecam(stem, head, x, unit, channels=None):
    """Wang et al. 2020, Alg. 1: masks s(Upsample(A_k)), softmax over k of y(x * H_k), map = sum_k alpha_k A_k."""
    A = forward(stem, x)
    masks = _channel_masks(A, x.shape[:2], channels)
    scores = {k: forward(stem + head, x * mask[:, :, np.newaxis]).reshape(-1)[unit] for k, mask in masks.items()}
    total = sum(np.exp(score) for score in scores.values())
    return sum((np.exp(score) / total * A[:, :, k] for k, score in scores.items()), np.zeros(A.shape[:2]))


def scorecam_official(stem, head, x, unit, probability, channels=None):
    """The authors' program: channels weigh what the class's probability is on x * H_k."""
    A = forward(stem, x)
    out = np.zeros(A.shape[:2])
    for k, mask in _channel_masks(A, x.shape[:2], channels).items():
        out += probabilities(forward(stem + head, x * mask[:, :, np.newaxis]), probability)[unit] * A[:, :, k]
    return out


def occlusion(layers, x, unit, size, stride, fill=0.0):
    """Zeiler & Fergus 2014, Sec. 4.2: how much a covered part lowers the score, averaged over the parts."""
    y = forward(layers, x).reshape(-1)[unit]
    drops = [[[] for _ in range(x.shape[1])] for _ in range(x.shape[0])]
    for top in _window_starts(x.shape[0], size[0], stride[0]):
        for left in _window_starts(x.shape[1], size[1], stride[1]):
            covered = x.copy()
            covered[top : top + size[0], left : left + size[1]] = fill
            drop = y - forward(layers, covered).reshape(-1)[unit]
            for i in range(top, min(top + size[0], x.shape[0])):
                for j in range(left, min(left + size[1], x.shape[1])):
                    drops[i][j].append(drop)
    return np.array([[np.mean(pixel) for pixel in row] for row in drops])


def rise(layers, x, unit, masks, keep, probability):
    """Petsiuk et al. 2018, Eq. 6: S = 1 / (E[M] N) sum_i f(I * M_i) M_i, f the confidence in the class."""
    out = np.zeros(x.shape[:2])
    for mask in masks:
        out += probabilities(forward(layers, x * mask[:, :, np.newaxis]), probability)[unit] * mask
    return out / (keep * len(masks))


def probabilities(logits, kind):
    """Softmax or sigmoid of logits of any shape, as a row."""
    logits = logits.reshape(-1)
    if kind == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    return np.exp(logits) / np.exp(logits).sum()


def resize(plane, size):
    """Bilinear with half-pixel centres: pixel i lies at (i + 1/2) n_old / n_new - 1/2, held inside the plane."""
    return _resizing(plane.shape[0], size[0]) @ plane @ _resizing(plane.shape[1], size[1]).T


def _resizing(old, new):
    matrix = np.zeros((new, old))
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        below = int(place)
        above = min(below + 1, old - 1)
        matrix[i, below] += 1 - (place - below)
        matrix[i, above] += place - below
    return matrix


def _channel_masks(activations, size, channels):
    strength = np.abs(activations).mean(axis=(0, 1))
    strongest = sorted(range(len(strength)), key=lambda k: -strength[k])[:channels]
    masks = {}
    for k in sorted(strongest):
        mask = resize(activations[:, :, k], size)
        if mask.max() - mask.min() > 1e-12 * np.abs(mask).max():  # a constant channel has no mask
            masks[k] = (mask - mask.min()) / (mask.max() - mask.min())
    return masks


def _window_starts(side, size, stride):
    last = max(side - size, 0)
    return [*range(0, last, stride), last]
