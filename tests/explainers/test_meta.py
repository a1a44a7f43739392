"""Means over noisy, resized and mirrored copies: every pass counts once, and the clean one is among them."""

import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers.errors import InputError, MethodError
from explainers.methods import meta
from explainers.methods.cams import cam, gradcam, hirescam
from explainers.methods.gradient import gradients, smoothgrad
from explainers.methods.perturbation import rise
from tests import models, oracle
from tests.comparing import close
from tests.explainers.test_cams import seeds
from tests.explainers.test_perturbation import raw

OF_ORACLE = {gradcam: oracle.gradcam, hirescam: oracle.hirescam}


def pixels(model, inputs, indices=None):
    """A method whose map is the image's first channel, for one unit."""
    logits, _ = gradcam(model, inputs, indices)
    return logits[:, :1], tf.convert_to_tensor(inputs)[..., :1]


def ones(model, inputs, indices=None):
    """A method that finds everything equally important."""
    logits, maps = gradcam(model, inputs, indices)
    return logits, tf.ones_like(maps)


def noise_of_pass(model, x, j, **options):
    """What pass number `j` adds to the image, told from the means of a method whose map is the image."""
    more = raw(meta.smooth(pixels, repetitions=j + 1, **options), model, x)[1].astype(np.float64)
    fewer = raw(meta.smooth(pixels, repetitions=j, **options), model, x)[1].astype(np.float64)
    return (j + 1) * more - j * fewer - x[..., :1]


# Noise


@seeds
@pytest.mark.parametrize("method", OF_ORACLE)
def test_smooth_is_the_mean_of_a_clean_pass_and_noisy_ones(method, seed):
    model = models.gap_dense(seed)
    stem, head = oracle.read_chain(model, "block2_out")
    x, seen = models.images(2, seed), []

    def watched(model, inputs, indices=None):
        seen.append(inputs)
        return method(model, inputs, indices)

    smooth = meta.smooth(watched, repetitions=4, noise=0.2, seed=seed)
    tf.config.run_functions_eagerly(True)
    try:
        logits, maps = raw(smooth, model, x)
    finally:
        tf.config.run_functions_eagerly(False)
    assert len(seen) == 4
    close(logits, raw(method, model, x)[0])
    for i, unit in np.ndindex(2, 5):
        image = x[i].astype(np.float64)
        np.testing.assert_array_equal(np.asarray(seen[0])[i], x[i])
        sigma = 0.2 * (image.max() - image.min())
        normals = [(np.asarray(copy, np.float64)[i] - image) / sigma for copy in seen[1:]]
        want = oracle.smooth(lambda image, k=unit: OF_ORACLE[method](stem, head, image, k), image, normals, 0.2)
        close(maps[i, ..., unit], want, rtol=1e-4)


def test_the_noise_is_normal_and_a_fraction_of_each_images_own_range():
    model = models.dynamic(1)
    x = models.images(2, shape=(48, 48, 3)) * np.array([1, 30], np.float32).reshape(2, 1, 1, 1)
    drawn = np.stack([noise_of_pass(model, x, j, noise=0.3) for j in (1, 2, 3)])
    for i in range(2):
        values = drawn[:, i].ravel() / (0.3 * (x[i].max() - x[i].min()))
        assert abs(values.mean()) < 5 / np.sqrt(values.size)
        assert abs(values.std() - 1) < 5 / np.sqrt(2 * values.size)
        assert abs((values**4).mean() - 3) < 5 * np.sqrt(96 / values.size)
    passes = drawn.reshape(6, -1)
    assert np.abs(np.corrcoef(passes) - np.eye(6)).max() < 5 / np.sqrt(passes.shape[1])


def test_one_repetition_is_the_method_itself():
    model, x = models.gap_dense(1), models.images(2)
    for got, want in zip(raw(meta.smooth(gradcam, repetitions=1), model, x), raw(gradcam, model, x), strict=True):
        close(got, want)


def test_no_noise_changes_nothing():
    model, x = models.gap_dense(1), models.images(2)
    close(raw(meta.smooth(gradcam, repetitions=5, noise=0.0), model, x)[1], raw(gradcam, model, x)[1])


def test_another_seed_gives_other_noise_and_the_same_seed_the_same():
    model, x = models.gap_dense(1), models.images(2)
    one, again, other = (raw(meta.smooth(gradcam, repetitions=3, seed=s), model, x)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3 * one.max()


def test_smooth_passes_parameters_on():
    model, x = models.gap_dense(1), models.images(2)
    want = raw(rise, model, x, masks=5, grid=2)[1]
    close(raw(meta.smooth(rise, repetitions=1), model, x, masks=5, grid=2)[1], want)
    close(raw(meta.tta(rise, scales=(), hflip=False), model, x, masks=5, grid=2)[1], want)


@pytest.mark.parametrize("options", [{"repetitions": 0}, {"noise": -0.5}])
def test_smoothing_of_nothing_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=rf"{name}.*{value}"):
        meta.smooth(gradcam, **options)


# Sizes and mirror images


@seeds
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("scales", [(), (0.5,), (0.5, 1.5, 2.0), (0.6, 1.3)])
def test_tta_is_the_mean_over_sizes_and_mirror_images(scales, hflip, seed):
    model = models.dynamic(seed)
    stem, head = oracle.read_chain(model, "block2_out")
    x = models.images(1, seed)
    logits, maps = raw(meta.tta(gradcam, scales=scales, hflip=hflip), model, x)
    close(logits, raw(gradcam, model, x)[0])
    for unit in range(2):
        image = x[0].astype(np.float64)
        want = oracle.tta(lambda image, k=unit: oracle.gradcam(stem, head, image, k), image, scales, hflip)
        close(maps[0, ..., unit], want, rtol=1e-4)


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("scales", [(), (0.5,), (0.5, 1.5, 2.0), (1.0, 1.0), (0.37, 3.1)])
def test_a_method_that_returns_ones_stays_at_ones(scales, hflip):
    maps = raw(meta.tta(ones, scales=scales, hflip=hflip), models.dynamic(), models.images(2))[1]
    np.testing.assert_allclose(maps, 1, rtol=1e-6)


def test_every_pass_counts_once():
    calls = []

    def counted(model, inputs, indices=None):
        calls.append(tuple(inputs.shape[1:3]))
        return ones(model, inputs, indices)

    meta.tta(counted)(models.dynamic(), models.images(1))
    assert sorted(calls) == [(4, 4)] * 2 + [(8, 8)] * 2 + [(12, 12)] * 2 + [(16, 16)] * 2


@seeds
@pytest.mark.parametrize("method", [cam, gradcam, gradients])
def test_the_map_of_a_mirror_image_is_the_mirror_image_of_the_map(method, seed):
    model, x = models.symmetric(seed), models.images(2, seed)
    close(raw(method, model, x[:, :, ::-1])[1], raw(method, model, x)[1][:, :, ::-1])  # the model is symmetric
    close(raw(meta.tta(method, scales=()), model, x)[1], raw(method, model, x)[1])
    for scales in ((), (0.5, 2.0)):
        tta = meta.tta(method, scales=scales)
        close(raw(tta, model, x[:, :, ::-1])[1], raw(tta, model, x)[1][:, :, ::-1])


@seeds
def test_any_model_is_symmetric_after_mirroring(seed):
    model, x = models.gap_dense(seed), models.images(2, seed)
    tta = meta.tta(gradcam, scales=())
    assert np.abs(raw(gradcam, model, x[:, :, ::-1])[1] - raw(gradcam, model, x)[1][:, :, ::-1]).max() > 1e-3
    close(raw(tta, model, x[:, :, ::-1])[1], raw(tta, model, x)[1][:, :, ::-1])


def test_up_and_down_are_not_mirrored():
    x = models.images(1)
    maps = raw(meta.tta(pixels, scales=()), models.dynamic(), x)[1]
    np.testing.assert_allclose(maps, x[..., :1], rtol=1e-6)  # flipped along the same axis twice
    tall = raw(meta.tta(pixels, scales=(0.5,), hflip=False), models.dynamic(), models.images(1, shape=(16, 8, 3)))[1]
    assert tall.shape == (1, 16, 8, 1)


def test_a_model_of_one_size_is_mirrored_but_not_resized():
    model, x = models.gap_dense(1), models.images(2)
    raw(meta.tta(gradcam, scales=()), model, x)
    with pytest.raises(MethodError, match=r"does not read \(4, 4\): give scales=\(\)"):
        meta.tta(gradcam)(models.vgg(), x)


def test_rows_of_features_have_no_mirror_image_and_no_size():
    rows = models.images(3, shape=(6,))
    with pytest.raises(InputError, match=r"tta.*images"):
        meta.tta(gradients, scales=())(models.mlp(), rows)


@pytest.mark.parametrize("scale", [0, -1.0])
def test_scales_that_are_none_are_refused(scale):
    with pytest.raises(InputError, match=rf"scales.*{scale}"):
        meta.tta(gradcam, scales=(0.5, scale))


def test_a_mistake_inside_a_method_is_not_blamed_on_its_size():
    def broken(model, inputs, indices=None):
        if inputs.shape[1] != 8:
            raise ValueError("my own mistake")
        return gradcam(model, inputs, indices)

    with pytest.raises(ValueError, match="my own mistake"):
        meta.tta(broken)(models.dynamic(), models.images(1))


@pytest.mark.parametrize("method", ["meta.smooth(rise(masks=2), repetitions=2)", "meta.tta(rise(masks=3), scales=())"])
def test_an_explainer_draws_the_same_noise_with_xla_and_without(method):
    """Preprocessing rounds differently with XLA, so that noise which follows from its pixels would be another one."""
    images = models.pixels(2)
    plain, compiled = (
        ex.Explainer(models.gap_dense(1), (method,), batch_size=2, preprocess="tf", jit=jit)(images).maps[method]
        for jit in (False, True)
    )
    close(compiled, plain, rtol=1e-4)


# Any way of calling

METHODS = {
    "smooth": meta.smooth(gradcam, repetitions=3),
    "smooth of smoothgrad": lambda *a: meta.smooth(smoothgrad, repetitions=2)(*a, samples=2),
    "tta": meta.tta(gradcam, scales=(0.5, 1.5)),
    "tta of rise": lambda *a: meta.tta(rise, scales=(0.7,), hflip=False)(*a, masks=2, grid=3),
    "tta of smooth": meta.tta(meta.smooth(gradcam, repetitions=2), scales=(0.7,), hflip=False),
}
every_way = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


@every_way
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_eager_graph_and_xla_agree(method, jit):
    exposed, x = ex.expose(models.dynamic(1)), models.images(2)
    units = tf.constant([[1, 0], [4, 2]])
    program = tf.function(lambda images: method(exposed, images, units), jit_compile=jit, autograph=False)
    for got, want in zip(program(tf.constant(x)), method(exposed, x, units), strict=True):
        close(got, want, rtol=1e-4)


@every_way
def test_the_map_of_an_image_does_not_depend_on_its_batch(method):
    exposed, x = ex.expose(models.dynamic(1)), models.images(3)
    maps = raw(method, exposed, x)[1]
    shuffled = raw(method, exposed, x[[2, 0, 1]])[1]
    for position, i in enumerate([2, 0, 1]):
        close(shuffled[position], maps[i])
        close(raw(method, exposed, x[i : i + 1])[1][0], maps[i])


@every_way
def test_each_image_gets_the_units_of_its_own_row(method):
    exposed, x = ex.expose(models.dynamic(1)), models.images(3)
    logits, maps = raw(method, exposed, x)
    units = np.array([[4, 0], [1, 1], [2, 3]])
    some_logits, some = raw(method, exposed, x, units)
    for i, k in np.ndindex(units.shape):
        close(some_logits[i, k], logits[i, units[i, k]])
        close(some[i, ..., k], maps[i, ..., units[i, k]])


@every_way
def test_even_images_have_finite_maps(method):
    exposed = ex.expose(models.dynamic(1))
    for value in (0.0, 0.7, -1e4):
        assert np.isfinite(raw(method, exposed, np.full((1, 8, 8, 3), value, np.float32))[1]).all()


def test_explain_takes_a_meta_method():
    model, x = models.dynamic(1), models.images(3)
    method = meta.tta(gradcam, scales=(0.5,))
    logits, maps = ex.explain(method, model, x, batch_size=2, postprocessing=None, resizing=None, verbose=0)
    want_logits, want = raw(method, model, x)
    close(logits, want_logits)
    close(maps, want)
