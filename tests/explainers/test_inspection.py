"""`expose` finds the right signals in every shape of model, undoes the softmax, and leaves the model as it was."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import explainers as ex
from explainers.errors import ExplainerError, LayerError, ModelError
from explainers.graph import flatten_model
from explainers.inspection import Exposed
from tests import models, oracle
from tests.comparing import close

every_case = pytest.mark.parametrize("case", models.CASES.values(), ids=models.CASES)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def state_of(model):
    """Everything that surgery could have changed."""
    nodes = {id(layer): len(layer._inbound_nodes) for layer in model._flatten_layers()}
    settings = {id(layer): (layer.trainable, getattr(layer, "activation", None)) for layer in model._flatten_layers()}
    return json.dumps(model.get_config(), default=str), model.to_json(), nodes, settings, len(model.variables)


# What is found


@every_case
def test_the_signal_and_the_logits_are_found_by_name(case):
    exposed = ex.expose(case.model())
    assert exposed.activation_layer == case.activation_layer
    assert exposed.logits_layer == case.logits_layer
    assert exposed.probability == case.probability


@every_case
def test_logits_are_the_scores_before_the_softmax_or_sigmoid(case):
    model = case.model(1)
    exposed = ex.expose(model)
    x = models.inputs_of(model, 3)
    prediction = np.asarray(model(x), np.float64)
    logits = np.asarray(exposed(x)[0], np.float64)
    assert logits.shape == prediction.shape
    if case.probability == "sigmoid":
        close(logits, np.log(prediction / (1 - prediction)))
    elif case.probability == "softmax":
        log = prediction if prediction.max() <= 0 else np.log(prediction)
        close(log_softmax(logits), log)
        # Logarithms of probabilities would pass the line above, but their gradients mix the classes.
        assert np.abs(logits - log).max() > 1e-3
    else:
        close(logits, prediction)


@every_case
def test_stem_split_and_head_are_the_two_halves_of_the_model(case):
    model = case.model(2)
    exposed = ex.expose(model)
    x = models.inputs_of(model, 3)
    logits, activations = exposed(x)
    close(exposed.head(exposed.split(x)), logits)
    close(exposed.stem(x), activations)
    assert exposed.n_classes == logits.shape[-1]
    assert exposed.activation_shape == (None, *activations.shape[1:])


@pytest.mark.parametrize("name", ["gap_dense", "separate_activation", "sequential", "swishnet", "vgg", "mobilenet"])
def test_activations_and_logits_are_those_of_the_oracle(name):
    case = models.CASES[name]
    model = case.model(5)
    stem, head = oracle.read_chain(model, case.activation_layer)
    x = models.inputs_of(model, 2)
    logits, activations = ex.expose(model)(x)
    for i in range(2):
        close(activations[i], oracle.forward(stem, x[i].astype(np.float64)))
        close(logits[i], oracle.forward(stem + head, x[i].astype(np.float64)).reshape(-1))


def test_what_a_nested_model_gives_is_what_the_flat_one_gives():
    nested, flat = models.nested(), models.flattened()
    values = {"/".join(v.path.split("/")[-2:]): v.numpy() for v in nested.weights}
    for variable in flat.weights:
        variable.assign(values["/".join(variable.path.split("/")[-2:])])
    x = models.images(2)
    for got, want in zip(ex.expose(nested)(x), ex.expose(flat)(x), strict=True):
        close(got, want)
    close(ex.methods.cams.gradcam(nested, x)[1], ex.methods.cams.gradcam(flat, x)[1])


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize(
    "name", ["gap_dense", "doubly_nested", "mobilenet", "sequential", "squeezenet", "softmax_layer"]
)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_loaded_model_gives_what_the_fresh_one_gives(name, suffix, tmp_path):
    case = models.CASES[name]
    model = case.model(3)
    model.save(tmp_path / f"model.{suffix}")
    loaded = ex.expose(keras.models.load_model(tmp_path / f"model.{suffix}"))
    assert (loaded.activation_layer, loaded.logits_layer) == (case.activation_layer, case.logits_layer)
    x = models.images(2)
    for got, want in zip(loaded(x), ex.expose(model)(x), strict=True):
        close(got, want)
    close(ex.methods.cams.gradcam(loaded, x)[1], ex.methods.cams.gradcam(model, x)[1])


@pytest.mark.parametrize("name", ["normalized_features", "normalized_score_maps", "gap_dense", "conv_gap", "residual"])
def test_a_convolution_ahead_of_its_normalisation_is_never_chosen(name):
    model = models.CASES[name].model()
    chosen = model.get_layer(ex.expose(model).activation_layer)
    assert not isinstance(chosen, layers.Conv2D)


def test_a_convolution_ahead_of_its_normalisation_is_allowed_when_asked_for():
    model = models.gap_dense()
    exposed = ex.expose(model, "block2_conv")
    x = models.images(2)
    assert exposed.activation_layer == "block2_conv"
    close(exposed(x)[1], keras.Model(model.input, model.get_layer("block2_conv").output)(x))


def test_the_choice_is_logged_and_a_named_one_is_not(caplog):
    with caplog.at_level("INFO", logger="explainers"):
        ex.expose(models.nested())
    assert "nested: explaining the signal 'backbone.block2_out' (4, 4, 6), logits of 'predictions'" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", logger="explainers"):
        ex.expose(models.nested(), "backbone.block1_out")
    assert caplog.text == ""


def test_dropout_and_normalisation_run_as_in_inference_even_under_a_training_call():
    model = models.dropout()
    exposed, x = ex.expose(model), models.images(2)
    before = [v.numpy() for v in model.non_trainable_variables]
    first, second = exposed(x), exposed(x, training=True)
    for got, want in zip(second, first, strict=True):
        close(got, want)
    for variable, value in zip(model.non_trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_layer_of_one_class_kernel_keeps_its_class_axis():
    for build in (models.mobilenet, models.conv_gap, models.gap_dense):
        exposed = ex.expose(build(classes=1, activation="sigmoid"))
        assert exposed.class_kernel().shape == (6, 1)


@every_case
def test_the_kernel_of_cam_is_there_exactly_where_cam_is_defined(case):
    exposed = ex.expose(case.model())
    assert (exposed.class_kernel is not None) == case.cam
    assert bool(exposed.why_no_cam) != case.cam


def test_an_exposed_model_is_returned_as_it_is_and_can_be_cut_elsewhere():
    exposed = ex.expose(models.gap_dense())
    assert ex.expose(exposed) is exposed
    again = ex.expose(exposed, "block1_out")
    assert isinstance(again, Exposed)
    assert (again.activation_layer, again.source) == ("block1_out", exposed.source)


def test_a_layer_that_is_called_twice_is_cut_at_the_call_that_was_named():
    model = models.shared_layer(2)
    conv, x = model.get_layer("conv"), models.images(2)
    close(ex.expose(model, {"name": "conv", "node": 0})(x)[1], conv(x))
    close(ex.expose(model, {"name": "conv", "node": 1})(x)[1], conv(conv(x)))
    close(ex.expose(model)(x)[1], conv(conv(x)))


def test_a_nested_model_that_is_called_with_a_dict_gets_each_tensor_at_its_input():
    b, a = keras.Input((8, 8, 3), name="b"), keras.Input((8, 8, 3), name="a")
    inner = keras.Model([b, a], layers.Subtract()([b, a]), name="inner")
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 3)(inner({"a": image, "b": layers.Rescaling(3.0)(image)}))
    model = models.randomize(keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))), 0)
    x = models.images(2)
    close(ex.expose(model)(x)[0], model(x))


def gap_with_head(head):
    image = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(4, 3, name="conv")(image))
    return models.randomize(keras.Model(image, head(x)), 0)


class OwnHead(layers.Layer):
    """Keeps its softmax in an attribute of the usual name, and its kernel out of sight."""

    def __init__(self, **options):
        super().__init__(**options)
        self.activation = keras.activations.softmax
        self.inner = layers.Dense(models.CLASSES)

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, x):
        return self.activation(self.inner(x))


class OwnDense(layers.Dense):
    """Keras' dense layer with a constructor of its own."""

    def __init__(self, **options):
        super().__init__(models.CLASSES, activation="softmax", **options)


def test_a_layer_with_a_call_of_its_own_is_left_whole():
    model = gap_with_head(OwnHead())
    exposed, x = ex.expose(model), models.images(2)
    assert exposed.probability is None
    close(exposed(x)[0], model(x))


def test_the_activation_of_a_layer_with_a_constructor_of_its_own_is_undone():
    model = gap_with_head(OwnDense(name="own"))
    exposed, x = ex.expose(model), models.images(2)
    assert (exposed.probability, exposed.logits_layer) == ("softmax", "own")
    kernel, bias = model.get_layer("own").get_weights()
    close(exposed(x)[0], np.asarray(exposed(x)[1]).mean(axis=(1, 2)) @ kernel + bias)


@pytest.mark.parametrize("moved", [layers.Permute((3, 1, 2)), layers.Reshape((18, 8, 1))])
def test_positions_that_were_moved_about_are_no_signal(moved):
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(moved(layers.Conv2D(4, 3, activation="relu", name="conv")(image)))
    assert ex.expose(keras.Model(image, layers.Dense(2)(x))).activation_layer == "conv"


def test_a_nested_model_that_is_called_twice_is_cut_at_its_last_call():
    image, body = keras.Input((8, 8, 3)), models.backbone()
    x = layers.Subtract(name="difference")([body(image), body(layers.Rescaling(-1.0)(image))])
    x = layers.Dense(models.CLASSES, name="predictions")(layers.GlobalAveragePooling2D()(x))
    model, x = models.randomize(keras.Model(image, x), 0), models.images(2)
    whole, part = ex.expose(model), ex.expose(model, "backbone")
    assert (whole.activation_layer, part.activation_layer) == ("difference", "backbone.block2_out")
    close(whole(x)[0], model(x))
    close(part(x)[0], model(x))
    close(part(x)[1], body(-x))


# Residual branches


def residual_parts(model):
    """The oracle's layers of `models.residual`, by hand: what lies behind `branch_out` beside the skip."""
    conv, bn = model.get_layer("last_conv"), model.get_layer("last_bn")
    double = [[np.asarray(w, np.float64) for w in layer.get_weights()] for layer in (conv, bn)]
    kernel, bias = (np.asarray(w, np.float64) for w in model.get_layer("predictions").get_weights())
    branch = [oracle.Conv(*double[0], padding="same"), oracle.BatchNorm(*double[1], bn.epsilon)]
    return branch, [oracle.Relu(), oracle.GlobalAverage(), oracle.Dense(kernel, bias)]


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_inside_a_residual_branch_sees_the_skip(seed):
    model = models.residual(seed)
    exposed = ex.expose(model, "branch_out")
    x = models.images(1, seed)
    activations, skip = exposed.split(x)
    close(skip, keras.Model(model.input, model.get_layer("stem_out").output)(x))
    with tf.GradientTape() as tape:
        tape.watch(activations)
        logits = exposed.head([activations, skip])
        score = logits[0, 2]
    branch, tail = residual_parts(model)
    beside = np.asarray(skip[0], np.float64)

    def y(signal):
        return oracle.forward(tail, beside + oracle.forward(branch, signal))[2]

    close(score, y(np.asarray(activations[0], np.float64)))
    close(tape.gradient(score, activations)[0], oracle.numeric_gradient(y, activations[0]), rtol=1e-4)


def test_grad_cam_inside_a_residual_branch_is_that_of_the_numeric_gradient():
    model = models.residual(4)
    x = models.images(1, 4)
    exposed = ex.expose(model, "branch_out")
    activations, skip = (np.asarray(signal[0], np.float64) for signal in exposed.split(x))
    branch, tail = residual_parts(model)
    g = oracle.numeric_gradient(lambda a: oracle.forward(tail, skip + oracle.forward(branch, a))[1], activations)
    _, maps = ex.methods.cams.gradcam(exposed, x, tf.constant([[1]]))
    close(maps[0, ..., 0], activations @ g.mean(axis=(0, 1)), rtol=1e-4)


def test_a_cut_behind_the_addition_needs_no_skip():
    exposed = ex.expose(models.residual())
    assert len(exposed.head.input_slots) == 1


# The user's model


@every_case
def test_the_users_model_is_unchanged(case):
    model = case.model(1)
    x = models.inputs_of(model, 2)
    before, prediction = state_of(model), np.asarray(model(x))
    weights = model.get_weights()
    exposed = ex.expose(model)
    ex.methods.cams.gradcam(exposed, x)
    ex.methods.gradient.gradients(exposed, x)
    assert state_of(model) == before
    np.testing.assert_array_equal(np.asarray(model(x)), prediction)
    for got, want in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(got, want)
    if case is not models.CASES["shared_layer"]:  # Keras itself has no `output` for a layer with two
        assert all(layer.output is not None for layer in model.layers)


def test_assigned_weights_reach_programs_that_were_compiled_before():
    model = models.gap_dense()
    exposed, x = ex.expose(model), models.images(2)
    logits, maps = ex.explain("cam", exposed, x, postprocessing=None, resizing=None)
    kernel, bias = model.get_layer("predictions").weights
    kernel.assign(3 * kernel)
    bias.assign(3 * bias)
    tripled_logits, tripled_maps = ex.explain("cam", exposed, x, postprocessing=None, resizing=None)
    close(tripled_logits, 3 * logits)
    close(tripled_maps, 3 * maps)
    close(exposed(x)[0], 3 * logits)
    model.get_layer("block1_conv").kernel.assign(tf.zeros_like(model.get_layer("block1_conv").kernel))
    activations = exposed(x)[1]
    close(activations[0], activations[1])  # nothing of the image gets past a kernel of zeros


def test_the_exposed_model_owns_no_weights_of_its_own():
    model = models.gap_dense()
    exposed = ex.expose(model)
    exposed(models.images(1))
    assert {id(v) for v in exposed.weights} <= {id(v) for v in model.weights}


@pytest.mark.parametrize("frozen_before", [False, True])
@pytest.mark.parametrize("frozen_after", [False, True])
def test_freezing_and_thawing_change_no_logit(frozen_before, frozen_after):
    model = models.gap_dense(6)
    x = models.images(2)
    want = log_softmax(np.log(np.asarray(model(x), np.float64)))
    model.trainable = not frozen_before
    exposed = ex.expose(model)
    close(log_softmax(exposed(x)[0]), want)
    model.trainable = not frozen_after
    close(log_softmax(exposed(x)[0]), want)


def test_training_goes_on_after_expose_and_the_exposed_model_follows():
    model = models.gap_dense(2)
    x, exposed = models.images(8), ex.expose(model)
    before = np.asarray(exposed(x)[0])
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(8) % models.CLASSES, epochs=1, verbose=0)
    after = np.asarray(exposed(x)[0])
    assert np.abs(after - before).max() > 1e-3
    close(log_softmax(after), np.log(np.asarray(model(x), np.float64)))


# Endpoints


def nested_block1(model):
    return model.get_layer("backbone").get_layer("block1_out")


@pytest.mark.parametrize(
    "describe",
    [
        lambda _: "backbone.block1_out",
        lambda _: "block1_out",
        lambda _: ("backbone", "block1_out"),
        lambda _: ["backbone", "block1_out"],
        nested_block1,
        lambda _: {"name": "backbone.block1_out"},
        lambda _: {"name": ("backbone", "block1_out"), "link": "output"},
        lambda model: {"layer": nested_block1(model)},
        lambda _: {"name": "block2_conv", "link": "input"},
    ],
    ids=["dotted", "bare", "tuple", "list", "layer", "dict", "dict of tuple", "dict of layer", "input of the next"],
)
def test_every_form_of_an_endpoint_means_the_same_signal(describe):
    model = models.nested(3)
    x = models.images(2)
    exposed = ex.expose(model, describe(model))
    backbone = model.get_layer("backbone")
    want = keras.Model(backbone.input, backbone.get_layer("block1_out").output)(model.get_layer("rescaling")(x))
    assert exposed.activation_layer == "backbone.block1_out"
    close(exposed(x)[1], want)
    close(log_softmax(exposed(x)[0]), np.log(np.asarray(model(x), np.float64)))


@pytest.mark.parametrize("index", [3, -6, np.int64(3)])
def test_an_index_counts_the_models_own_layers(index):
    model = models.gap_dense()
    exposed = ex.expose(model, index)
    assert exposed.activation_layer == model.layers[3].name == "block1_out"


@pytest.mark.parametrize(
    "endpoint", ["middle.v1.inner.v2", "inner.v2", ("middle.v1", "inner.v2"), "layer", {"name": "middle.v1.inner.v2"}]
)
def test_a_nested_model_stands_for_its_output(endpoint):
    model = models.doubly_nested()
    if endpoint == "layer":
        endpoint = model.get_layer("middle.v1").get_layer("inner.v2")
    assert ex.expose(model, endpoint).activation_layer == "middle.v1.inner.v2.block2_out"


def test_the_input_of_a_nested_model_can_be_explained():
    model = models.nested()
    exposed, x = ex.expose(model, {"name": "backbone", "link": "input"}), models.images(2)
    assert exposed.activation_layer == "rescaling"
    close(exposed(x)[1], 0.5 * x + 0.1)


@pytest.mark.parametrize("endpoint", [0, "image", {"name": "image", "link": "output"}])
def test_the_models_input_is_an_endpoint(endpoint):
    exposed, x = ex.expose(models.gap_dense(), endpoint), models.images(2)
    close(exposed(x)[1], x)


@pytest.mark.parametrize(("name", "classes"), [("animal", models.CLASSES), ("colour", 2)])
def test_one_of_several_outputs_is_explained_by_its_name(name, classes):
    model = models.multi_output()
    exposed, x = ex.expose(model, outputs=name), models.images(2)
    logits = np.asarray(exposed(x)[0], np.float64)
    prediction = np.asarray(model(x)[0 if name == "animal" else 1], np.float64)
    assert (exposed.logits_layer, exposed.n_classes) == (name, classes)
    if name == "animal":
        close(log_softmax(logits), np.log(prediction))
    else:
        close(logits, np.log(prediction / (1 - prediction)))


@pytest.mark.parametrize("outputs", ["scores", "probabilities", -1, -2, {"name": "probabilities", "link": "input"}])
def test_logits_are_the_same_whether_scores_or_probabilities_are_named(outputs):
    model = models.gap_dense_activation()
    exposed, x = ex.expose(model, outputs=outputs), models.images(2)
    assert exposed.logits_layer == "scores"
    np.testing.assert_array_equal(exposed(x)[0], ex.expose(model)(x)[0])


def test_the_logits_layer_and_nested_layers_can_be_looked_up():
    model = models.nested()
    backbone = model.get_layer("backbone")
    assert ex.inspection.get_logits_layer(model) is model.get_layer("predictions")
    assert ex.inspection.get_logits_layer(models.mobilenet()).name == "conv_preds"
    assert ex.inspection.get_logits_layer(models.multi_output(), "colour").name == "colour"
    assert ex.inspection.get_nested_layer(model, "backbone.block1_bn") is backbone.get_layer("block1_bn")
    assert ex.inspection.get_nested_layer(model, ("backbone", "block1_bn")) is backbone.get_layer("block1_bn")
    assert ex.inspection.get_nested_layer(model, "backbone") is backbone


# Errors


def channels_first():
    image = keras.Input((3, 8, 8))
    x = layers.Conv2D(3, 3, data_format="channels_first", name="conv")(image)
    return keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D(data_format="channels_first")(x)))


def unbuilt():
    return keras.Sequential([layers.Conv2D(3, 3), layers.GlobalAveragePooling2D(), layers.Dense(2)])


@pytest.mark.parametrize(
    ("build", "arguments", "error", "text"),
    [
        (models.gap_dense, "block2out", LayerError, "no layer 'block2out'. Did you mean 'block2_out'?"),
        (models.gap_dense, "block2out", LayerError, r"The last spatial signals are: .*block2_out \(4, 4, 6\)$"),
        (models.nested, "backbone.block1", LayerError, "Did you mean 'backbone.block1_"),
        (models.nested, "backbon", LayerError, "Did you mean 'backbone'?"),
        (models.gap_dense, layers.Dense(1, name="stranger"), LayerError, "no layer 'stranger'"),
        (models.twins, "block2_out", LayerError, "not unique: write one of left.block2_out, right.block2_out"),
        (models.gap_dense, 10, LayerError, "the model has 9 layers, so there is no layer 10"),
        (models.gap_dense, 1.5, LayerError, "an endpoint is a layer's name, .* not 1.5"),
        (models.gap_dense, {"name": "pool", "link": "middle"}, LayerError, "'input' or 'output', not 'middle'"),
        (models.gap_dense, "predictions", LayerError, "do not depend on the signal 'predictions'"),
        (models.shared_layer, {"name": "conv", "node": 2}, LayerError, "'conv'"),
        (models.multi_output, None, ModelError, r"2 outputs \(animal, colour\): name the one .*outputs='animal'"),
        (models.segmentation, None, ModelError, r"the shape \(N, classes\), and this one has \(None, 4, 4, 5\)"),
        (models.mlp, None, ModelError, r"inputs with positions, .*reads \[\(None, 6\)\]: only gradients"),
        (models.linear_image, None, ModelError, "no spatial signal: .*gradients, which needs none"),
        (models.Subclassed, None, ModelError, "'Subclassed' computes its output in a `call` of its own"),
        (unbuilt, None, ModelError, r"was not: give it a keras.Input .*model.build\(\(None, height, width, channels"),
        (channels_first, None, ModelError, "'conv' has 'channels_first': rebuild the model"),
        (lambda: 3, None, ModelError, "a Keras model is needed, got int: 3"),
    ],
)
def test_an_error_names_the_rule_the_value_and_the_way_out(build, arguments, error, text):
    with pytest.raises(error, match=text.replace("?", r"\?")):
        ex.expose(build(), arguments)


def test_a_signal_that_the_logits_do_not_depend_on_is_refused():
    with pytest.raises(
        LayerError, match="the logits of 'animal' do not depend on the signal 'colour': choose a layer on"
    ):
        ex.expose(models.multi_output(), "colour", "animal")


def test_a_layer_of_another_model_is_refused_although_its_name_is_known():
    with pytest.raises(LayerError, match="block1_out"):
        ex.expose(models.gap_dense(), models.gap_dense().get_layer("block1_out"))


def test_every_error_is_a_value_error_of_one_family():
    for error in (LayerError, ModelError, ex.errors.MethodError, ex.errors.InputError):
        assert issubclass(error, ExplainerError)
        assert issubclass(error, ValueError)


def test_the_signal_is_one_that_all_evidence_passes_through():
    image = keras.Input((16, 16, 3))
    trunk = keras.layers.Conv2D(4, 3, padding="same", name="trunk")(image)
    left = keras.layers.Conv2D(4, 3, padding="same", name="left")(trunk)
    right = keras.layers.Conv2D(4, 3, padding="same", name="right")(trunk)
    pooled = [keras.layers.GlobalAveragePooling2D()(branch) for branch in (left, right)]
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.Concatenate()(pooled)))
    assert ex.expose(model).activation_layer == "trunk"


def test_padding_is_never_the_signal():
    image = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = keras.layers.Flatten()(keras.layers.ZeroPadding2D(name="pad")(x))
    assert ex.expose(keras.Model(image, keras.layers.Dense(3)(x))).activation_layer == "conv"


# Layouts of other kinds


@pytest.mark.parametrize("training", [False, True, None])
def test_augmentation_inside_the_model_does_nothing(training):
    model, x = models.augmented(1), models.images(2)  # `model(x)` would augment: Keras' layers do unless told otherwise
    exposed = ex.expose(model)
    logits, activations = exposed(x, training=training)
    assert exposed.activation_layer == "block2_out"
    close(log_softmax(logits), np.log(np.asarray(model.predict(x, verbose=0), np.float64)))
    close(exposed.stem(x), activations)
    close(ex.methods.cams.gradcam(exposed, x)[0], logits)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["vgg", "mobilenet", "squeezenet", "nested", "residual", "squeeze_excite", "swishnet",
                                  "sequential", "relu6net", "sigmoid", "one_unit"])  # fmt: skip
def test_half_precision_changes_nothing_but_the_last_digits(name, policy):
    case = models.CASES[name]
    single = ex.expose(case.model(4))
    keras.config.set_dtype_policy(policy)
    try:
        half = ex.expose(case.model(4))
    finally:
        keras.config.set_dtype_policy("float32")
    assert (half.activation_layer, half.logits_layer) == (case.activation_layer, case.logits_layer)
    assert (half.probability, half.class_kernel is None) == (single.probability, single.class_kernel is None)
    x, rtol = models.inputs_of(half.source, 3), 0.02 if policy == "mixed_float16" else 0.1
    assert half(x)[1].dtype == policy.removeprefix("mixed_")
    for got, want in zip(ex.methods.cams.gradcam(half, x), ex.methods.cams.gradcam(single, x), strict=True):
        assert got.dtype == tf.float32
        close(got, want, rtol)


@pytest.mark.parametrize("size", [(6, 11), (9, 4)])
def test_a_model_of_open_size_explains_every_size(size):
    model = models.dynamic(2)
    exposed, x = ex.expose(model), models.images(2, shape=(*size, 3))
    assert exposed.activation_shape == (None, None, None, 6)
    logits, maps = ex.methods.cams.cam(exposed, x)
    close(log_softmax(logits), np.log(np.asarray(model(x), np.float64)))
    assert maps.shape == (2, -(-size[0] // 2), -(-size[1] // 2), models.CLASSES)
    close(np.mean(maps, axis=(1, 2)) + model.get_layer("predictions").bias.numpy(), logits)


def test_a_pool_of_the_signals_own_size_is_a_global_average():
    model = models.average_pooled(3)
    x, (kernel, bias) = models.images(2), model.get_layer("predictions").get_weights()
    logits, maps = ex.methods.cams.cam(model, x)
    close(maps, np.asarray(ex.expose(model)(x)[1]) @ kernel)
    close(np.mean(maps, axis=(1, 2)) + bias, logits)


@pytest.mark.parametrize("pool", [layers.AveragePooling2D(2), layers.AveragePooling2D(4, strides=1, padding="same")])
def test_a_pool_that_leaves_positions_is_none(pool):
    image = keras.Input((4, 4, 3))
    x = layers.Dense(3)(pool(layers.Conv2D(2, 1, name="conv")(image)))
    assert ex.expose(keras.Model(image, layers.Flatten()(x)), "conv").class_kernel is None


def test_an_output_of_one_position_is_taken_as_a_row_of_logits():
    model, x = models.kept_axes(1), models.images(2)
    exposed = ex.expose(model)
    assert exposed.activation_layer == "block2_out"
    assert ex.inspection.get_logits_layer(model) is model.get_layer("conv_preds")
    assert (exposed.probability, exposed.n_classes) == ("softmax", models.CLASSES)
    assert model(x).shape == (2, 1, 1, models.CLASSES)
    close(log_softmax(exposed(x)[0]), np.log(np.asarray(model(x), np.float64)[:, 0, 0]))
    kernel, bias = model.get_layer("conv_preds").get_weights()
    close(exposed(x)[0], np.asarray(exposed(x)[1]).mean(axis=(1, 2)) @ kernel[0, 0] + bias)


def test_an_output_is_named_by_its_key_where_the_model_returns_a_dict():
    two = models.multi_output(2)
    model, x = keras.Model(two.input, {"what": two.outputs[0], "hue": two.outputs[1]}), models.images(2)
    for key, layer in (("what", "animal"), ("hue", "colour")):
        exposed = ex.expose(model, outputs=key)
        assert exposed.logits_layer == layer
        np.testing.assert_array_equal(exposed(x)[0], ex.expose(two, outputs=layer)(x)[0])
    with pytest.raises(ModelError, match=r"2 outputs \(hue, what\): name the one .*outputs='hue'"):
        ex.expose(model)


def test_a_model_that_returns_a_dict_of_one_needs_no_name():
    plain, x = models.gap_dense(2), models.images(2)
    exposed = ex.expose(keras.Model(plain.input, {"probabilities": plain.output}))
    np.testing.assert_array_equal(exposed(x)[0], ex.expose(plain)(x)[0])


def test_outputs_of_a_nested_model_are_told_by_their_paths():
    image = keras.Input((8, 8, 3))
    model, x = keras.Model(image, models.multi_output(3)(image)), models.images(2)
    with pytest.raises(ModelError, match=r"2 outputs \(two.animal, two.colour\)"):
        ex.expose(model)
    assert ex.expose(model, outputs="two.colour").n_classes == 2
    close(ex.expose(model, outputs="two.animal")(x)[0], ex.expose(models.multi_output(3), outputs="animal")(x)[0])


def test_the_classifier_may_be_a_layer_with_a_kernel_out_of_sight():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, name="second")(layers.Conv2D(4, 3, name="first")(image))
    x = layers.Softmax()(OwnHead(name="own")(layers.GlobalAveragePooling2D()(x)))
    exposed = ex.expose(keras.Model(image, x))
    assert (exposed.activation_layer, exposed.logits_layer) == ("second", "own")


def test_slopes_of_a_rectifier_are_no_classifier():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(models.CLASSES, 1, name="score_maps")(models._features(image))
    x = layers.GlobalAveragePooling2D()(layers.PReLU(shared_axes=[1, 2])(x))
    assert ex.expose(keras.Model(image, layers.Softmax()(x))).activation_layer == "block2_out"


def test_a_frozen_body_under_training_keeps_its_signal_and_the_head_moves_on():
    model, x = models.nested(5), models.images(8)
    model.get_layer("backbone").trainable = False
    exposed = ex.expose(model)
    logits, activations = exposed(x)
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(x, np.arange(8) % models.CLASSES, epochs=2, verbose=0)
    moved, same = exposed(x)
    np.testing.assert_array_equal(same, activations)
    assert np.abs(np.asarray(moved) - np.asarray(logits)).max() > 1e-3
    close(log_softmax(moved), np.log(np.asarray(model(x), np.float64)))


def test_score_maps_of_the_image_itself_are_the_signal():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(models.CLASSES, 3, name="score_maps")(layers.Rescaling(0.1)(image))
    x = layers.Softmax()(layers.GlobalAveragePooling2D()(x))
    assert ex.expose(keras.Model(image, x)).activation_layer == "score_maps"


def ensemble():
    image, members = keras.Input((8, 8, 3)), [models.gap_dense(seed) for seed in range(2)]
    for member, name in zip(members, ("first", "second"), strict=True):
        member.name = name
    return keras.Model(image, layers.Average()([member(image) for member in members]))


def rescaled_image():
    image = keras.Input((8, 8, 3))
    return keras.Model(image, layers.Dense(2)(layers.Flatten()(layers.Rescaling(0.1)(image))))


def grey():
    image = keras.Input((8, 6))
    x = layers.Conv2D(3, 3, activation="relu", name="conv")(layers.Reshape((8, 6, 1))(image))
    return models.randomize(keras.Model(image, layers.Dense(2)(layers.Flatten()(x))), 0)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (ensemble, "several spatial signals, and none that all .* name one .* such as 'second.block2_out'"),
        (models.two_streams, "several spatial signals, .* such as '(left|right)_out', and maps tell of that"),
        (rescaled_image, "no spatial signal: .* behind a convolution. Name one with arguments=, or use gradients"),
        (grey, r"reads \(None, 8, 6\): .*keras.Input\(\(8, 6, 1\)\), .*Reshape\(\(8, 6\)\), model\]\)"),
    ],
)
def test_a_model_without_a_signal_of_its_own_is_refused_with_the_way_out(build, text):
    with pytest.raises(ModelError, match=text):
        ex.expose(build())


def test_one_branch_of_several_is_explained_when_asked_for():
    model, x = models.two_streams(1), models.images(2)
    exposed = ex.expose(model, "right_out")
    assert len(exposed.head.input_slots) == 2
    close(log_softmax(exposed(x)[0]), np.log(np.asarray(model(x), np.float64)))


def test_grey_images_are_explained_with_an_axis_for_their_channel():
    model, x = grey(), models.images(2, shape=(8, 6, 1))
    exposed = ex.expose(keras.Sequential([keras.Input((8, 6, 1)), layers.Reshape((8, 6)), model]))
    assert exposed.activation_shape == (None, 6, 4, 3)
    close(exposed(x)[0], model(x[..., 0]))
    assert ex.gradcam(exposed, x)[1].shape == (2, 8, 6, 2)


def beside_a_row():
    image, row = keras.Input((8, 8, 3)), keras.Input((4,))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(layers.Conv2D(3, 3)(image)))
    y = layers.Dense(3)(layers.Dense(3)(layers.Dense(3)(row)))
    return keras.Model([image, row], layers.Dense(2)(layers.Concatenate()([x, y])))


@pytest.mark.parametrize(
    "build",
    [*(case.model for case in models.CASES.values()), models.vit, beside_a_row],
    ids=[*models.CASES, "vit", "beside_a_row"],
)
def test_bottlenecks_are_the_signals_without_which_nothing_of_the_image_arrives(build):
    graph = flatten_model(build())
    image, logits = graph.inputs[0], graph.outputs[0]
    informed = {slot.index for step in graph.descendants(image) for slot in step.outputs}

    def cuts_off(slot):
        return all(image not in step.inputs for step in graph.ancestors([logits], stop=[slot]))

    slots = [slot for step in graph.ancestors([logits]) for slot in step.outputs if slot.index in informed]
    want = [slot.index for slot in reversed(slots) if slot.index != logits.index and cuts_off(slot)]
    assert [slot.index for slot in graph.bottlenecks(logits, [image])] == [*want, image.index]
