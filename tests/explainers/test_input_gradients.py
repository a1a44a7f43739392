"""Input x gradient, integrated gradients and SmoothGrad: against slow re-implementations and identities."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers.errors import InputError
from explainers.methods.gradient import gradients, input_x_gradient, integrated_gradients, smoothgrad
from explainers.methods.noise import image_seeds, normals
from tests import models, oracle
from tests.comparing import close
from tests.explainers import test_cams
from tests.explainers.test_cams import seeds
from tests.explainers.test_perturbation import raw

CHAINS = {**test_cams.CHAINS, "relu6": (models.relu6net, None)}
NETWORKS = ["gap_dense", "valid", "same, stride 2", "valid, strides 3 and 2", "sequential", "swish", "rescaling",
            "flatten", "vgg", "mobilenet", "conv_gap", "one unit", "relu6"]  # fmt: skip


def agrees_with_oracle(method, slow, name, seed):
    """Two units of two images, other ones for each; `slow(network, image, number of the image, unit)`."""
    build, _ = CHAINS[name]
    model = build(seed=seed)
    network, _ = oracle.read_chain(model, None)
    x = models.inputs_of(model, 2, seed)
    units = np.array([[1, 0], [4, 2]]) % model.output_shape[-1]
    logits, maps = raw(method, model, x, units)
    for i, k in np.ndindex(units.shape):
        image = x[i].astype(np.float64)
        close(logits[i, k], oracle.forward(network, image).reshape(-1)[units[i, k]], rtol=1e-4)
        close(maps[i, ..., k], slow(network, image, i, units[i, k]), rtol=1e-4)


# Against the papers


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_input_x_gradient_is_that_of_the_paper(name, seed):
    agrees_with_oracle(input_x_gradient, lambda layers, x, i, k: oracle.input_x_gradient(layers, x, k), name, seed)


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_integrated_gradients_are_those_of_the_paper(name, seed):
    slow = partial(oracle.integrated_gradients, baseline=0.2, steps=5)
    method = partial(integrated_gradients, baseline=0.2, steps=5)
    agrees_with_oracle(method, lambda layers, x, i, k: slow(layers, x, k), name, seed)


@seeds
@pytest.mark.parametrize("name", NETWORKS)
def test_smoothgrad_is_that_of_the_paper(name, seed):
    def slow(layers, x, i, unit):
        own = image_seeds(tf.constant(x[np.newaxis].astype(np.float32)), 3)
        noise = [normals(own, j, x.shape)[0].numpy().astype(np.float64) for j in range(4)]
        return oracle.smoothgrad(layers, x, unit, noise, 0.2)

    agrees_with_oracle(partial(smoothgrad, samples=4, noise=0.2, seed=3), slow, name, seed)


@pytest.mark.parametrize("build", [models.relu6net, models.bias_free, models.symmetric])
def test_the_oracles_backward_pass_is_its_numeric_gradient(build):
    layers, _ = oracle.read_chain(build(seed=1), None)
    x = models.images(1, 1)[0].astype(np.float64)
    numeric = oracle.numeric_gradient(lambda image: oracle.forward(layers, image)[3], x)
    close(oracle.gradient(layers, x, 3), numeric, rtol=1e-6)


def test_the_clipped_network_is_clipped():
    x = models.images(4)
    for name in ("conv_relu", "depthwise_relu"):
        signal = np.asarray(ex.expose(models.relu6net(), name)(x)[1])
        assert {0.0, 6.0} <= set(np.unique(signal)), name


# Linear and bias-free networks


def kernel_of(model):
    return model.get_layer("predictions").kernel.numpy().reshape(8, 8, 3, 5)


@seeds
def test_input_x_gradient_of_a_linear_model_is_input_times_kernel(seed):
    model, x = models.linear_image(seed), models.images(2, seed)
    logits, maps = raw(input_x_gradient, model, x)
    close(maps, np.einsum("nhwc,hwck->nhwk", x, kernel_of(model)))
    close(maps.sum(axis=(1, 2)) + model.get_layer("predictions").bias.numpy(), logits)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("baseline", [0.0, -0.7])
def test_integrated_gradients_of_a_linear_model_are_exact_at_any_number_of_steps(steps, baseline):
    model, x = models.linear_image(1), models.images(2)
    logits, maps, gap = raw(integrated_gradients, model, x, baseline=baseline, steps=steps, return_gap=True)
    close(maps, np.einsum("nhwc,hwck->nhwk", x - baseline, kernel_of(model)))
    assert gap.shape == logits.shape
    assert np.abs(gap).max() < 1e-5 * np.abs(maps).sum(axis=(1, 2)).max()


@pytest.mark.parametrize("noise", [0.0, 0.15, 2.0])
def test_smoothgrad_of_a_linear_model_is_its_gradient_at_any_noise(noise):
    model, x = models.linear_image(1), models.images(2)
    want = np.abs(kernel_of(model)).max(axis=2)
    close(raw(smoothgrad, model, x, samples=3, noise=noise)[1], np.stack([want, want]))


@seeds
def test_input_x_gradient_adds_up_to_the_logit_without_biases(seed):
    logits, maps = raw(input_x_gradient, models.bias_free(seed), models.images(3, seed))
    close(maps.sum(axis=(1, 2)), logits)
    assert maps.min() < 0 < maps.max()


@seeds
@pytest.mark.parametrize("steps", [1, 4])
def test_integrated_gradients_from_zero_are_input_x_gradient_without_biases(steps, seed):
    model, x = models.bias_free(seed), models.images(2, seed)
    logits, maps, gap = raw(integrated_gradients, model, x, steps=steps, return_gap=True)
    close(maps, raw(input_x_gradient, model, x)[1])
    assert np.abs(gap).max() < 1e-5 * np.abs(logits).max()


# Integrated gradients


@pytest.mark.parametrize("name", ["gap_dense", "vgg", "residual", "squeeze_excite", "swishnet", "conv1d", "conv3d"])
def test_integrated_gradients_add_up_to_the_difference_of_the_logits(name):
    model = models.CASES[name].model(1)
    exposed, x = ex.expose(model), models.inputs_of(model, 2)
    positions = tuple(range(1, x.ndim - 1))
    logits, maps, gap = raw(integrated_gradients, exposed, x, baseline=0.3, steps=128, return_gap=True)
    difference = logits - np.asarray(exposed(np.full_like(x, 0.3))[0])
    np.testing.assert_allclose(gap, maps.sum(axis=positions) - difference, atol=1e-5 * np.abs(maps).sum())
    close(maps.sum(axis=positions), difference, rtol=0.03)
    coarse = raw(integrated_gradients, exposed, x, baseline=0.3, steps=2, return_gap=True)[2]
    assert np.abs(gap).max() < 0.3 * np.abs(coarse).max()


def test_the_gap_of_a_smooth_network_shrinks_with_the_square_of_the_steps():
    model, x = models.swishnet(1), models.images(2)
    coarse, fine = (raw(integrated_gradients, model, x, steps=n, return_gap=True)[2] for n in (8, 16))
    np.testing.assert_allclose(coarse / fine, 4, rtol=0.25)  # with left or right ends in place of midpoints, 2


def test_the_gap_is_that_of_the_units_asked_for():
    model, x = models.gap_dense(1), models.images(2)
    gap = raw(integrated_gradients, model, x, steps=3, return_gap=True)[2]
    units = np.array([[3, 0], [1, 1]])
    some = raw(integrated_gradients, model, x, units, steps=3, return_gap=True)[2]
    close(some, np.take_along_axis(gap, units, axis=1))


@pytest.mark.parametrize("shape", [(), (3,), (1, 1, 3), (8, 8, 3), (8, 8, 1)])
def test_a_baseline_is_anything_that_stretches_to_an_image(shape):
    model, x = models.gap_dense(1), models.images(2)
    baseline = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    layers, _ = oracle.read_chain(model, None)
    maps = raw(integrated_gradients, model, x, [[2], [0]], baseline=baseline, steps=3)[1]
    for i, unit in ((0, 2), (1, 0)):
        whole = np.broadcast_to(baseline, x.shape[1:]).astype(np.float64)
        close(maps[i, ..., 0], oracle.integrated_gradients(layers, x[i].astype(np.float64), unit, whole, 3), rtol=1e-4)


def test_an_image_that_is_its_own_baseline_has_a_map_of_zeros():
    model, x = models.gap_dense(1), models.images(1)
    _, maps, gap = raw(integrated_gradients, model, x, baseline=x[0], return_gap=True)
    np.testing.assert_array_equal(maps, 0)
    np.testing.assert_allclose(gap, 0, atol=1e-5)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": -3}, {"max_rows": 0}])
def test_integrals_without_a_step_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=rf"{name}.*{value}"):
        integrated_gradients(models.gap_dense(), models.images(1), **options)


def test_a_baseline_that_does_not_stretch_to_an_image_is_refused():
    with pytest.raises(InputError, match=r"baseline.*\(8, 8, 3\).*\(5,\)"):
        integrated_gradients(models.gap_dense(), models.images(1), baseline=np.zeros(5))


# SmoothGrad


@pytest.mark.parametrize("name", ["gap_dense", "vgg", "residual", "swishnet", "conv1d", "conv3d"])
@pytest.mark.parametrize("samples", [1, 3])
def test_smoothgrad_without_noise_is_saliency(samples, name):
    model = models.CASES[name].model(1)
    x = models.inputs_of(model, 2)
    close(raw(smoothgrad, model, x, samples=samples, noise=0.0)[1], raw(gradients, model, x)[1])


def test_a_constant_image_has_no_range_and_so_no_noise():
    model, x = models.gap_dense(1), np.full((1, 8, 8, 3), 0.3, np.float32)
    close(raw(smoothgrad, model, x, samples=3, noise=0.5)[1], raw(gradients, model, x)[1])


def test_the_noise_is_a_fraction_of_each_images_own_range():
    model, x = models.gap_dense(1), models.images(2)
    x[1] *= 100
    together = raw(smoothgrad, model, x, samples=4)[1]
    for i in range(2):
        close(raw(smoothgrad, model, x[i : i + 1], samples=4)[1][0], together[i])


def test_smoothgrad_of_the_smallest_noise_is_near_saliency_and_of_more_noise_is_not():
    model, x = models.swishnet(1), models.images(2)
    want = raw(gradients, model, x)[1]
    close(raw(smoothgrad, model, x, samples=4, noise=1e-4)[1], want, rtol=0.01)
    assert np.abs(raw(smoothgrad, model, x, samples=4)[1] - want).max() > 0.05 * want.max()


def test_signs_cancel_before_the_magnitude_is_taken():
    model, x = models.gap_dense(1), models.images(1)
    mean_of_magnitudes = np.mean([raw(smoothgrad, model, x, samples=1, noise=0.5, seed=s)[1] for s in range(8)], axis=0)
    assert raw(smoothgrad, model, x, samples=8, noise=0.5)[1].mean() < 0.8 * mean_of_magnitudes.mean()


@pytest.mark.parametrize("options", [{"samples": 0}, {"noise": -0.1}])
def test_noise_that_is_none_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=rf"{name}.*{value}"):
        smoothgrad(models.gap_dense(), models.images(1), **options)


# Rows of features


def test_a_row_of_features_keeps_a_value_for_each():
    model, row = models.mlp(1), models.images(2, shape=(6,))
    derivatives = gradients(model, row)[1].numpy()  # their magnitude
    close(np.abs(raw(input_x_gradient, model, row)[1]), derivatives * np.abs(row)[..., np.newaxis])
    close(raw(smoothgrad, model, row, samples=2, noise=0.0)[1], derivatives)
    logits, maps, gap = raw(integrated_gradients, model, row, steps=256, return_gap=True)
    difference = logits - np.asarray(ex.expose(model, "row")(np.zeros_like(row))[0])
    close(maps.sum(axis=1), difference, rtol=0.02)
    np.testing.assert_allclose(gap, maps.sum(axis=1) - difference, atol=1e-5)
