"""Methods that change the signal or the image and watch the score: against slow re-implementations and identities."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers.errors import InputError
from explainers.methods.noise import image_seeds, rise_masks
from explainers.methods.perturbation import ablationcam, occlusion, rise, scorecam, scorecam_official
from tests import models, oracle
from tests.comparing import close
from tests.explainers import test_cams
from tests.explainers.test_cams import seeds

CHAINS = {**test_cams.CHAINS, "relu6": (models.relu6net, "depthwise_relu")}
NETWORKS = ["gap_dense", "valid", "same, stride 2", "sequential", "swish", "vgg", "mobilenet", "one unit", "relu6"]


def raw(method, model, x, indices=None, **params):
    """Logits and maps as arrays."""
    return tuple(values.numpy() for values in method(model, x, indices, **params))


def agrees_with_oracle(method, slow, name, seed):
    """Two units of two images, other ones for each; `slow(stem, head, image, number of the image, unit, model)`."""
    build, layer = CHAINS[name]
    model = build(seed=seed)
    stem, head = oracle.read_chain(model, layer)
    exposed = ex.expose(model, layer)
    x = models.inputs_of(model, 2, seed)
    units = np.array([[1, 0], [4, 2]]) % exposed.n_classes
    logits, maps = raw(method, exposed, x, units)
    for i, k in np.ndindex(units.shape):
        image = x[i].astype(np.float64)
        close(logits[i, k], oracle.forward(stem + head, image).reshape(-1)[units[i, k]], rtol=1e-4)
        close(maps[i, ..., k], slow(stem, head, image, i, units[i, k], exposed), rtol=1e-4)


# Against the papers


@seeds
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("method", [ablationcam, scorecam])
def test_a_method_that_changes_channels_is_that_of_its_paper(method, name, seed):
    slow = getattr(oracle, method.__name__)
    agrees_with_oracle(method, lambda stem, head, x, i, unit, _: slow(stem, head, x, unit), name, seed)


@seeds
@pytest.mark.parametrize("name", ["gap_dense", "before normalisation", "vgg, before pooling", "one unit"])
def test_scorecam_with_the_strongest_channels_alone(name, seed):
    slow = partial(oracle.scorecam, channels=3)
    agrees_with_oracle(partial(scorecam, channels=3), lambda s, h, x, i, unit, _: slow(s, h, x, unit), name, seed)


@seeds
@pytest.mark.parametrize("name", ["gap_dense", "valid", "before normalisation", "vgg", "one unit"])
def test_scorecam_official_is_that_of_the_authors_program(name, seed):
    slow = oracle.scorecam_official
    agrees_with_oracle(scorecam_official, lambda s, h, x, i, k, m: slow(s, h, x, k, m.probability), name, seed)


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_occlusion_is_the_mean_drop_of_the_windows_that_cover_a_pixel(name, seed):
    method = partial(occlusion, size=(3, 2), stride=(2, 1), fill=0.3)
    slow = partial(oracle.occlusion, size=(3, 2), stride=(2, 1), fill=0.3)
    agrees_with_oracle(method, lambda stem, head, x, i, unit, _: slow(stem + head, x, unit), name, seed)


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_rise_is_that_of_the_paper(name, seed):
    def slow(stem, head, x, i, unit, exposed):
        own = image_seeds(tf.constant(models.inputs_of(exposed, 2, seed)), 5)[i : i + 1]
        masks = [rise_masks(own, j, 3, 0.4, x.shape[:2])[0].numpy().astype(np.float64) for j in range(6)]
        return oracle.rise(stem + head, x, unit, masks, 0.4, exposed.probability)

    agrees_with_oracle(partial(rise, masks=6, grid=3, keep=0.4, seed=5), slow, name, seed)


def test_the_oracle_resizes_as_tensorflow_does():
    plane = np.random.default_rng(0).normal(size=(3, 5))
    for size in ((8, 8), (3, 5), (7, 4), (2, 3)):
        want = tf.image.resize(plane[np.newaxis, ..., np.newaxis], size)[0, ..., 0]
        np.testing.assert_allclose(oracle.resize(plane, size), want, atol=1e-6)


# Ablation-CAM


@seeds
def test_ablationcam_has_a_closed_form_behind_a_global_average(seed):
    model = models.gap_dense(seed)
    exposed, x = ex.expose(model), models.images(3, seed)
    logits, maps = raw(ablationcam, exposed, x)
    A, kernel = np.asarray(exposed(x)[1], np.float64), model.get_layer("predictions").get_weights()[0]
    drops = A.mean(axis=(1, 2))[..., np.newaxis] * kernel  # what a channel adds to each logit
    assert (logits < 0).any()  # a negative score turns no map around
    close(maps, np.einsum("nhwc,nck->nhwk", A, drops / np.abs(logits)[:, np.newaxis]), rtol=1e-4)


def test_a_score_of_zero_has_a_finite_ablationcam():
    model = models.gap_dense()
    for variable in model.get_layer("predictions").weights:
        variable.assign(tf.zeros_like(variable))
    logits, maps = raw(ablationcam, model, models.images(2))
    np.testing.assert_array_equal(logits, 0)
    np.testing.assert_array_equal(maps, 0)


def test_ablation_leaves_the_signals_beside_it_alone():
    model = models.two_inputs(1)
    x, row = models.images(2), models.images(2, shape=(4,))
    exposed = ex.expose(model)
    logits, maps = raw(ablationcam, exposed, [x, row])
    A, kernel = np.asarray(exposed([x, row])[1]), model.get_layer("predictions").get_weights()[0]
    drops = A.mean(axis=(1, 2))[..., np.newaxis] * kernel[:4]
    close(maps, np.einsum("nhwc,nck->nhwk", A, drops / np.abs(logits)[:, np.newaxis]), rtol=1e-4)


@pytest.mark.parametrize("layer", ["branch_out", "last_bn", "stem_out"])
def test_channels_inside_a_residual_block_are_ablated_there(layer):
    model, x = models.residual(1), models.images(2)
    exposed = ex.expose(model, layer)
    A, *skips = (np.asarray(signal) for signal in tf.nest.flatten(exposed.split(tf.constant(x))))
    logits = np.asarray(exposed.head([A, *skips]))
    want = np.zeros((*A.shape[:3], 5))
    for k in range(A.shape[-1]):
        ablated = A * (np.arange(A.shape[-1]) != k)
        weights = (logits - np.asarray(exposed.head([ablated, *skips]))) / np.abs(logits)
        want += A[..., k, np.newaxis] * weights[:, np.newaxis, np.newaxis]
    close(raw(ablationcam, exposed, x)[1], want, rtol=1e-4)


# Score-CAM


def with_constant_channel(value, seed=1):
    """A model whose channel 2 is the same everywhere."""
    model = models.gap_dense(seed)
    normalisation = model.get_layer("block2_bn")
    for variable, new in ((normalisation.gamma, 0), (normalisation.beta, value)):
        variable.assign(tf.tensor_scatter_nd_update(variable, [[2]], [float(new)]))
    return model


@pytest.mark.parametrize("method", [scorecam, scorecam_official])
def test_the_order_of_the_channels_does_not_matter_to(method):
    model, x = models.gap_dense(1), models.images(2)
    want = raw(method, model, x)[1]
    order = [3, 0, 5, 1, 4, 2]
    kernel, bias = model.get_layer("block2_conv").get_weights()
    model.get_layer("block2_conv").set_weights([kernel[..., order], bias[order]])
    model.get_layer("block2_bn").set_weights([values[order] for values in model.get_layer("block2_bn").get_weights()])
    kernel, bias = model.get_layer("predictions").get_weights()
    model.get_layer("predictions").set_weights([kernel[order], bias])
    close(raw(method, model, x)[1], want)


def test_a_single_channel_has_the_weight_one():
    model, x = models.one_channel(1), models.images(3)
    exposed = ex.expose(model)
    A = np.asarray(exposed(x)[1])
    assert A.max() > 0.1
    close(raw(scorecam, exposed, x)[1], np.repeat(A, models.CLASSES, axis=-1))


def test_a_model_that_always_says_the_same_weighs_all_channels_alike():
    model, x = models.gap_dense(1), models.images(2)
    model.get_layer("predictions").kernel.assign(tf.zeros((6, 5)))
    model.get_layer("block2_bn").beta.assign(tf.fill([6], 2.0))
    exposed = ex.expose(model)
    A = np.asarray(exposed(x)[1])
    assert (np.ptp(A, axis=(1, 2)) > 0).all()  # no constant channel, which would weigh nothing
    close(raw(scorecam, exposed, x)[1], np.repeat(A.mean(axis=-1, keepdims=True), 5, axis=-1))
    probability = np.asarray(model(x))[:, np.newaxis, np.newaxis]
    close(raw(scorecam_official, exposed, x)[1], A.sum(axis=-1, keepdims=True) * probability)


def test_scores_and_not_probabilities_tell_the_channels_apart():
    model, x = models.gap_dense(1), models.images(2)
    kernel = model.get_layer("predictions").kernel
    kernel.assign(300 * kernel)
    exposed = ex.expose(model)
    maps, A = raw(scorecam, exposed, x)[1], np.asarray(exposed(x)[1])
    best = np.abs(A[..., np.newaxis, :] - maps[..., np.newaxis]).max(axis=(1, 2)).min(axis=-1)
    assert np.median(best) < 1e-3 * A.max()  # a softmax of such scores chooses one channel


@pytest.mark.parametrize("value", [-1.0, 0.3, 0.7, 1.9])
@pytest.mark.parametrize("method", [scorecam, scorecam_official])
def test_a_constant_channel_weighs_nothing(method, value):
    model, x = with_constant_channel(value), models.images(2)
    exposed = ex.expose(model)
    stem, head = oracle.read_chain(model, "block2_out")
    options = {} if method is scorecam else {"probability": "softmax"}
    for i, unit in np.ndindex(2, 5):
        want = getattr(oracle, method.__name__)(stem, head, x[i].astype(np.float64), unit, **options)
        close(raw(method, exposed, x)[1][i, ..., unit], want, rtol=1e-4)


@pytest.mark.parametrize("method", [ablationcam, scorecam, scorecam_official])
def test_signals_without_any_pattern_have_finite_maps(method):
    for value in (-1.0, 0.3):
        model = models.gap_dense(1)
        model.get_layer("block2_bn").gamma.assign(tf.zeros(6))
        model.get_layer("block2_bn").beta.assign(tf.fill([6], value))
        maps = raw(method, model, models.images(2))[1]
        assert np.isfinite(maps).all()
        if method is not ablationcam or value < 0:
            np.testing.assert_array_equal(maps, 0)


def test_each_image_chooses_channels_of_its_own():
    exposed, x = ex.expose(models.gap_dense(1)), models.images(6)
    strength = np.asarray(exposed(x)[1]).mean(axis=(1, 2))
    assert len({tuple(np.sort(np.argsort(row)[-2:])) for row in strength}) > 1
    maps = raw(scorecam, exposed, x, channels=2)[1]
    for i in range(6):
        close(raw(scorecam, exposed, x[i : i + 1], channels=2)[1][0], maps[i])


def test_the_strongest_channel_alone_is_the_map():
    exposed, x = ex.expose(models.gap_dense(1), "block2_conv"), models.images(4)
    A = np.asarray(exposed(x)[1])
    strength = np.abs(A).mean(axis=(1, 2))
    assert (strength.argmax(axis=1) != A.mean(axis=(1, 2)).argmax(axis=1)).any()  # the magnitude counts
    maps = raw(scorecam, exposed, x, channels=1)[1]
    for i in range(4):
        close(maps[i, ..., 3], A[i, ..., strength[i].argmax()])


@pytest.mark.parametrize("channels", [6, 7, 100])
def test_no_more_channels_are_chosen_than_there_are(channels):
    exposed, x = ex.expose(models.gap_dense(1)), models.images(2)
    close(raw(scorecam, exposed, x, channels=channels)[1], raw(scorecam, exposed, x)[1])


@pytest.mark.parametrize("channels", [0, -1, 2.5])
def test_a_number_of_channels_that_is_none_is_refused(channels):
    with pytest.raises(InputError, match=rf"channels.*{channels}"):
        scorecam(models.gap_dense(), models.images(1), channels=channels)


# Occlusion


@seeds
def test_occlusion_by_one_pixel_is_input_times_kernel_for_a_linear_model(seed):
    model, x = models.linear_image(seed), models.images(2, seed)
    kernel = model.get_layer("predictions").kernel.numpy().reshape(8, 8, 3, 5)
    close(raw(occlusion, model, x, size=1, stride=1)[1], np.einsum("nhwc,hwck->nhwk", x, kernel))


def test_the_last_window_ends_at_the_border():
    model, x = models.linear_image(), models.images(1)
    kernel = model.get_layer("predictions").kernel.numpy().reshape(8, 8, 3, 5)
    rows = np.einsum("nhwc,hwck->nhk", x, kernel)  # what each row of pixels adds
    upper, middle, lower = (rows[:, a:b].sum(axis=1) for a, b in ((0, 3), (3, 6), (5, 8)))
    maps = raw(occlusion, model, x, size=(3, 8), stride=(3, 8))[1]
    want = np.stack([upper, upper, upper, middle, middle, (middle + lower) / 2, lower, lower], axis=1)
    close(maps, np.repeat(want[:, :, np.newaxis], 8, axis=2))


def test_a_window_over_the_whole_image_has_one_drop():
    model, x = models.gap_dense(1), models.images(2)
    logits, maps = raw(occlusion, model, x, size=8, fill=0.7)
    filled, _ = raw(occlusion, model, np.full_like(x, 0.7), size=8)
    close(maps, np.broadcast_to((logits - filled)[:, np.newaxis, np.newaxis], maps.shape), rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "size", "stride"),
    [
        ((8, 8), (1, 1), (1, 1)),
        ((24, 16), (3, 2), (1, 1)),
        ((40, 36), (5, 4), (2, 2)),
        ((3, 5), (1, 1), (1, 1)),
    ],
)
def test_windows_are_an_eighth_of_the_image_and_step_by_half_of_it(shape, size, stride):
    model = models.dynamic(1)
    x = models.images(1, shape=(*shape, 3))
    close(raw(occlusion, model, x, [[2]])[1], raw(occlusion, model, x, [[2]], size=size, stride=stride)[1])
    if stride == (2, 2):
        close(raw(occlusion, model, x, [[2]], size=size)[1], raw(occlusion, model, x, [[2]])[1])


def test_a_number_stands_for_both_sides_of_a_window():
    model, x = models.gap_dense(1), models.images(1)
    close(raw(occlusion, model, x, size=3, stride=2)[1], raw(occlusion, model, x, size=(3, 3), stride=(2, 2))[1])


def test_windows_filled_with_what_is_there_change_nothing():
    x = np.full((2, 8, 8, 3), 0.4, np.float32)
    logits, maps = raw(occlusion, models.gap_dense(1), x, size=3, stride=2, fill=0.4)
    assert np.abs(maps).max() < 1e-5 * np.abs(logits).max()


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": (3, 0)},
        {"size": 3, "stride": 0},
        {"size": (2, 2, 2)},
        {"size": 2, "stride": 3},
        {"size": 9},
    ],
)
def test_windows_that_do_not_cover_the_image_are_refused(options):
    value = next(reversed(options.values()))
    with pytest.raises(InputError, match=str(value).replace("(", r"\(").replace(")", r"\)")):
        occlusion(models.gap_dense(), models.images(1), **options)


# RISE


def test_masks_that_keep_everything_give_the_probability_everywhere():
    model, x = models.gap_dense(1), models.images(2)
    maps = raw(rise, model, x, masks=3, grid=4, keep=1.0)[1]
    close(maps, np.broadcast_to(np.asarray(model(x))[:, np.newaxis, np.newaxis], maps.shape), rtol=1e-4)


def test_a_model_that_always_says_the_same_has_the_mean_of_the_masks():
    model, x = models.gap_dense(1), models.images(2)
    model.get_layer("predictions").kernel.assign(tf.zeros((6, 5)))
    mean = np.mean([rise_masks(image_seeds(tf.constant(x)), j, 7, 0.5, (8, 8)) for j in range(20)], axis=0)
    want = mean[..., np.newaxis] * np.asarray(model(x))[:, np.newaxis, np.newaxis] / 0.5
    close(raw(rise, model, x, masks=20)[1], want, rtol=1e-4)


def test_rise_weighs_by_probabilities_and_not_by_scores():
    model, x = models.gap_dense(1), models.images(2)
    maps = raw(rise, model, x, masks=12, grid=3)[1]
    bias = model.get_layer("predictions").bias
    bias.assign(bias + 7)  # a constant added to all logits changes no probability
    close(raw(rise, model, x, masks=12, grid=3)[1], maps, rtol=1e-4)


@pytest.mark.parametrize("options", [{"masks": 0}, {"grid": 0}, {"keep": 0.0}, {"keep": 1.5}])
def test_masks_that_are_none_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=rf"{name}.*{value}"):
        rise(models.gap_dense(), models.images(1), **options)


# Bytes


@pytest.mark.parametrize(
    "method",
    [
        partial(occlusion, size=3, stride=2, fill=127),
        partial(rise, masks=6, grid=3),
        scorecam,
        scorecam_official,
        ablationcam,
    ],
    ids=["occlusion", "rise", "scorecam", "scorecam_official", "ablationcam"],
)
def test_a_model_that_declares_bytes_is_explained_like_one_that_declares_floats(method):
    x = models.pixels(2)
    want = raw(method, models.rescaling_first(2), x.astype(np.float32))[1]
    close(raw(method, models.byte_input(2), x)[1], want, rtol=0.005)  # masked pixels are rounded


# Signals and images with other than two axes of positions


@pytest.mark.parametrize("name", ["conv1d", "conv3d"])
def test_ablationcam_has_its_closed_form_on_any_number_of_axes(name):
    model = models.CASES[name].model(1)
    exposed, x = ex.expose(model), models.inputs_of(model, 2)
    logits, maps = raw(ablationcam, exposed, x)
    A, kernel = np.asarray(exposed(x)[1]), model.get_layer("predictions").get_weights()[0]
    drops = A.mean(axis=tuple(range(1, A.ndim - 1)))[..., np.newaxis] * kernel
    close(maps, np.einsum("n...c,nck->n...k", A, drops / np.abs(logits)[:, np.newaxis]), rtol=1e-4)


def enlarged(channel, size):
    """Bilinear along every axis, one after the other."""
    for axis, length in enumerate(size):
        flat = np.moveaxis(channel, axis, 0)
        rows = flat.reshape(len(flat), -1)
        channel = np.moveaxis(oracle.resize(rows, (length, rows.shape[1])).reshape(length, *flat.shape[1:]), 0, axis)
    return channel


@pytest.mark.parametrize("name", ["conv1d", "conv3d"])
def test_scorecam_masks_any_number_of_axes(name):
    model = models.CASES[name].model(1)
    model.get_layer("bn").beta.assign(tf.ones(4))
    exposed, x = ex.expose(model), models.inputs_of(model, 2)
    A = np.asarray(exposed(x)[1], np.float64)
    masked = np.empty((2, A.shape[-1], *x.shape[1:]))
    for i, k in np.ndindex(masked.shape[:2]):
        mask = enlarged(A[i, ..., k], x.shape[1:-1])
        masked[i, k] = x[i] * ((mask - mask.min()) / np.ptp(mask))[..., np.newaxis]
    scores = np.exp(np.stack([np.asarray(exposed(of_one)[0], np.float64) for of_one in masked]))
    want = np.einsum("n...c,nck->n...k", A, scores / scores.sum(axis=1, keepdims=True))
    close(raw(scorecam, exposed, x)[1], want, rtol=1e-4)
