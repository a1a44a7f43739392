"""Tiny Keras classifiers, one for each shape of model that people bring: random weights, 8x8 images, no downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np
import tensorflow as tf
from keras import layers

SIZE = 8
CLASSES = 5


def randomize(model: keras.Model, seed: int) -> keras.Model:
    """Gives every weight a value that a mistake would show in: no zero biases, no unit variances."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        name, shape = variable.path.split("/")[-1], tuple(variable.shape)
        if name in {"moving_variance", "gamma"}:
            values = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            values = rng.normal(0.1, 0.4, shape)
        else:
            values = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape)
        variable.assign(values)
    return model


def images(n: int, seed: int = 0, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> np.ndarray:
    """Standard normal images, float32."""
    return np.random.default_rng(1000 + seed).normal(size=(n, *shape)).astype("float32")


def pixels(n: int, seed: int = 0, shape: tuple[int, ...] = (SIZE, SIZE, 3)) -> np.ndarray:
    """Random images, uint8."""
    return np.random.default_rng(2000 + seed).integers(0, 256, (n, *shape), np.uint8)


def _block(x, name, filters, dtype=None, activation="relu", **options):
    options = {"padding": "same", "dtype": dtype, **options}
    x = layers.Conv2D(filters, 3, name=f"{name}_conv", **options)(x)
    x = layers.BatchNormalization(epsilon=2e-3, dtype=dtype, name=f"{name}_bn")(x)
    return layers.Activation(activation, dtype=dtype, name=f"{name}_out")(x)


def _features(x, dtype=None, activation="relu"):
    x = _block(x, "block1", 4, dtype, activation)
    return _block(x, "block2", 6, dtype, activation, strides=2)


def gap_dense(seed=0, activation="softmax", classes=CLASSES, dtype=None, size=SIZE, **options) -> keras.Model:
    """ResNet's layout: convolutions with normalisation and stride, global average, one dense layer."""
    image = keras.Input((size, size, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool", dtype=dtype)(_features(image, dtype))
    x = layers.Dense(classes, activation=activation, name="predictions", dtype=dtype, **options)(x)
    return randomize(keras.Model(image, x, name="gap_dense"), seed)


def gap_dense_activation(seed=0) -> keras.Model:
    """Softmax as an Activation layer of its own."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(_features(image))
    x = layers.Activation("softmax", name="probabilities")(layers.Dense(CLASSES, name="scores")(x))
    return randomize(keras.Model(image, x), seed)


def gap_dense_softmax_layer(seed=0) -> keras.Model:
    """Softmax as a Softmax layer."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(_features(image))
    x = layers.Softmax(name="probabilities")(layers.Dense(CLASSES, name="scores")(x))
    return randomize(keras.Model(image, x), seed)


def gap_dense_softmax_operation(seed=0) -> keras.Model:
    """Mean and softmax as bare operations."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = keras.ops.mean(_features(image), axis=(1, 2))
    x = keras.ops.softmax(layers.Dense(CLASSES, name="scores")(x))
    return randomize(keras.Model(image, x), seed)


def normalized_features(seed=0) -> keras.Model:
    """Normalisation without an activation behind it: the convolution itself must not be chosen."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.BatchNormalization(name="bn")(x))
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x)), seed)


def normalized_score_maps(seed=0) -> keras.Model:
    """Score maps that are normalised and clipped before they are averaged, as in all-convolutional nets."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Conv2D(CLASSES, 3, name="score_maps")(_features(image))
    x = layers.ReLU(name="scores_relu")(layers.BatchNormalization(name="scores_bn")(x))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomize(keras.Model(image, layers.Softmax(name="probabilities")(x)), seed)


def max_pooled_twice(seed=0) -> keras.Model:
    """Two global pools side by side, whose signals are joined."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = _features(image)
    x = layers.Concatenate(name="join")([layers.GlobalAveragePooling2D(name="mean")(x),
                                         layers.GlobalMaxPooling2D(name="max")(x)])  # fmt: skip
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x)), seed)


def tensorflow_softmax(seed=0) -> keras.Model:
    """TensorFlow's own function as the activation, as in many tutorials."""
    return gap_dense(seed, activation=tf.nn.softmax)


def softmax_object(seed=0) -> keras.Model:
    """A Softmax layer given as the activation of the dense one."""
    return gap_dense(seed, activation=layers.Softmax())


def sigmoid_layer(seed=0) -> keras.Model:
    """Several labels, the sigmoid as a layer of its own."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(_features(image))
    x = layers.Activation("sigmoid", name="probabilities")(layers.Dense(CLASSES, name="scores")(x))
    return randomize(keras.Model(image, x), seed)


def vgg(seed=0) -> keras.Model:
    """VGG's layout: fused ReLU, max pooling, Flatten and three dense layers."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="block1_conv")(image)
    x = layers.MaxPooling2D(name="block1_pool")(x)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="block2_conv")(x)
    x = layers.MaxPooling2D(name="block2_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(8, activation="relu", name="fc1")(x)
    x = layers.Dense(7, activation="relu", name="fc2")(x)
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return randomize(keras.Model(image, x, name="vgg"), seed)


def flatten_dense(seed=0) -> keras.Model:
    """Flatten and one dense layer."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Flatten(name="flatten")(_features(image))
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return randomize(keras.Model(image, x), seed)


def mobilenet(seed=0, classes=CLASSES, activation="softmax") -> keras.Model:
    """MobileNet's layout: the classifier is a 1x1 convolution behind the global average."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(_features(image))
    x = layers.Dropout(0.5, name="dropout")(x)
    x = layers.Conv2D(classes, 1, name="conv_preds")(x)
    x = layers.Reshape((classes,), name="reshape")(x)
    x = layers.Activation(activation, name="predictions")(x)
    return randomize(keras.Model(image, x), seed)


def mobilenet_fused(seed=0) -> keras.Model:
    """A 1x1 convolution with a softmax fused into it, and Flatten behind it."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(_features(image))
    x = layers.Conv2D(CLASSES, 1, activation="softmax", name="conv_preds")(x)
    return randomize(keras.Model(image, layers.Flatten(name="flatten")(x)), seed)


def squeezenet(seed=0) -> keras.Model:
    """SqueezeNet's layout: a 1x1 convolution makes class score maps, which are clipped and then averaged."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = _block(image, "block1", 4)
    x = layers.Concatenate(name="fire")([_block(x, "left", 3), _block(x, "right", 3)])
    x = layers.Dropout(0.5, name="dropout")(x)
    x = layers.Conv2D(CLASSES, 1, name="conv10")(x)
    x = layers.Activation("relu", name="conv10_relu")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Activation("softmax", name="loss")(x)
    return randomize(keras.Model(image, x), seed)


def conv_gap(seed=0, classes=CLASSES, activation="softmax") -> keras.Model:
    """The fully convolutional layout: a 1x1 convolution makes class score maps, which are averaged."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Conv2D(classes, 1, name="score_maps")(_features(image))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Activation(activation, name="probabilities")(x)
    return randomize(keras.Model(image, x), seed)


def sequential(seed=0) -> keras.Model:
    """A Sequential model, with dropout that must do nothing."""
    model = keras.Sequential([
        keras.Input((SIZE, SIZE, 3), name="image"),
        layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv"),
        layers.BatchNormalization(name="bn"),
        layers.ReLU(name="relu"),
        layers.SpatialDropout2D(0.5, name="spatial_dropout"),
        layers.GlobalAveragePooling2D(name="pool"),
        layers.Dropout(0.5, name="dropout"),
        layers.Dense(CLASSES, activation="softmax", name="predictions"),
    ])  # fmt: skip
    return randomize(model, seed)


def backbone(name="backbone", size: int | None = SIZE) -> keras.Model:
    """Features without a classifier."""
    image = keras.Input((size, size, 3), name=f"{name}_image")
    return keras.Model(image, _features(image), name=name)


def nested(seed=0) -> keras.Model:
    """Transfer learning: a backbone as one layer of another model."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = backbone()(layers.Rescaling(0.5, offset=0.1, name="rescaling")(image), training=False)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(layers.Dropout(0.5, name="dropout")(x))
    return randomize(keras.Model(image, x, name="nested"), seed)


def flattened(seed=0) -> keras.Model:
    """What `nested` computes, in one flat model; copy the weights over to compare."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = _features(layers.Rescaling(0.5, offset=0.1, name="rescaling")(image))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return randomize(keras.Model(image, x, name="flattened"), seed)


def doubly_nested(seed=0) -> keras.Model:
    """A model in a model in a model, with dots in their names, and a Sequential head."""
    outer = keras.Input((SIZE, SIZE, 3), name="image")
    middle = keras.Input((SIZE, SIZE, 3), name="middle_image")
    middle_model = keras.Model(middle, layers.ReLU(name="clip.it")(backbone("inner.v2")(middle)), name="middle.v1")
    head = keras.Sequential([layers.GlobalAveragePooling2D(name="pool"), layers.Dense(CLASSES, "softmax", name="fc")],
                            name="head")  # fmt: skip
    return randomize(keras.Model(outer, head(middle_model(outer)), name="outer"), seed)


def twins(seed=0) -> keras.Model:
    """Two backbones whose layers have the same names."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Concatenate(name="join")([backbone("left")(image), backbone("right")(image)])
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(layers.GlobalAveragePooling2D(name="pool")(x))
    return randomize(keras.Model(image, x), seed)


def residual(seed=0) -> keras.Model:
    """A residual block: the signal `branch_out` lies beside a skip connection."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = _block(image, "stem", 4)
    y = _block(x, "branch", 6)
    y = layers.Conv2D(4, 3, padding="same", name="last_conv")(y)
    y = layers.BatchNormalization(epsilon=2e-3, name="last_bn")(y)
    x = layers.ReLU(name="block_out")(layers.Add(name="add")([x, y]))
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(layers.GlobalAveragePooling2D(name="pool")(x))
    return randomize(keras.Model(image, x, name="residual"), seed)


def squeeze_excite(seed=0) -> keras.Model:
    """A squeeze-and-excitation block: a global average in the middle, which is not the classifier's."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = _features(image)
    y = layers.GlobalAveragePooling2D(name="squeeze")(x)
    y = layers.Dense(3, activation="relu", name="reduce")(y)
    y = layers.Dense(6, activation="sigmoid", name="expand")(y)
    x = layers.Multiply(name="excite")([x, layers.Reshape((1, 1, 6), name="gate")(y)])
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(layers.GlobalAveragePooling2D(name="pool")(x))
    return randomize(keras.Model(image, x), seed)


def global_max(seed=0) -> keras.Model:
    """Global maximum in place of the average."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalMaxPooling2D(name="pool")(_features(image))
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return randomize(keras.Model(image, x), seed)


def multi_output(seed=0) -> keras.Model:
    """Two classifiers on one body."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(_features(image))
    animal = layers.Dense(CLASSES, activation="softmax", name="animal")(x)
    colour = layers.Dense(2, activation="sigmoid", name="colour")(x)
    return randomize(keras.Model(image, [animal, colour], name="two"), seed)


def two_inputs(seed=0) -> keras.Model:
    """An image and a row of numbers."""
    image, row = keras.Input((SIZE, SIZE, 3), name="image"), keras.Input((4,), name="row")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = layers.Concatenate(name="join")([layers.GlobalAveragePooling2D(name="pool")(x), row])
    return randomize(keras.Model([image, row], layers.Dense(CLASSES, name="predictions")(x)), seed)


def conv1d(seed=0) -> keras.Model:
    """One axis of positions."""
    signal = keras.Input((12, 2), name="signal")
    x = layers.Conv1D(4, 3, padding="same", name="conv")(signal)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.GlobalAveragePooling1D(name="pool")(layers.MaxPooling1D(name="halve")(x))
    return randomize(keras.Model(signal, layers.Dense(CLASSES, activation="softmax", name="predictions")(x)), seed)


def conv3d(seed=0) -> keras.Model:
    """Three axes of positions."""
    volume = keras.Input((4, 6, 8, 2), name="volume")
    x = layers.Conv3D(4, 3, padding="same", name="conv")(volume)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(x))
    x = layers.GlobalAveragePooling3D(name="pool")(layers.AveragePooling3D(2, name="halve")(x))
    return randomize(keras.Model(volume, layers.Dense(CLASSES, activation="softmax", name="predictions")(x)), seed)


def mixed_float16(seed=0) -> keras.Model:
    """Half precision, the last activation included."""
    return gap_dense(seed, dtype="mixed_float16")


def mixed_bfloat16(seed=0) -> keras.Model:
    """Brain floats, the last activation included."""
    return gap_dense(seed, dtype="mixed_bfloat16")


def dynamic(seed=0) -> keras.Model:
    """Height and width left open."""
    return gap_dense(seed, size=None)


def swishnet(seed=0) -> keras.Model:
    """EfficientNet's activation."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalAveragePooling2D(name="pool")(_features(image, activation="swish"))
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return randomize(keras.Model(image, x), seed)


def frozen(seed=0) -> keras.Model:
    """Every layer frozen, the one with the fused softmax included."""
    model = gap_dense(seed)
    model.trainable = False
    return model


def shared_layer(seed=0) -> keras.Model:
    """One convolution called twice in a row."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    conv = layers.Conv2D(3, 3, padding="same", activation="relu", name="conv")
    x = layers.GlobalAveragePooling2D(name="pool")(conv(conv(image)))
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x)), seed)


def dropout(seed=0) -> keras.Model:
    """Dropout between the signal and the pooling, and behind the classifier's activation."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GaussianNoise(1.0, name="noise")(layers.Dropout(0.9, name="dropout")(_features(image)))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(x)
    return randomize(keras.Model(image, layers.Dropout(0.9, name="late_dropout")(x)), seed)


def rescaling_first(seed=0, dtype=None) -> keras.Model:
    """The preprocessing inside the model."""
    image = keras.Input((SIZE, SIZE, 3), name="image", dtype=dtype)
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescaling")(image)
    x = layers.GlobalAveragePooling2D(name="pool")(_features(x))
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x)), seed)


def byte_input(seed=0) -> keras.Model:
    """A model that declares bytes as its input."""
    return rescaling_first(seed, "uint8")


def mlp(seed=0) -> keras.Model:
    """No positions at all."""
    row = keras.Input((6,), name="row")
    x = layers.Dense(7, activation="relu", name="hidden")(row)
    return randomize(keras.Model(row, layers.Dense(CLASSES, activation="softmax", name="predictions")(x)), seed)


def linear_image(seed=0) -> keras.Model:
    """An image, flattened, and one dense layer: no signal between input and logits."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(layers.Flatten(name="flatten")(image))
    return randomize(keras.Model(image, x, name="linear_image"), seed)


def segmentation(seed=0) -> keras.Model:
    """Class scores for every pixel, which this library does not explain."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    return randomize(keras.Model(image, layers.Conv2D(CLASSES, 1, name="scores")(_features(image))), seed)


def plain(seed=0, classes=CLASSES, padding="valid", strides=1) -> keras.Model:
    """Valid padding and stride without normalisation, linear output."""
    image = keras.Input((SIZE + 1, SIZE, 2), name="image")
    x = layers.Conv2D(4, (3, 2), padding=padding, strides=strides, name="conv1")(image)
    x = layers.ReLU(name="relu1")(x)
    x = layers.Conv2D(5, 2, padding=padding, name="conv2")(x)
    x = layers.ReLU(name="relu2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomize(keras.Model(image, layers.Dense(classes, name="predictions")(x)), seed)


def toy() -> keras.Model:
    """The network of METHODS.md that separates the variants: see there for every map's values."""
    image = keras.Input((4, 4, 1), name="image")
    x = layers.Flatten(name="flatten")(layers.ReLU(name="relu")(layers.Conv2D(2, 3, name="conv")(image)))
    model = keras.Model(image, layers.Dense(1, use_bias=False, name="score")(x))
    model.get_layer("conv").set_weights([np.ones((3, 3, 1, 2)), np.array([-50.0, -75.0])])
    channels_first = np.array([[1.0, 1, 1, 1], [1, -1, -1, -1]])
    model.get_layer("score").set_weights([channels_first.T.reshape(8, 1)])
    return model


class Subclassed(keras.Model):
    """Computes its output in a `call` of its own."""

    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(4, 3)
        self.dense = layers.Dense(CLASSES)

    def call(self, inputs):
        """Logits."""
        return self.dense(keras.ops.mean(self.conv(inputs), axis=(1, 2)))


@dataclass(frozen=True)
class Case:
    """A shape of model, and what must be found in it."""

    build: Callable[..., keras.Model]  # seed -> model
    activation_layer: str
    logits_layer: str
    probability: str | None = "softmax"
    cam: bool = True  # whether CAM is defined on its head
    options: dict = field(default_factory=dict)

    def model(self, seed: int = 0) -> keras.Model:
        """A fresh model."""
        return self.build(seed=seed, **self.options)


CASES = {
    "gap_dense": Case(gap_dense, "block2_out", "predictions"),
    "separate_activation": Case(gap_dense_activation, "block2_out", "scores"),
    "softmax_layer": Case(gap_dense_softmax_layer, "block2_out", "scores"),
    "softmax_operation": Case(gap_dense_softmax_operation, "block2_out", "scores"),
    "softmax_object": Case(softmax_object, "block2_out", "predictions"),
    "tensorflow_softmax": Case(tensorflow_softmax, "block2_out", "predictions"),
    "log_softmax": Case(gap_dense, "block2_out", "predictions", options={"activation": "log_softmax"}),
    "sigmoid": Case(gap_dense, "block2_out", "predictions", "sigmoid", options={"activation": "sigmoid"}),
    "sigmoid_layer": Case(sigmoid_layer, "block2_out", "scores", "sigmoid"),
    "one_unit": Case(gap_dense, "block2_out", "predictions", "sigmoid",
                     options={"activation": "sigmoid", "classes": 1}),
    "linear": Case(gap_dense, "block2_out", "predictions", None, options={"activation": None}),
    "normalized_features": Case(normalized_features, "bn", "predictions"),
    "normalized_score_maps": Case(normalized_score_maps, "block2_out", "score_maps", cam=False),
    "max_pooled_twice": Case(max_pooled_twice, "block2_out", "predictions", cam=False),
    "vgg": Case(vgg, "block2_pool", "predictions", cam=False),
    "flatten_dense": Case(flatten_dense, "block2_out", "predictions", cam=False),
    "mobilenet": Case(mobilenet, "block2_out", "conv_preds"),
    "mobilenet_one_unit": Case(mobilenet, "block2_out", "conv_preds", "sigmoid",
                               options={"activation": "sigmoid", "classes": 1}),
    "mobilenet_fused": Case(mobilenet_fused, "block2_out", "conv_preds"),
    "squeezenet": Case(squeezenet, "fire", "conv10"),
    "conv_gap": Case(conv_gap, "block2_out", "score_maps"),
    "conv_gap_one_unit": Case(conv_gap, "block2_out", "score_maps", "sigmoid",
                              options={"activation": "sigmoid", "classes": 1}),
    "sequential": Case(sequential, "relu", "predictions"),
    "nested": Case(nested, "backbone.block2_out", "predictions"),
    "doubly_nested": Case(doubly_nested, "middle.v1.clip.it", "head.fc"),
    "twins": Case(twins, "join", "predictions"),
    "residual": Case(residual, "block_out", "predictions"),
    "squeeze_excite": Case(squeeze_excite, "excite", "predictions"),
    "global_max": Case(global_max, "block2_out", "predictions", cam=False),
    "swishnet": Case(swishnet, "block2_out", "predictions"),
    "frozen": Case(frozen, "block2_out", "predictions"),
    "shared_layer": Case(shared_layer, "conv", "predictions"),
    "dropout": Case(dropout, "block2_out", "predictions"),
    "rescaling_first": Case(rescaling_first, "block2_out", "predictions"),
    "conv1d": Case(conv1d, "halve", "predictions"),
    "conv3d": Case(conv3d, "halve", "predictions"),
    "plain": Case(plain, "relu2", "predictions", None),
}  # fmt: skip


def inputs_of(model: keras.Model, n: int, seed: int = 0) -> np.ndarray:
    """Images that fit a model."""
    return images(n, seed, tuple(SIZE if size is None else size for size in model.inputs[0].shape[1:]))


def relu6net(seed=0) -> keras.Model:
    """MobileNet's clipped activations, as layer and as function, depthwise convolutions and an average pool."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Rescaling(4.0, offset=0.5, name="rescaling")(image)
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU(6.0, name="conv_relu")(layers.BatchNormalization(epsilon=2e-3, name="conv_bn")(x))
    x = layers.DepthwiseConv2D(3, padding="same", strides=2, depth_multiplier=2, name="depthwise")(x)
    x = layers.BatchNormalization(scale=False, epsilon=3e-3, name="depthwise_bn")(x)
    x = layers.Activation("relu6", name="depthwise_relu")(x)
    x = layers.AveragePooling2D(2, name="halve")(x)
    x = layers.Conv2D(5, 2, padding="same", activation="relu6", name="last_conv")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x), name="relu6"), seed)


def bias_free(seed=0) -> keras.Model:
    """Convolutions, ReLU and pooling without a single bias: doubling the image doubles the logits."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, activation="relu", name="conv1")(image)
    x = layers.MaxPooling2D(name="halve")(x)
    x = layers.ReLU(name="relu")(layers.Conv2D(6, 2, use_bias=False, name="conv2")(x))
    x = layers.Dense(CLASSES, use_bias=False, name="predictions")(layers.Flatten(name="flatten")(x))
    return randomize(keras.Model(image, x, name="bias_free"), seed)


def symmetric(seed=0) -> keras.Model:
    """Mirror images have the same logits and mirrored signals; height and width are left open."""
    image = keras.Input((None, None, 3), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv1")(image)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(layers.GlobalAveragePooling2D(name="pool")(x))
    model = randomize(keras.Model(image, x, name="symmetric"), seed)
    for name in ("conv1", "conv2"):
        kernel = model.get_layer(name).kernel
        kernel.assign((kernel + kernel[:, ::-1]) / 2)
    return model


def one_channel(seed=0) -> keras.Model:
    """A signal of one channel."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Conv2D(1, 3, activation="relu", name="conv")(image)
    x = layers.Dense(CLASSES, name="predictions")(layers.GlobalAveragePooling2D(name="pool")(x))
    return randomize(keras.Model(image, x, name="one_channel"), seed)


def augmented(seed=0) -> keras.Model:
    """Preprocessing of every kind inside the model; the random part of it must do nothing."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    random = [layers.RandomFlip(), layers.RandomRotation(0.3), layers.RandomZoom(0.3), layers.RandomContrast(0.9)]
    x = keras.Sequential(random, name="augmentation")(image)
    x = layers.Resizing(12, 10, name="resizing")(x)
    x = layers.Normalization(mean=[0.1, -0.2, 0.3], variance=[1.0, 2.0, 0.5], name="normalization")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(_features(x))
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x)), seed)


def average_pooled(seed=0) -> keras.Model:
    """The global average written as a pool of the signal's own size, as in the first residual networks."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.AveragePooling2D(SIZE // 2, name="pool")(_features(image))
    x = layers.Dense(CLASSES, "softmax", name="predictions")(layers.Flatten(name="flatten")(x))
    return randomize(keras.Model(image, x), seed)


def attention_pooled(seed=0) -> keras.Model:
    """A learned weight for each position in place of the plain average."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Reshape((16, 6), name="positions")(_features(image))
    weights = layers.Softmax(axis=1, name="attention")(layers.Dense(1, name="attention_scores")(x))
    x = layers.Flatten(name="flatten")(layers.Dot(axes=1, name="weighted_mean")([weights, x]))
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x)), seed)


def masked(seed=0) -> keras.Model:
    """A mask over positions, which the pooling is told nothing of."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = _features(image)
    x = layers.Multiply(name="masked")([x, layers.Conv2D(1, 1, activation="sigmoid", name="mask")(x)])
    x = layers.Dense(CLASSES, activation="softmax", name="predictions")(layers.GlobalAveragePooling2D(name="pool")(x))
    return randomize(keras.Model(image, x), seed)


def two_depths(seed=0) -> keras.Model:
    """Pooled features of two depths side by side: only at the earlier one does all evidence pass."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = _block(image, "block1", 4)
    y = _block(x, "block2", 6, strides=2)
    x = layers.Concatenate(name="join")([layers.GlobalAveragePooling2D(name="shallow")(x),
                                         layers.GlobalAveragePooling2D(name="deep")(y)])  # fmt: skip
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x)), seed)


def two_streams(seed=0) -> keras.Model:
    """Two branches that meet behind their pooling, with nothing but the rescaled image in common."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.Rescaling(0.5, name="rescaling")(image)
    x = layers.Concatenate(name="join")([layers.GlobalAveragePooling2D()(_block(x, "left", 4)),
                                         layers.GlobalAveragePooling2D()(_block(x, "right", 5))])  # fmt: skip
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x)), seed)


def kept_axes(seed=0) -> keras.Model:
    """A 1x1 convolution behind the global average, and an output of shape (N, 1, 1, classes)."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(_features(image))
    return randomize(keras.Model(image, layers.Conv2D(CLASSES, 1, activation="softmax", name="conv_preds")(x)), seed)


def separable(seed=0) -> keras.Model:
    """Class score maps out of a separable convolution with as many channels as its input has."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = _block(image, "block1", CLASSES)
    x = layers.SeparableConv2D(CLASSES, 3, padding="same", name="score_maps")(x)
    x = layers.Softmax(name="loss")(layers.GlobalAveragePooling2D(name="pool")(x))
    return randomize(keras.Model(image, x), seed)


CASES |= {
    "average_pooled": Case(average_pooled, "block2_out", "predictions"),
    "attention_pooled": Case(attention_pooled, "block2_out", "predictions", cam=False),
    "masked": Case(masked, "masked", "predictions"),
    "two_depths": Case(two_depths, "block1_out", "predictions", cam=False),
    "relu6net": Case(relu6net, "last_conv", "predictions"),
    "separable": Case(separable, "block1_out", "score_maps", cam=False),
}


# Transformers


@keras.saving.register_keras_serializable("tests")
class ExtraTokens(layers.Layer):
    """Class and register tokens of its own ahead of the patches."""

    def __init__(self, count: int, **options):
        super().__init__(**options)
        self.count = count

    def build(self, input_shape):
        self.tokens = self.add_weight(shape=(1, self.count, input_shape[-1]), name="tokens")

    def call(self, patches):
        own = keras.ops.zeros_like(patches[:, :1]) + self.tokens
        return keras.ops.concatenate([own, patches], axis=1)

    def get_config(self):
        return {**super().get_config(), "count": self.count}


@keras.saving.register_keras_serializable("tests")
class Positions(layers.Layer):
    """A vector of its own for every position."""

    def build(self, input_shape):
        self.vectors = self.add_weight(shape=tuple(input_shape[1:]), name="vectors")

    def call(self, x):
        return x + self.vectors


@keras.saving.register_keras_serializable("tests")
class ClassToken(layers.Layer):
    """The first token alone."""

    def call(self, x):
        return x[:, 0]


def _encoder(x, name, width=6):
    y = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm1")(x)
    x = layers.Add(name=f"{name}_add1")([x, layers.MultiHeadAttention(2, 3, name=f"{name}_attention")(y, y)])
    y = layers.LayerNormalization(epsilon=1e-5, name=f"{name}_norm2")(x)
    y = layers.Dense(2 * width, activation="gelu", name=f"{name}_mlp1")(y)
    y = layers.Dense(width, name=f"{name}_mlp2")(layers.Dropout(0.5, name=f"{name}_dropout")(y))
    return layers.Add(name=f"{name}_add2")([x, y])


def vit(seed=0, pooling="class", extra=1, size=(SIZE, SIZE), depth=2, activation="softmax") -> keras.Model:
    """A vision transformer on patches of 2x2 pixels, whose head reads a class token or the mean of the patches."""
    image = keras.Input((*size, 3), name="image")
    x = layers.Conv2D(6, 2, strides=2, name="patches")(image)
    x = layers.Reshape((x.shape[1] * x.shape[2], 6), name="row")(x)
    x = ExtraTokens(extra, name="extra")(x) if extra else x
    x = Positions(name="positions")(x)
    for i in range(depth):
        x = _encoder(x, f"block{i + 1}")
    x = layers.LayerNormalization(epsilon=1e-5, name="norm")(x)
    pool = ClassToken(name="pool") if pooling == "class" else layers.GlobalAveragePooling1D(name="pool")
    x = layers.Dense(CLASSES, activation=activation, name="predictions")(pool(x))
    return randomize(keras.Model(image, x, name="vit"), seed)


def nested_vit(seed=0) -> keras.Model:
    """Transfer learning from a transformer, with a dot in its name."""
    inner, image = vit(), keras.Input((SIZE, SIZE, 3), name="image")
    body = keras.Model(inner.input, inner.get_layer("norm").output, name="vit.b")
    x = ClassToken(name="pool")(body(layers.Rescaling(0.5, name="rescaling")(image)))
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x), name="nested"), seed)


def hybrid(seed=0) -> keras.Model:
    """A convolutional network with one attention on top of it."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    x = image
    for i in range(8):
        x = _block(x, f"block{i + 1}", 6, strides=2 if i == 0 else 1)
    x = layers.Reshape((16, 6), name="row")(x)
    x = layers.Add(name="add")([x, layers.MultiHeadAttention(1, 2, use_bias=False, name="attention")(x, x)])
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x), name="hybrid"), seed)


def opaque_vit(seed=0) -> keras.Model:
    """A transformer whose patches are cut by an operation, so that no convolution tells their grid."""
    image = keras.Input((SIZE, 2 * SIZE, 3), name="image")
    x = keras.ops.reshape(keras.ops.image.extract_patches(image, (2, 2)), (-1, 32, 12))
    x = ExtraTokens(3, name="extra")(layers.Dense(6, name="embedding")(x))
    x = layers.GlobalAveragePooling1D(name="pool")(_encoder(x, "block1"))
    return randomize(keras.Model(image, layers.Dense(CLASSES, "softmax", name="predictions")(x), name="opaque"), seed)
