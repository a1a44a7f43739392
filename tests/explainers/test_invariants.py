"""What every method promises, whichever it is: a new one is tested by being in the registry.

Maps belong to their image and unit alone: not to the batch, the other units, the size of the passes or the way the
program runs; and they are finite, whatever the image. Some say less, and the tables here say which and why.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers.methods.noise import image_seeds
from tests import models
from tests.comparing import close

OPTIONS = {
    "occlusion": {"size": 4, "stride": 3},
    "rise": {"masks": 5, "grid": 3},
    "integrated_gradients": {"steps": 3},
    "smoothgrad": {"samples": 3},
}
"""So few windows, masks, steps and samples that a test is fast, and so many that they do not fill one pass."""

ONE_MAP_FOR_ALL_UNITS = {"eigencam", "fixations"}  # fixations may be: units can share their strongest contributors
IMAGES_ONLY = {"occlusion", "rise", "fixations"}  # no rows and no volumes
CAM_NEEDS = {"gap_dense", "residual", "conv1d", "conv3d", "one_unit", "nested", "mobilenet", "sequential", "dynamic"}

every_method = pytest.mark.parametrize("name", ex.METHODS)


def on_models(*names):
    """Every method on every model of these that it fits."""
    return pytest.mark.parametrize(
        ("name", "model"),
        [
            (method, model)
            for model in names
            for method in ex.METHODS
            if not (method == "cam" and model not in CAM_NEEDS)
            and not (method in IMAGES_ONLY and model in {"conv1d", "conv3d"})
        ],
    )


def explain(name, model, x, indices=None, **options):
    """Logits and maps as arrays."""
    options = {**OPTIONS.get(name, {}), **options}
    return tuple(values.numpy() for values in ex.METHODS[name].function(model, x, indices, **options))


def parameters(name):
    return inspect.signature(ex.METHODS[name].function).parameters


# Units


@on_models("residual", "vgg", "conv1d", "conv3d", "one_unit")
def test_every_unit_at_once_is_each_unit_asked_alone(name, model):
    model = models.CASES[model].model(1)
    exposed, x = ex.expose(model), models.inputs_of(model, 2)
    logits, maps = explain(name, exposed, x)
    assert (logits.dtype, maps.dtype) == (np.float32, np.float32)
    assert logits.shape == (2, exposed.n_classes)
    assert maps.shape[-1] == exposed.n_classes
    close(logits, exposed(x)[0])
    unit = 3 % exposed.n_classes
    alone_logits, alone = explain(name, exposed, x, np.full((2, 1), unit))
    close(alone_logits[:, 0], logits[:, unit])
    close(alone[..., 0], maps[..., unit])
    if name not in ONE_MAP_FOR_ALL_UNITS and exposed.n_classes > 1:
        assert np.abs(maps[..., 0] - maps[..., 3]).max() > 1e-4 * np.abs(maps).max()


@every_method
def test_each_image_gets_the_units_of_its_own_row(name):
    exposed, x = ex.expose(models.gap_dense(2)), models.images(3)
    logits, maps = explain(name, exposed, x)
    units = np.array([[4, 0], [1, 1], [2, 3]])
    some_logits, some = explain(name, exposed, x, units)
    for i, k in np.ndindex(units.shape):
        close(some_logits[i, k], logits[i, units[i, k]])
        close(some[i, ..., k], maps[i, ..., units[i, k]])


@every_method
def test_more_units_than_are_unrolled_give_the_same_maps(name):
    exposed, x = ex.expose(models.gap_dense(2, classes=11)), models.images(2)
    backwards = np.tile(np.arange(11)[::-1], (2, 1))
    logits, maps = explain(name, exposed, x, backwards)
    want_logits, want = explain(name, exposed, x, backwards[:, 5:8])
    close(logits[:, 5:8], want_logits)
    close(maps[..., 5:8], want)


@every_method
def test_the_number_of_units_may_be_unknown_when_the_program_is_traced(name):
    exposed, x = ex.expose(models.gap_dense(2)), models.images(2)
    function, options = ex.METHODS[name].function, OPTIONS.get(name, {})
    program = tf.function(
        lambda images, units: function(exposed, images, units, **options),
        input_signature=[tf.TensorSpec((2, 8, 8, 3)), tf.TensorSpec((2, None), tf.int32)],
        autograph=False,
    )
    for units in ([[3], [1]], [[0, 4], [2, 2]]):
        for got, want in zip(program(x, tf.constant(units)), explain(name, exposed, x, units), strict=True):
            close(got, want)


@every_method
def test_a_head_with_one_unit_keeps_its_class_axis(name):
    model = models.mobilenet(classes=1, activation="sigmoid")
    logits, maps = explain(name, model, models.images(3))
    assert logits.shape == (3, 1)
    assert maps.ndim == 4
    assert maps.shape[-1] == 1
    prediction = np.asarray(model(models.images(3)), np.float64)
    close(logits, np.log(prediction / (1 - prediction)), rtol=1e-4)


@every_method
def test_a_constant_added_to_all_logits_changes_no_map(name):
    model, x = models.gap_dense(1), models.images(2)
    logits, maps = explain(name, model, x)
    bias = model.get_layer("predictions").bias
    bias.assign(bias + 7)
    shifted_logits, shifted = explain(name, model, x)
    close(shifted_logits, logits + 7)
    if name == "ablationcam":  # its drops are shares of the logit
        size = np.abs(np.stack([logits, shifted_logits]))[:, :, np.newaxis, np.newaxis]
        maps, shifted = maps * size[0], shifted * size[1]
    close(shifted, maps, rtol=1e-4)


# Batches and passes


@on_models("residual", "vgg")
def test_the_map_of_an_image_does_not_depend_on_its_batch(name, model):
    model = models.CASES[model].model(3)
    exposed, x = ex.expose(model), 10 * models.images(4) ** 3
    units = np.array([[0, 3], [4, 4], [1, 0], [2, 3]])
    order = [2, 0, 3, 1]
    logits, maps = explain(name, exposed, x, units)
    shuffled_logits, shuffled = explain(name, exposed, x[order], units[order])
    for position, i in enumerate(order):
        close(shuffled_logits[position], logits[i])
        close(shuffled[position], maps[i])
    alone_logits, alone = explain(name, exposed, x[3:], units[3:])
    close(alone_logits[0], logits[3])
    close(alone[0], maps[3])


@pytest.mark.parametrize("name", [name for name in ex.METHODS if "max_rows" in parameters(name)])
@pytest.mark.parametrize("model", [models.residual, models.vgg], ids=["residual", "vgg"])
def test_passes_of_any_size_give_the_same_maps(name, model):
    exposed, x = ex.expose(model(1)), models.images(3)
    units = np.array([[0, 3], [4, 4], [1, 0]])
    want_logits, want = explain(name, exposed, x, units)
    for max_rows in (1, 7, 64):
        logits, maps = explain(name, exposed, x, units, max_rows=max_rows)
        close(logits, want_logits)
        close(maps, want)


@pytest.mark.parametrize("name", [name for name in ex.METHODS if "seeds" in parameters(name)])
def test_chance_belongs_to_the_image(name):
    exposed, x = ex.expose(models.gap_dense(1)), models.images(3)
    maps = explain(name, exposed, x)[1]
    np.testing.assert_array_equal(explain(name, exposed, x)[1], maps)
    close(explain(name, exposed, x, seeds=image_seeds(tf.constant(x)))[1], maps)
    for other in (explain(name, exposed, x, seed=1)[1], explain(name, exposed, x, seeds=[[1, 2], [3, 4], [5, 6]])[1]):
        assert (np.abs(other - maps).max(axis=(1, 2, 3)) > 1e-3 * maps.max()).all()
    repeated = explain(name, exposed, x, seeds=[[1, 2]] * 3)[1]
    close(explain(name, exposed, x[1:2], seeds=[[1, 2]])[1][0], repeated[1])


@pytest.mark.parametrize("name", [name for name in ex.METHODS if "seeds" in parameters(name)])
def test_an_explainer_obeys_the_seed_that_is_asked_for(name):
    options = ", ".join(f"{key}={value}" for key, value in OPTIONS[name].items())
    first, other = (f"{name}({options}, seed={seed})" for seed in (1, 2))
    maps = ex.Explainer(models.gap_dense(1), (first, other), batch_size=2, jit=False)(models.pixels(2)).maps
    one, two = maps.values()
    assert np.abs(one - two).max() > 1e-3 * one.max()


# Any way of calling


@pytest.mark.parametrize(("classes", "jit"), [(5, False), (10, True)], ids=["unrolled graph", "loop in xla"])
@every_method
def test_eager_graph_and_xla_agree(name, classes, jit):
    exposed, x = ex.expose(models.gap_dense(1, classes=classes)), models.images(2)
    function, options = ex.METHODS[name].function, OPTIONS.get(name, {})
    program = tf.function(lambda images: function(exposed, images, **options), jit_compile=jit, autograph=False)
    for got, want in zip(program(tf.constant(x)), explain(name, exposed, x), strict=True):
        close(got, want, rtol=1e-4)


@every_method
def test_the_size_of_batch_and_image_may_be_unknown_when_the_program_is_traced(name):
    exposed = ex.expose(models.dynamic(1))
    function, options = ex.METHODS[name].function, OPTIONS.get(name, {})
    spec = tf.TensorSpec((None, 12, 8, 3))
    program = tf.function(lambda x: function(exposed, x, **options), input_signature=[spec], autograph=False)
    x = models.images(3, shape=(12, 8, 3))
    for got, want in zip(program(x), explain(name, exposed, x), strict=True):
        close(got, want)
    close(program(x[1:2])[1][0], want[1])


@every_method
def test_nested_models_have_the_maps_of_flat_ones(name):
    nested, flat = models.nested(1), models.flattened(2)
    flat.set_weights(nested.get_weights())
    x = models.images(2)
    for got, want in zip(explain(name, nested, x), explain(name, flat, x), strict=True):
        close(got, want)


@every_method
def test_a_loaded_model_has_the_maps_of_the_fresh_one(name, tmp_path):
    model, x = models.gap_dense(1), models.images(2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for got, want in zip(explain(name, loaded, x), explain(name, model, x), strict=True):
        close(got, want)


@every_method
def test_the_model_is_the_same_afterwards(name):
    model, x = models.gap_dense(1), models.images(2)
    weights, config = [np.array(w) for w in model.get_weights()], model.to_json()
    prediction, nodes = np.asarray(model(x)), [len(layer._inbound_nodes) for layer in model.layers]
    explain(name, model, x)
    assert model.to_json() == config
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    np.testing.assert_array_equal(model(x), prediction)
    for got, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", [name for name, method in ex.METHODS.items() if not method.spatial])
def test_the_cut_does_not_matter_to_methods_that_need_no_signal(name):
    model, x = models.residual(1), models.images(2)
    close(explain(name, ex.expose(model, "branch_out"), x)[1], explain(name, model, x)[1])


@pytest.mark.parametrize("name", ex.METHODS)
def test_rows_of_features_are_explained_or_refused_in_words(name):
    model, rows = models.mlp(1), models.images(3, shape=(6,))
    try:
        logits, maps = explain(name, model, rows)
    except ex.errors.ExplainerError:
        return
    close(logits, ex.METHODS["gradients"].function(model, rows)[0])
    assert maps.shape == (3, 6, 5)
    close(explain(name, model, rows[1:2])[1][0], maps[1])


# Numbers


EXTREME = {
    "zeros": np.zeros((8, 8, 3)),
    "even": np.full((8, 8, 3), 0.7),
    "negative": np.full((8, 8, 3), -3.0),
    "one bright pixel": np.eye(64)[19].reshape(8, 8, 1) * np.ones(3),
    "huge": 1e4 * models.images(1)[0],
    "tiny": 1e-30 * models.images(1)[0],
}


@on_models("gap_dense", "vgg", "residual")
def test_maps_are_finite_for_any_image(name, model):
    logits, maps = explain(name, models.CASES[model].model(1), np.stack(list(EXTREME.values())).astype(np.float32))
    assert np.isfinite(logits).all()
    for image, values in zip(EXTREME, maps, strict=True):
        assert np.isfinite(values).all(), image


@every_method
def test_signals_of_zeros_give_finite_maps_and_maps_of_the_signal_are_zeros(name):
    model, x = models.gap_dense(1), models.images(2)
    model.get_layer("block2_bn").gamma.assign(np.zeros(6))
    model.get_layer("block2_bn").beta.assign(-np.ones(6))
    maps = explain(name, model, x)[1]
    assert np.isfinite(maps).all()
    if ex.METHODS[name].spatial:
        np.testing.assert_array_equal(maps, 0)


@every_method
def test_maps_without_a_positive_part_are_shown_as_zeros_and_never_as_nan(name):
    model, x = models.gap_dense(1), models.images(2)
    maps = -np.abs(explain(name, model, x)[1])
    shown = ex.METHODS[name].postprocessing(tf.constant(maps)).numpy()
    assert np.isfinite(shown).all()
    assert shown.min() >= 0
    assert shown.max() <= 1
    if ex.METHODS[name].postprocessing is ex.filters.positive_normalize:
        np.testing.assert_array_equal(shown, 0)


ROUGH = {
    "full_gradients": 0.05,  # stretches every channel, also one that is nearly even
    "fixations": 1.0,  # follows the strongest of nearly equal contributors
}
"""Methods that rounding to half precision changes more than in proportion."""


@every_method
def test_half_precision_gives_nearly_the_maps_of_single_precision(name):
    x = models.images(3)
    for got, want in zip(
        explain(name, models.gap_dense(1, dtype="mixed_float16"), x), explain(name, models.gap_dense(1), x), strict=True
    ):
        assert got.dtype == np.float32
        assert np.isfinite(got).all()
        close(got, want, ROUGH.get(name, 0.02))
