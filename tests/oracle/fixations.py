"""CNN Fixations again: dictionaries of points, taken back node by node with loops over windows, in float64."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import keras
import numpy as np

from tests.oracle.layers import BatchNorm, Dense, Flatten, Scale
from tests.oracle.reading import _read


@dataclass
class Node:
    """One layer of a network, and the nodes that it reads; `layer` None for the image."""

    layer: object
    parents: list[Node] = field(default_factory=list)


@dataclass
class Grid:
    """Windows over the first two axes."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: str
    dilation: tuple[int, int] = (1, 1)

    def output(self, shape):
        reach = [(k - 1) * d + 1 for k, d in zip(self.size, self.dilation, strict=True)]
        if self.padding == "same":
            return tuple(math.ceil(shape[a] / self.strides[a]) for a in (0, 1))
        return tuple((shape[a] - reach[a]) // self.strides[a] + 1 for a in (0, 1))

    def window(self, shape, i, j):
        """(row, column) in the kernel -> (row, column) in the input, from the middle outwards, padding left out."""
        out, found = self.output(shape), {}
        for di, dj in _from_the_middle(self.size):
            place = []
            for a, at, offset in ((0, i, di), (1, j, dj)):
                reach = (self.size[a] - 1) * self.dilation[a] + 1
                total = max((out[a] - 1) * self.strides[a] + reach - shape[a], 0) if self.padding == "same" else 0
                place.append(at * self.strides[a] - total // 2 + offset * self.dilation[a])
            if 0 <= place[0] < shape[0] and 0 <= place[1] < shape[1]:
                found[di, dj] = tuple(place)
        return found


@dataclass
class Convolution:
    """A convolution in groups; a depthwise one has a group for each channel. Kernel (kh, kw, c of a group, k)."""

    grid: Grid
    kernel: np.ndarray
    bias: np.ndarray
    groups: int = 1

    def forward(self, x):
        out = np.zeros((*self.grid.output(x.shape), self.kernel.shape[3]))
        for i, j in np.ndindex(out.shape[:2]):
            for (di, dj), (y, z) in self.grid.window(x.shape, i, j).items():
                for channels, outputs in self.parts():
                    out[i, j, outputs] += x[y, z, channels] @ self.kernel[di, dj, :, outputs]
        return out + self.bias

    def parts(self):
        """Channels and outputs of each group."""
        c, k = self.kernel.shape[2], self.kernel.shape[3] // self.groups
        return [(np.s_[g * c : (g + 1) * c], np.s_[g * k : (g + 1) * k]) for g in range(self.groups)]


@dataclass
class Pool:
    """Maximum or mean over windows, padding left out."""

    grid: Grid
    average: bool

    def forward(self, x):
        out = np.zeros((*self.grid.output(x.shape), x.shape[2]))
        for i, j, c in np.ndindex(out.shape):
            values = [x[y, z, c] for y, z in self.grid.window(x.shape, i, j).values()]
            out[i, j, c] = np.mean(values) if self.average else max(values)
        return out


@dataclass
class GlobalPool:
    """Maximum or mean over all positions."""

    average: bool

    def forward(self, x):
        return x.mean(axis=(0, 1)) if self.average else x.max(axis=(0, 1))


@dataclass
class Shift:
    """Zero padding (positive margins) or cropping (negative ones): ((top, bottom), (left, right))."""

    margins: tuple[tuple[int, int], tuple[int, int]]

    def forward(self, x):
        (top, bottom), (left, right) = self.margins
        if top + bottom + left + right >= 0:
            return np.pad(x, ((top, bottom), (left, right), (0, 0)))
        return x[-top : x.shape[0] + bottom, -left : x.shape[1] + right]


class Add:
    """The sum of several signals."""

    def forward(self, *signals):
        return sum(signals)


class Gate:
    """A signal times gates that are broadcast to it."""

    def forward(self, *signals):
        return np.prod(np.broadcast_arrays(*signals), axis=0)


@dataclass
class Join:
    """Channels behind each other."""

    def forward(self, *signals):
        return np.concatenate(signals, axis=-1)


def fixations(nodes, image, unit):
    """Mopuri et al. 2019, Algorithms 1 and 2.

    Args:
        nodes: a network in the order of execution, the image first, the logits last.
        image: (H, W, C) float64.
        unit: the logit.

    Returns:
        Counts (H, W), and the smallest margin of all decisions, relative to the values that were compared: only above
        the error of single precision does another program have to decide the same.
    """
    signals = _forward(nodes, image)
    points, margins = {id(node): Counter() for node in nodes}, [math.inf]
    points[id(nodes[-1])][(unit,), 1, False] = 1
    for node in reversed(nodes[1:]):
        reached = {id(node): Counter() for node in node.parents}
        alone = {}  # what a dense layer reaches counts once, whatever led there
        for point, count in points[id(node)].items():
            for parent, origin, once in _origins(node, signals, point, margins):
                if once:
                    alone[id(parent), origin] = 1
                else:
                    reached[id(parent)][origin] += count
        for (parent, origin), count in alone.items():
            reached[parent][origin] += count
        for parent, found in reached.items():
            points[parent] += found
    counts = np.zeros(image.shape[:2])
    for (index, _, _), count in points[id(nodes[0])].items():
        counts[index[:2]] += count
    return counts, min(margins)


def _forward(nodes, image):
    signals = {id(nodes[0]): image}
    for node in nodes[1:]:
        signals[id(node)] = node.layer.forward(*(signals[id(parent)] for parent in node.parents))
    return signals


def _origins(node, signals, point, margins):
    """Where a point (index, sign, whether evidence was added up behind it) comes from: (parent, point, once)."""
    rules = {
        Dense: _of_dense, Convolution: _of_convolution, Pool: _of_pool, GlobalPool: _of_global_pool, Add: _of_addition,
        Gate: _of_gate, Join: _of_join,
    }  # fmt: skip
    return rules.get(type(node.layer), _of_unit)(node, signals, *point, margins)


def _of_dense(node, signals, index, sign, summed, margins):
    parent, x = node.parents[0], signals[id(node.parents[0])]
    if x.ndim > 1 and x.shape[:2] != (1, 1):
        return _of_convolution(node, signals, index, sign, summed, margins)
    products = sign * x.reshape(-1) * node.layer.kernel[:, index[-1]]
    if summed and isinstance(parent.layer, Flatten):
        best = (_decide(products, margins),)
        return [(parent, (best, _sign(x[best]), True), False)]
    margins.append(_nearest_to_zero(products))
    return [(parent, (i, _sign(x[i]), True), True) for i in np.ndindex(x.shape) if products[i[-1]] > 0]


def _of_convolution(node, signals, index, sign, summed, margins):
    parent, x = node.parents[0], signals[id(node.parents[0])]
    best = _strongest_contributor(node.layer, x, index, sign, _borders(parent, x), margins)
    return [(parent, (best, _sign(x[best]), summed), False)]


def _of_pool(node, signals, index, sign, summed, margins):
    (i, j, c), parent, x = index, node.parents[0], signals[id(node.parents[0])]
    places = [p for p in node.layer.grid.window(x.shape, i, j).values() if _inside(p, _borders(parent, x))]
    best = places[_decide([x[p][c] * (sign if node.layer.average else 1) for p in places], margins)]
    return [(parent, ((*best, c), sign, summed), False)]


def _of_global_pool(node, signals, index, sign, summed, margins):
    c, parent, x = index[-1], node.parents[0], signals[id(node.parents[0])]
    places = _from_the_middle(x.shape[:2])
    values = [x[p][c] * (sign if node.layer.average else 1) for p in places]
    if not node.layer.average or summed:
        return [(parent, ((*places[_decide(values, margins)], c), sign, summed), False)]
    margins.append(_nearest_to_zero(values))
    return [(parent, ((*p, c), sign, True), True) for p, v in zip(places, values, strict=True) if v > 0]


def _of_addition(node, signals, index, sign, summed, margins):
    best = _decide([sign * signals[id(parent)][index] for parent in node.parents], margins)
    return [(node.parents[best], (index, sign, summed), False)]


def _of_gate(node, signals, index, sign, summed, _margins):
    shape = signals[id(node)].shape
    carrier = next(parent for parent in node.parents if signals[id(parent)].shape == shape)
    for gate in node.parents:
        if gate is not carrier:
            sign *= _sign(np.broadcast_to(signals[id(gate)], shape)[index])
    return [(carrier, (index, sign, summed), False)]


def _of_join(node, signals, index, sign, summed, _margins):
    channel = index[-1]
    for parent in node.parents:
        channels = signals[id(parent)].shape[-1]
        if channel < channels:
            return [(parent, ((*index[:-1], channel), sign, summed), False)]
        channel -= channels
    raise AssertionError(index)


def _of_unit(node, signals, index, sign, summed, _margins):
    """Layers of which each unit reads one unit: shifts, reshaping, normalisation, activations."""
    layer, parent, x = node.layer, node.parents[0], signals[id(node.parents[0])]
    if isinstance(layer, Shift):
        (top, _), (left, _) = layer.margins
        index = (index[0] - top, index[1] - left, index[2])
    if isinstance(layer, Flatten):
        index = tuple(int(i) for i in np.unravel_index(index[0], x.shape))
    if isinstance(layer, BatchNorm):
        sign *= _sign(np.broadcast_to(layer.gamma, x.shape[-1:])[index[-1]])
    if isinstance(layer, Scale):
        sign *= _sign(layer.factor)
    return [(parent, (index, sign, summed), False)]


def _strongest_contributor(layer, x, index, sign, borders, margins):
    """Algorithm 2: the channel whose contributions add up to most, and the largest contribution in it."""
    i, j, k = index
    if isinstance(layer, Dense):
        products = {c: {(i, j): sign * x[i, j, c] * layer.kernel[c, k]} for c in range(x.shape[2])}
    else:
        channels = next(inputs for inputs, outputs in layer.parts() if outputs.start <= k < outputs.stop)
        products = {}
        for n, c in enumerate(range(channels.start, channels.stop)):
            window = layer.grid.window(x.shape, i, j).items()
            products[c] = {p: sign * x[p][c] * layer.kernel[(*at, n, k)] for at, p in window if _inside(p, borders)}
    order = list(products)
    channel = order[_decide([sum(products[c].values()) for c in order], margins, _size(products))]
    places = list(products[channel])
    return (*places[_decide([products[channel][p] for p in places], margins)], channel)


def _size(products):
    return max((abs(value) for along in products.values() for value in along.values()), default=0)


def _decide(values, margins, scale=None):
    """The place of the first maximum; how far ahead it is goes into `margins`."""
    values = [float(value) for value in values]
    best = values.index(max(values))
    others = sorted(values)[:-1]
    # Zeros behind a ReLU are zeros in any precision, so that a tie between them is decided alike.
    if others and not (others[-1] == values[best] == 0):
        margins.append((values[best] - others[-1]) / (scale or max(map(abs, values))))
    return best


def _nearest_to_zero(values):
    """How far from zero the nearest value is that is not zero itself."""
    sizes = [abs(float(value)) for value in values if value != 0]
    return min(sizes) / max(sizes) if sizes else math.inf


def _from_the_middle(size):
    """The places of a grid, the most central ones first, and else row by row."""
    middle = [(n - 1) / 2 for n in size]
    return sorted(np.ndindex(*size), key=lambda place: sum((at - m) ** 2 for at, m in zip(place, middle, strict=True)))


def _inside(place, borders):
    return all(low <= at < high for at, (low, high) in zip(place, borders, strict=True))


def _borders(node, x):
    """The part of a signal that is not zero padding."""
    if isinstance(node.layer, Shift):
        return [(max(a, 0), n - max(b, 0)) for (a, b), n in zip(node.layer.margins, x.shape, strict=False)]
    return [(0, n) for n in x.shape[:2]]


def _sign(value):
    return -1 if value < 0 else 1


def read_network(model):
    """The nodes of a flat Keras model whose layers are called once each; a final softmax or sigmoid is left out."""
    nodes, ends = [Node(None)], {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        sources = [tensor._keras_history.operation.name for tensor in keras.tree.flatten(layer.input)]
        parents = [ends.get(name, nodes[0]) for name in sources]
        for part in _read_layer(layer, last=layer is model.layers[-1]):
            nodes.append(Node(part, parents))
            parents = nodes[-1:]
        ends[layer.name] = parents[0]
    return nodes


def _read_layer(layer, last):
    kind, name = type(layer).__name__, getattr(getattr(layer, "activation", None), "__name__", "linear")
    after = [] if name == "linear" or (last and name in {"softmax", "sigmoid"}) else [Function(FUNCTIONS[name])]
    if kind in {"Conv2D", "DepthwiseConv2D", "SeparableConv2D"}:
        return [*_read_convolution(layer), *after]
    if kind == "Dense":
        kernel, *bias = (np.asarray(values, np.float64) for values in layer.get_weights())
        return [Dense(kernel, bias[0] if bias else 0.0), *after]
    readers = {
        "Activation": lambda _: after, "ReLU": lambda r: [Function(lambda x: np.clip(x, 0, r.max_value))],
        "MaxPooling2D": lambda p: [Pool(Grid(p.pool_size, p.strides, p.padding), average=False)],
        "AveragePooling2D": lambda p: [Pool(Grid(p.pool_size, p.strides, p.padding), average=True)],
        "GlobalMaxPooling2D": lambda _: [GlobalPool(average=False)],
        "GlobalAveragePooling2D": lambda _: [GlobalPool(average=True)],
        "ZeroPadding2D": lambda p: [Shift(p.padding)],
        "Cropping2D": lambda c: [Shift(tuple((-before, -behind) for before, behind in c.cropping))],
        "Add": lambda _: [Add()], "Multiply": lambda _: [Gate()], "Concatenate": lambda _: [Join()],
        "Softmax": lambda _: [],
    }  # fmt: skip
    return readers.get(kind, _read)(layer)


@dataclass
class Function:
    """Any function of each unit alone."""

    function: object

    def forward(self, x):
        return self.function(x)


FUNCTIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def _read_convolution(layer):
    weights = [np.asarray(values, np.float64) for values in layer.get_weights()]
    kernels, bias = weights[: len(weights) - layer.use_bias], weights[-1] if layer.use_bias else 0.0
    grid = Grid(layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
    if len(kernels) == 2:  # separable
        return [_depthwise(grid, kernels[0], 0.0), Dense(kernels[1][0, 0], bias)]
    if type(layer).__name__ == "DepthwiseConv2D":
        return [_depthwise(grid, kernels[0], bias)]
    if layer.kernel_size == layer.strides == (1, 1) and layer.groups == 1:
        return [Dense(kernels[0][0, 0], bias)]
    return [Convolution(grid, kernels[0], bias, layer.groups)]


def _depthwise(grid, kernel, bias):
    kh, kw, channels, multiplier = kernel.shape
    return Convolution(grid, kernel.reshape(kh, kw, 1, channels * multiplier), bias, channels)
