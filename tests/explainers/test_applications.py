"""Every architecture of keras.applications is exposed with no layer named, at the signal that its classifier reads."""

import gc
import re

import keras
import numpy as np
import pytest
from keras import layers

import explainers as ex

SIZES = {"InceptionV3": 107, "InceptionResNetV2": 107, "Xception": 71}
SIZE = 64  # of all others: their last signals have 2x2 positions

# What the papers' last signal is called in Keras, by hand; counters of layers without a name of their own left out.
SIGNALS = {
    r"VGG\d+": "block5_pool",
    r"ResNet\d+": "conv5_block3_out",
    r"ResNet\d+V2": "post_relu",
    r"InceptionV3": "mixed10",
    r"InceptionResNetV2": "conv_7b_ac",
    r"Xception": "block14_sepconv2_act",
    r"DenseNet\d+": "relu",
    r"MobileNet": "conv_pw_13_relu",
    r"MobileNetV2": "out_relu",
    r"MobileNetV3(Small|Large)": "activation",
    r"NASNet(Mobile|Large)": "activation",
    r"EfficientNet(V2)?(B\d|[SML])": "top_activation",
    r"ConvNeXt(Tiny|Small|Base|X?Large)": "add",
}
WITHOUT_CAM = ("VGG", "MobileNetV3", "ConvNeXt")  # several dense layers, or a normalisation behind the average

APPLICATIONS = sorted(name for name in dir(keras.applications) if name[0].isupper())
SHALLOW = {
    *("ConvNeXtTiny", "DenseNet121", "EfficientNetB0", "EfficientNetV2B0", "InceptionResNetV2", "InceptionV3"),
    *("MobileNet", "MobileNetV2", "MobileNetV3Small", "NASNetMobile", "ResNet50", "ResNet50V2", "VGG16", "Xception"),
}
"""One depth of each family; the others have the same layout, more often repeated."""

every_application = pytest.mark.parametrize(
    "name", [name if name in SHALLOW else pytest.param(name, marks=pytest.mark.slow) for name in APPLICATIONS]
)


@pytest.fixture(autouse=True)
def release_models():
    """The largest one holds 1.4 GB."""
    yield
    keras.backend.clear_session()
    gc.collect()


def build(name, **options):
    """The architecture with random weights and signals of ordinary size: glorot's alone die out on the way."""
    size = SIZES.get(name, SIZE)
    options = {"weights": None, "input_shape": (size, size, 3), "classes": 10, **options}
    model = getattr(keras.applications, name)(**options)
    x = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # one pass takes over the statistics of these very images
        if isinstance(layer, layers.Dropout):
            layer.rate = 0.0  # not those of a network without some of its blocks
    model(x, training=True)
    classifier = [layer for layer in model.layers if getattr(layer, "bias", None) is not None][-1]
    rng, fan_in = np.random.default_rng(1), classifier.kernel.shape[-2]
    classifier.bias.assign(rng.normal(size=classifier.bias.shape))
    classifier.kernel.assign(rng.normal(0, fan_in**-0.5, classifier.kernel.shape))  # probabilities that are not 0 or 1
    return model, x


def signal_of(model):
    """By the rule: what the last global pooling reads, or the first Flatten."""
    pools = [layer for layer in model.layers if isinstance(layer, layers.GlobalAveragePooling2D)]
    flat = [layer for layer in model.layers if isinstance(layer, layers.Flatten)]
    return (pools[-1] if pools else flat[0]).input._keras_history.operation


@every_application
def test_an_application_is_exposed_at_the_signal_that_its_classifier_reads(name):
    model, x = build(name)
    exposed = ex.expose(model)
    by_hand = next((layer for pattern, layer in SIGNALS.items() if re.fullmatch(pattern, name)), None)
    assert exposed.activation_layer == signal_of(model).name
    assert by_hand in (re.sub(r"_\d+$", "", exposed.activation_layer), None)
    assert exposed.probability == "softmax"
    assert (exposed.class_kernel is None) == name.startswith(WITHOUT_CAM)
    signals = keras.tree.flatten(exposed.split(x))
    assert len(signals) == 1, "nothing passes by the signal"

    want = keras.Model(model.input, [signal_of(model).output, model.output])
    activations, probabilities = (np.asarray(value, np.float64) for value in want(x))
    assert activations.shape[1:3] in {(2, 2), (3, 3)}
    np.testing.assert_allclose(signals[0], activations, rtol=0, atol=1e-5 * np.abs(activations).max())
    logits, maps = (np.asarray(value, np.float64) for value in ex.methods.cams.gradcam(exposed, x, [[3], [7]]))
    scores = np.asarray(exposed.head(signals), np.float64)
    np.testing.assert_allclose(np.exp(scores) / np.exp(scores).sum(-1, keepdims=True), probabilities, rtol=1e-4)
    np.testing.assert_allclose(logits[:, 0], [scores[0, 3], scores[1, 7]], rtol=1e-5)
    assert np.ptp(scores[0] - scores[1]) > 1e-3, "the image matters"
    assert maps.shape == (*activations.shape[:3], 1)
    assert np.isfinite(maps).all()
    assert np.abs(maps).max(axis=(1, 2)).min() > 0


def test_the_hand_checked_table_knows_every_application():
    """A new one is tested by the rule alone; this reminds to look at it once."""
    unknown = [name for name in APPLICATIONS if not any(re.fullmatch(pattern, name) for pattern in SIGNALS)]
    assert unknown == []
