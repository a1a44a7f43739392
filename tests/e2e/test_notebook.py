"""The README's call forms, as a researcher types them, on real architectures (random weights, small inputs)."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import explainers as ex


def make_resnet() -> keras.Model:
    return keras.applications.ResNet50V2(weights=None, input_shape=(64, 64, 3), classes=10)


def make_transfer() -> keras.Model:
    base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(64, 64, 3))
    base.trainable = False
    inputs = keras.Input((64, 64, 3))
    x = keras.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    return keras.Model(
        inputs, keras.layers.Dense(10, activation="softmax", name="answer")(keras.layers.Dropout(0.2)(x))
    )


def make_sequential() -> keras.Model:
    base = keras.applications.MobileNetV2(weights=None, include_top=False, pooling="avg", input_shape=(64, 64, 3))
    return keras.Sequential([keras.Input((64, 64, 3)), base, keras.layers.Dense(10), keras.layers.Softmax()])


def make_vgg() -> keras.Model:
    return keras.applications.VGG16(weights=None, input_shape=(64, 64, 3), classes=10)


MODELS = {
    "ResNet50V2, fused softmax": (make_resnet, "post_relu", "predictions", (2, 2)),
    "nested transfer learning": (make_transfer, "mobilenetv2_1.00_64.out_relu", "answer", (2, 2)),
    "Sequential round a model that pools": (make_sequential, "mobilenetv2_1.00_64.out_relu", "dense", (2, 2)),
    "VGG16, Flatten and three Dense": (make_vgg, "block5_pool", "predictions", (2, 2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_readme_forms_work_and_agree(name: str, tmp_path) -> None:
    make, layer, logits_layer, size = MODELS[name]
    keras.utils.set_random_seed(1)
    model = make()
    x = np.random.default_rng(0).uniform(-1, 1, (3, 64, 64, 3)).astype(np.float32)
    y = np.array([[1, 7], [0, 3], [9, 2]])

    exposed = ex.expose(model)
    assert exposed.activation_layer.endswith(layer)
    assert exposed.logits_layer.startswith(logits_layer)
    logits, maps = ex.gradcam(exposed, x, y, batch_size=2)
    assert maps.shape == (3, 64, 64, 2)
    assert maps.min() >= 0
    assert maps.max() <= 1
    raw_logits, raw = ex.explain("gradcam", exposed, x, y, batch_size=2, postprocessing=None, resizing=None)
    assert raw.shape == (3, *size, 2)
    direct_logits, direct = ex.methods.cams.gradcam(exposed, tf.constant(x), tf.constant(y))
    np.testing.assert_allclose(raw, direct, rtol=1e-3, atol=1e-5 * np.abs(raw).max())
    np.testing.assert_allclose(logits, raw_logits)
    np.testing.assert_allclose(raw_logits, direct_logits, rtol=1e-4, atol=1e-5)
    every_logit = exposed(x)[0].numpy()
    np.testing.assert_allclose(tf.nn.softmax(every_logit), model(x), atol=1e-6)
    np.testing.assert_allclose(raw_logits, np.take_along_axis(every_logit, y, 1), rtol=1e-4, atol=1e-5)

    shown = ex.filters.positive_normalize(direct)
    np.testing.assert_allclose(maps, tf.image.resize(shown, (64, 64)), atol=1e-3)
    picture = ex.visualize(x, overlays=maps, cols=2, to_file=tmp_path / "grid.png")
    assert picture.pixels.shape == (3 * 64 + 2 * 4, 2 * 64 + 4, 3)


def test_cam_is_gradcam_times_positions_where_it_exists_and_refused_where_not() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
    exposed = ex.expose(make_resnet())
    _, cam = ex.explain("cam", exposed, x, np.array([[4], [5]]), postprocessing=None, resizing=None)
    _, gradcam = ex.explain("gradcam", exposed, x, np.array([[4], [5]]), postprocessing=None, resizing=None)
    np.testing.assert_allclose(cam / 4, gradcam, rtol=1e-4, atol=1e-6)
    with pytest.raises(ex.errors.MethodError, match=r"this head has Flatten 'flatten': use gradcam"):
        ex.cam(make_vgg(), x, np.array([[4], [5]]))
