"""The table of methods is complete, finds methods by name or function, and helps with a misspelt one."""

import inspect
import re

import numpy as np
import pytest
import tensorflow as tf

import explainers as ex
from explainers import filters
from explainers.errors import MethodError
from explainers.methods import registry, signals, specs
from tests import models

every_method = pytest.mark.parametrize("method", ex.METHODS.values(), ids=ex.METHODS)


@every_method
def test_a_method_is_kept_under_its_own_name(method):
    assert ex.METHODS[method.name] is method
    assert specs.get_method(method.name) is method
    assert repr(method) == f"Method({method.name!r})"
    assert method.title
    assert "arXiv:" in method.paper or "doi:" in method.paper
    assert method.needs
    assert method.cost


@every_method
def test_a_method_is_found_behind_its_function_and_behind_a_traced_one(method):
    assert registry.method_of(method.function) is method
    assert registry.method_of(tf.function(method.function)) is method


def test_a_strangers_function_is_no_method():
    assert registry.method_of(lambda model, inputs, indices: None) is None


@every_method
def test_every_function_has_the_same_form_and_cites_its_paper(method):
    assert list(inspect.signature(method.function).parameters)[:3] == ["model", "inputs", "indices"]
    assert re.search(r"(?:arXiv|doi):(\S+)", method.paper)[1] in inspect.getdoc(method.function)


@every_method
def test_every_method_has_a_shortcut_that_post_processes_as_its_paper(method):
    shortcut = getattr(ex, method.name)
    assert shortcut.__name__ == method.name
    assert method.title in shortcut.__doc__
    model, x = models.gap_dense(), models.images(2)
    y = np.array([[1], [3]])
    logits, maps = shortcut(model, x, y, resizing=None)
    raw_logits, raw_maps = method.function(model, x, y)
    np.testing.assert_allclose(logits, raw_logits, rtol=1e-5)
    np.testing.assert_allclose(maps, method.postprocessing(raw_maps), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "postprocessing"),
    [
        ("cam", filters.positive_normalize),
        ("gradcam", filters.positive_normalize),
        ("gradients", filters.clip_normalize),
        ("integrated_gradients", filters.clip_normalize),
        ("full_gradients", filters.normalize),
        ("scorecam", filters.positive_normalize),
    ],
)
def test_maps_are_shown_as_in_the_papers(name, postprocessing):
    assert ex.METHODS[name].postprocessing is postprocessing


@every_method
def test_the_shared_algebra_is_that_of_the_function(method):
    if method.combine is None:
        assert (method.reads_gradients, method.reads_weights) == (False, False)
        return
    exposed, x = ex.expose(models.gap_dense(2)), models.images(2)
    units = tf.constant([[1, 4], [0, 2]])
    activations = exposed.split(x)
    _, gradient = signals.differentiate_head(exposed, [activations], lambda _: units)
    shared = signals.Signals(
        activations=activations,
        units=units,
        gradients=gradient if method.reads_gradients else None,
        weights=signals.gather_weights(exposed, units) if method.reads_weights else None,
    )
    np.testing.assert_allclose(method.combine(shared), method.function(exposed, x, units)[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("grad_cam", "there is no method 'grad_cam'. Did you mean 'gradcam'? The methods are: cam, gradcam"),
        ("gradient", "Did you mean 'gradients'?"),
        ("GradCAM", "there is no method 'GradCAM'"),
        ("zzz", "there is no method 'zzz'. The methods are: "),
    ],
)
def test_an_unknown_name_lists_the_nearest_and_all(name, text):
    with pytest.raises(MethodError) as caught:
        specs.get_method(name)
    assert text in str(caught.value)
    assert all(known in str(caught.value) for known in ex.METHODS)


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("gradcam", "gradcam", {}),
        (" scorecam( channels = 4 )", "scorecam(channels=4)", {"channels": 4}),
        ("rise(masks=8, grid=2)", "rise(grid=2, masks=8)", {"masks": 8, "grid": 2}),
        ("occlusion(size=(3,4))", "occlusion(size=(3, 4))", {"size": (3, 4)}),
    ],
)
def test_options_in_brackets_are_given_to_the_function(spec, name, options):
    method = specs.get_method(spec)
    assert method.name == name
    model, x, y = models.gap_dense(), models.images(2), np.array([[1], [3]])
    want = ex.METHODS[name.split("(")[0]].function(model, x, y, **options)[1]
    np.testing.assert_array_equal(method.function(model, x, y)[1], want)


def test_a_meta_method_in_brackets_is_that_of_the_library():
    method = specs.get_method("meta.tta(meta.smooth(gradcam, repetitions=3, noise=0.2), scales=())")
    assert method.name == "meta.tta(meta.smooth(gradcam, noise=0.2, repetitions=3), scales=())"
    model, x, y = models.gap_dense(), models.images(2), np.array([[1], [3]])
    want = ex.methods.meta.tta(ex.methods.meta.smooth(ex.methods.cams.gradcam, 3, 0.2), ())(model, x, y)[1]
    np.testing.assert_array_equal(method.function(model, x, y)[1], want)
    assert (method.combine, method.seeded, method.spatial) == (None, True, True)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("scorecam(channel=4)", "scorecam has no option 'channel'. Did you mean 'channels'?"),
        ("gradcam(channels=4)", "gradcam has no option 'channels'. Its options are: none"),
        ("scorecam(4)", "options of scorecam are given by name, such as channels=..."),
        ("scorecam(channels=many)", "the option 'channels' of scorecam is a number, a text or a tuple, not 'many'"),
        ("meta.smooth", r"meta.smooth is made of a method, as in meta.smooth(gradcam)"),
        ("meta.smooth()", "meta.smooth is made of one method"),
        ("meta.smooth(gradcamm)", "there is no method 'gradcamm'. Did you mean 'gradcam'?"),
        ("meta.tta(gradcam, scales=(0.5))", "scales are factors above 0, such as (0.5,) or (), not 0.5"),
        ("meta.smooth(gradcam, noise='a')", "noise is a fraction of the image's range, at least 0, not 'a'"),
        ("gradcam(", "there is no method 'gradcam('"),
        ("__import__('os').system('true')", "there is no method"),
    ],
)
def test_wrong_options_are_told(spec, text):
    with pytest.raises(ex.errors.ExplainerError) as caught:
        specs.get_method(spec)
    assert text in str(caught.value)


def test_the_same_spec_is_the_same_function():
    assert specs.get_method("scorecam(channels=4)").function is specs.get_method("scorecam(channels=4)").function


def test_the_public_names_are_there_once():
    assert len(set(ex.__all__)) == len(ex.__all__)
    assert all(hasattr(ex, name) for name in ex.__all__)
    assert ex.methods.METHODS is ex.METHODS
