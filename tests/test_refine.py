"""Distillation: better where it can be, never worse, and the size stays."""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcompress.compression.method_spec import parse
from onnxcompress.compression.validate.fidelity import Fidelity, scores
from onnxcompress.core.errors import DataError
from onnxcompress.core.statistics import Statistics
from onnxcompress.data.samples import Samples, from_batches
from onnxcompress.execution.cache import Cache
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_layers, load, rewrite, save, with_values
from onnxcompress.refinement.train import refine
from tests.models import images, layer_model, network

with warnings.catch_warnings():  # Importing torch warns.
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="refinement needs torch")
    from onnxcompress.refinement import trainer
    from onnxcompress.refinement.checkpoints import Checkpoints, key_of
    from onnxcompress.refinement.parameters import find_parameters, matrices, trainable
    from onnxcompress.refinement.straight_through import find_lookups
    from onnxcompress.refinement.teacher import choose_hints
    from onnxcompress.refinement.torch_graph import TorchGraph
    from onnxcompress.refinement.torch_ops.operator import tensor

METHODS = ("basis", "integer:bits=4", "codebook:vector=4", "hashed:share=2", "binary:stacks=2")


def samples_of(rng, count=96):
    whole = np.concatenate([batch["x"] for batch in images(rng, count)])
    return Samples(lambda rows: {"x": whole[rows]}, np.arange(count), 16, exact=False)


def labelled_by(teacher, samples, exact=False):
    """The same samples with the teacher's top classes as labels."""
    session = Session(teacher)
    labels = np.concatenate([session.run(batch)[0].argmax(1) for batch in samples])
    if not exact:
        return replace(samples, read_labels=lambda rows: labels[rows])
    batches, size = list(samples), samples.batch
    return Samples(
        lambda rows: batches[int(rows[0])],
        np.arange(len(batches)),
        read_labels=lambda rows: np.concatenate([labels[i * size : (i + 1) * size] for i in rows]),
    )


def cross_entropy(model, samples):
    session = Session(model)
    logits = np.concatenate([scores(session.run(batch)[0])[0] for batch in samples])
    logarithms = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -logarithms[np.arange(len(logits)), samples.labels].mean()


def stopping_after(epochs):
    """A ``track`` that interrupts a run when so many epochs are done."""

    def track(items, what, total):
        for index, item in enumerate(items):
            if what == "refining" and index == epochs:
                raise KeyboardInterrupt
            yield item

    return track


def bytes_of(model):
    return model.proto.SerializeToString(deterministic=True)


def compressed(model, spec="basis"):
    """Every layer with a middling setting that knows nothing of the inputs."""
    [method] = parse(spec)
    layers, _ = find_layers(model)
    fitted = {}
    for name, layer in layers.items():
        if settings := method.settings(layer):
            fitted[name] = settings[len(settings) // 2].fit(layer, Statistics.white(layer))
    return rewrite(model, fitted)


def error(model, teacher, samples):
    """Relative squared error of the outputs."""
    ours, theirs, fidelity = Session(model), Session(teacher), Fidelity()
    for batch in samples:
        fidelity.add(theirs.outputs, theirs.run(batch), ours.run(batch))
    return fidelity.loss


def integers(model, coded=None):
    """All integers as bytes; of codes that are trained, those of ``coded``, type and shape."""
    values = {name: model.read(name) for name in model.constants}
    result = {n: v.tobytes() for n, v in values.items() if v.dtype.kind in "iub"}
    for lookup in find_lookups(coded) if coded else ():
        result[lookup.codes] = (values[lookup.codes].dtype, values[lookup.codes].shape)
    return result


def image_network(rng):
    """Images to images: no class scores."""
    weights = {
        name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        for name, shape in {"a": (16, 3, 3, 3), "b": (16, 16, 3, 3), "c": (3, 16, 3, 3)}.items()
    }
    nodes, x = [], "x"
    for name in weights:
        nodes.append(helper.make_node("Conv", [x, name], [f"{name}.y"], name, pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"{name}.y"], [f"{name}.r"]))
        x = f"{name}.r"
    kind = [helper.make_tensor_value_info(n, 1, ["n", 3, 12, 12]) for n in ("x", "c.y")]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes[:-1], "net", kind[:1], kind[1:], tensors)
    return Model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )


@pytest.mark.parametrize("spec", METHODS)
def test_it_lowers_the_held_out_error_and_keeps_the_size(spec, rng):
    model, samples = network(rng), samples_of(rng)
    small = compressed(model, spec)
    refined, epochs = refine(small, model, samples, epochs=3, rate=3e-3, jobs=1)
    held_out = samples.split()[1]
    enough = 1 if spec.startswith("codebook") else 0.9  # there, scales alone are floats
    assert error(refined, model, held_out) < enough * error(small, model, held_out)
    assert integers(refined, small) == integers(small, small)
    assert refined.nbytes == small.nbytes
    assert [row.epoch for row in epochs] == [0, 1, 2, 3]
    assert min(row.held_out for row in epochs[1:]) < epochs[0].held_out


CODED = {  # method -> in how many places of the network codes are trained
    "codebook:vector=4": 5,
    "binary:stacks=1": 5,
    "binary:stacks=2": 5,
    "binary:stacks=1,parts=2,share=0.5,form=weight": 5,  # the shared signs, not the selections
    "binary:stacks=1,parts=1,share=0.5,form=feature": 5,
    "codebook:levels=3": 0,
    "integer:bits=2": 0,
    "integer:bits=3": 0,  # two digits, of which one is a sign
    "integer:bits=8": 0,
    "hashed:share=2": 0,
    "basis": 0,
    "basis+codebook:vector=4": 0,  # small chains, where whole numbers err less
}


@pytest.mark.parametrize("spec", CODED)
def test_codes_are_found_where_they_pick_constant_rows(spec, rng):
    small = compressed(network(rng), spec)
    assert len(find_lookups(small)) == CODED[spec]


def damaged(teacher):
    """The same with other codes in one layer, and the name of these."""
    name = find_lookups(teacher)[1].codes
    codes = teacher.read(name).copy()
    codes[::9] = np.roll(codes, 1)[::9]
    return with_values(teacher, {name: codes}), name


@pytest.mark.parametrize("spec", ["codebook:vector=4", "binary:stacks=1"])
def test_codes_become_others_when_that_lowers_the_loss(spec, rng):
    teacher, samples = compressed(network(rng), spec), samples_of(rng, 192)
    small, name = damaged(teacher)
    settings = {"epochs": 10, "rate": 1e-4, "jobs": 1}
    refined, rows = refine(small, teacher, samples, **settings)
    before, after = small.read(name), refined.read(name)
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    assert (after != before).any()
    assert refined.nbytes == small.nbytes
    alone = [row.held_out for row in rows[:6]]  # codes stay as they are in the first half
    assert min(row.held_out for row in rows) < 0.9 * min(alone)


@pytest.mark.parametrize("spec", ["codebook:vector=4", "binary:stacks=1"])
def test_torch_and_onnxruntime_agree_on_trained_codes(spec, rng):
    model, samples = network(rng), samples_of(rng, 48)
    small = compressed(model, spec)
    parameters = find_parameters(small, 0, "cpu")
    free = {}
    for name, value in parameters.begin().items():
        noise = rng.normal(size=value.shape) * (1 if name in parameters.latents else 0.01)
        free[name] = value.detach() + tensor(noise.astype(np.float32))
    stored = with_values(small, parameters.arrays(free))
    assert integers(stored) != integers(small)
    sample = next(iter(samples))
    inputs = {name: tensor(value) for name, value in sample.items()}
    [trained] = TorchGraph(small, list(free))(inputs, parameters.rounded(free))
    [plain] = TorchGraph(stored)(inputs)
    [expected] = Session(stored).run(sample)
    for outputs in (trained, plain):
        assert np.linalg.norm(outputs.numpy() - expected) < 1e-4 * np.linalg.norm(expected)


def test_hints_are_activations_of_both_models_within_a_budget(rng):
    model, samples = network(rng), samples_of(rng, 32)
    small = compressed(model)
    names = {node.output[0] for node in model.graph.node} & {
        node.output[0] for node in small.graph.node
    }
    hints = choose_hints(small, model, samples, 4, 1 << 30)
    assert len(hints) == 4
    assert set(hints) <= names - {"y"}
    bytes_of = 4 * 32 * 16 * 12 * 12  # of the widest activation, for all samples
    fewer = choose_hints(small, model, samples, 99, 2 * bytes_of)
    assert 0 < len(fewer) < len(names) - 1
    assert choose_hints(small, model, samples, 0, 1 << 30) == []


def test_it_works_without_hints(rng):
    model, samples = network(rng), samples_of(rng, 48)
    _, epochs = refine(compressed(model), model, samples, epochs=2, rate=3e-3, hints=0, jobs=1)
    assert epochs[-1].held_out < 0.9 * epochs[0].held_out


def test_outputs_that_are_no_class_scores(rng):
    model, samples = image_network(rng), samples_of(rng)
    small = compressed(model)
    refined, _ = refine(small, model, samples, epochs=2, jobs=1)
    assert error(refined, model, samples) < 0.9 * error(small, model, samples)


def test_probabilities_are_compared_by_their_logarithms(rng):
    model = network(rng).copy()
    model.graph.node.append(helper.make_node("Softmax", ["y"], ["p"]))
    model.graph.output[0].name = "p"
    model = Model(model.proto)
    _, epochs = refine(compressed(model), model, samples_of(rng), epochs=2, rate=3e-3, jobs=1)
    assert epochs[-1].held_out < 0.9 * epochs[0].held_out


def test_what_is_stored_in_16_bits_stays_so(rng):
    model, samples = network(rng), samples_of(rng)
    small = compressed(model, "binary:stacks=2")
    refined, _ = refine(small, model, samples, epochs=1, rate=3e-3, jobs=1)
    names = [n for n in trainable(small) if small.read(n).dtype == np.float16]
    assert names
    assert all(refined.read(name).dtype == np.float16 for name in names)
    assert any((refined.read(name) != small.read(name)).any() for name in names)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_model_in_another_type(dtype, rng):
    model, sample = layer_model("conv", rng, dtype)
    damaged = with_values(model, {"w": model.read("w") * np.asarray(0.8, dtype)})
    batches = [{"x": sample["x"] * np.asarray(k, dtype)} for k in rng.uniform(0.5, 2, 8)]
    refined, _ = refine(damaged, model, from_batches(batches), epochs=4, rate=3e-2, jobs=1)
    assert refined.read("w").dtype == dtype
    assert error(refined, model, batches) < error(damaged, model, batches) / 2


def test_a_model_that_cannot_be_improved_is_returned_as_it_is(rng):
    model, samples = network(rng), samples_of(rng, 32)
    refined, epochs = refine(model, model, samples, epochs=1, rate=0.1, jobs=1)
    assert refined is model
    assert epochs[0].held_out == 0


def test_a_rate_that_destroys_the_model_does_no_harm(rng):
    model, samples = network(rng), samples_of(rng, 32)
    small = compressed(model, "half")
    refined, _ = refine(small, model, samples, epochs=2, rate=1e6, jobs=1)
    held_out = samples.split()[1]
    assert error(refined, model, held_out) <= error(small, model, held_out)


def test_the_same_seed_gives_the_same_bytes(rng):
    model, samples = network(rng), samples_of(rng, 32)
    small = compressed(model, "hashed:share=2")

    def result(seed):
        refined, _ = refine(
            small, model, samples, epochs=1, seed=seed, rate=3e-3, augment="flip,crop", jobs=1
        )
        return bytes_of(refined)

    assert result(1) == result(1)
    assert result(1) != result(2)


def test_linear_weights_take_orthogonal_steps_and_all_others_those_of_adam(rng):
    """One step of Muon turns a matrix by equal amounts in all directions."""
    small = compressed(network(rng))
    parameters = find_parameters(small, 0, "cpu")
    turned, others, _ = parameters.groups(parameters.begin())
    assert {value.ndim for value in turned} == {2}
    assert {value.ndim for value in others} == {1}
    assert matrices(small) == {n for n in trainable(small) if small.read(n).ndim > 1}


def test_settings_are_no_weights():
    """Scalars, bounds, statistics, masks and integers are no weights; a single bias is."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"]),
        node("BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"]),
        node("Clip", ["n", "low", "high"], ["k"]),
        node("Mul", ["k", "half"], ["h"]),
        node("Add", ["h", "mask"], ["y"]),
        node("Resize", ["y", "", "scales"], ["z"]),
    ]
    shapes = {
        "w": (1, 2, 3, 3), "b": (1,), "scale": (2,), "shift": (2,), "mean": (2,),
        "variance": (2,), "low": (), "high": (), "half": (), "scales": (4,),
    }  # fmt: skip
    tensors = [
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()
    ]
    tensors.append(numpy_helper.from_array(np.full((4, 4), -np.inf, np.float32), "mask"))
    tensors.append(numpy_helper.from_array(np.ones((4, 4), np.int8), "codes"))
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "z")]
    graph = helper.make_graph(nodes, "net", kinds[:1], kinds[1:], tensors)
    assert trainable(Model(helper.make_model(graph))) == ["w", "b", "scale", "shift"]


def test_a_missing_operator_is_named_before_anything_is_trained(rng):
    model, sample = layer_model("conv", rng)
    model.graph.node[0].output[0] = "c"
    model.graph.node.append(helper.make_node("Shrink", ["c"], ["y"]))
    with pytest.raises(ValueError, match="refinement does not know Shrink"):
        refine(Model(model.proto), model, from_batches([sample] * 4), epochs=1)


def test_a_model_without_floats_says_so(rng):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y])
    model = Model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    )
    batches = from_batches([{"x": rng.normal(size=(2, 3)).astype(np.float32)}] * 4)
    with pytest.raises(ValueError, match="no floating-point weights"):
        refine(model, model, batches, epochs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"augment": "twist"}, "unknown augmentation 'twist'"), ({"device": "abacus"}, "no device")],
)
def test_bad_arguments_are_named(arguments, message, rng):
    model, sample = layer_model("conv", rng)
    with pytest.raises(ValueError, match=message):
        refine(model, model, from_batches([sample] * 4), epochs=1, **arguments)


def test_without_torch_it_says_how_to_get_it(monkeypatch, rng):
    monkeypatch.setitem(sys.modules, "torch", None)
    model, sample = layer_model("conv", rng)
    with pytest.raises(ValueError, match=r"needs torch: pip install 'onnxcompress\[refine\]'"):
        refine(model, model, from_batches([sample]), epochs=1)


def test_weights_that_lie_in_another_file(rng, tmp_path):
    model, samples = network(rng), samples_of(rng, 32)
    save(compressed(model), tmp_path / "small.onnx", external=True)
    small = load(tmp_path / "small.onnx")
    refined, epochs = refine(small, model, samples, epochs=1, rate=1e-3, jobs=1)
    assert epochs[1].held_out < epochs[0].held_out
    save(refined, tmp_path / "refined.onnx")
    again = load(tmp_path / "refined.onnx")
    assert error(again, refined, samples) == 0


def test_an_interrupted_run_ends_as_it_would_have_without(rng, tmp_path, monkeypatch):
    monkeypatch.setattr("onnxcompress.refinement.schedule.TRIAL_STEPS", (4, 4))
    model, samples = network(rng), samples_of(rng, 32)
    small = compressed(model, "binary:stacks=2")
    settings = {"epochs": 3, "labelled": labelled_by(model, samples), "augment": "flip", "jobs": 1}
    whole, expected = refine(small, model, samples, **settings)
    assert bytes_of(whole) != bytes_of(small)
    for done in (0, 2):
        settings["cache"] = tmp_path / str(done)
        with pytest.raises(KeyboardInterrupt):
            refine(small, model, samples, track=stopping_after(done), **settings)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "choose_rate", lambda *_: pytest.fail("the rate was chosen"))
            resumed, rows = refine(small, model, samples, **settings)
        assert bytes_of(resumed) == bytes_of(whole)
        assert [row.held_out for row in rows] == [row.held_out for row in expected]
        assert [row.loss for row in rows[1:]] == [row.loss for row in expected[1:]]
        assert len(list(settings["cache"].iterdir())) == 1


def test_an_interrupted_run_goes_on_with_its_codes(rng, tmp_path):
    teacher, samples = compressed(network(rng), "codebook:vector=4"), samples_of(rng, 32)
    small, name = damaged(teacher)
    settings = {"epochs": 10, "rate": 1e-4, "jobs": 1}
    whole, expected = refine(small, teacher, samples, **settings)
    assert (whole.read(name) != small.read(name)).any()
    for done in (3, 7):  # before codes change, and after
        settings["cache"] = tmp_path / str(done)
        with pytest.raises(KeyboardInterrupt):
            refine(small, teacher, samples, track=stopping_after(done), **settings)
        resumed, rows = refine(small, teacher, samples, **settings)
        assert bytes_of(resumed) == bytes_of(whole)
        assert [row.held_out for row in rows] == [row.held_out for row in expected]


def test_the_same_call_is_not_trained_again(rng, tmp_path, monkeypatch):
    model, samples = network(rng), samples_of(rng, 32)
    small = compressed(model)
    settings = {"epochs": 2, "rate": 3e-3, "jobs": 1, "cache": tmp_path}
    first, rows = refine(small, model, samples, **settings)
    refine(small, model, samples, **settings, seed=1)  # another question
    monkeypatch.setattr(trainer, "train_epoch", lambda *_: pytest.fail("it trained"))
    again, same = refine(small, model, samples, **settings)
    assert bytes_of(again) == bytes_of(first)
    assert same[1:] == rows[1:]


def test_a_torn_or_foreign_checkpoint_is_ignored(rng, tmp_path):
    model, samples = network(rng), samples_of(rng, 8)
    small = compressed(model)
    settings = {"epochs": 1, "rate": 3e-3, "jobs": 1, "cache": tmp_path}
    expected = bytes_of(refine(small, model, samples, **settings)[0])
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    refine(small, model, samples, **settings, seed=1)
    [other] = set(tmp_path.iterdir()) - {path}
    for damaged in (b"", whole[:-9], whole[:-9] + b"something", other.read_bytes()):
        path.write_bytes(damaged)
        assert bytes_of(refine(small, model, samples, **settings)[0]) == expected
    checkpoints = Checkpoints(Cache(tmp_path), key_of("another run"), "cpu")
    Cache(tmp_path).keep(checkpoints.key, b"no tensors", "checkpoint")
    assert checkpoints.load() is None


@pytest.mark.parametrize("exact", [False, True])
def test_labels_lower_the_cross_entropy(exact, rng):
    model, samples = network(rng), samples_of(rng)
    small = compressed(model)
    labelled = labelled_by(model, samples, exact)
    settings = {"epochs": 3, "rate": 3e-3, "jobs": 1}
    plain, _ = refine(small, model, samples, **settings)
    taught, _ = refine(small, model, samples, labelled=labelled, **settings)
    assert cross_entropy(taught, labelled) < cross_entropy(plain, labelled)
    assert cross_entropy(taught, labelled) < cross_entropy(small, labelled)


def test_labels_that_are_no_class_numbers_are_refused(rng):
    model, samples = network(rng), samples_of(rng, 32)
    small = compressed(model)
    for labels in (np.full(32, 10), np.full(32, -1), np.zeros(32), np.zeros((32, 10), int)):
        labelled = replace(samples, read_labels=labels.__getitem__)
        with pytest.raises(DataError, match="no class numbers from 0 to 9"):
            refine(small, model, samples, epochs=1, labelled=labelled)
    with pytest.raises(DataError, match="have no labels"):
        refine(small, model, samples, epochs=1, labelled=samples)
    model = image_network(rng)
    with pytest.raises(DataError, match="class scores"):
        refine(compressed(model), model, samples, epochs=1, labelled=samples)


def test_it_ends_when_nothing_gets_better_but_not_before_it_overtook_the_model_that_came_in(
    rng, monkeypatch
):
    model, samples = network(rng), samples_of(rng, 32)
    held_out = iter([0.1, 0.3, 0.2, *[0.25] * 10])
    monkeypatch.setattr(trainer, "judge", lambda *_: next(held_out))
    monkeypatch.setattr(trainer, "train_epoch", lambda *_: iter([0.0]))
    _, rows = refine(model, model, samples, epochs=12, rate=1e-3, jobs=1)
    assert [row.epoch for row in rows] == list(range(9))  # the best of them, and half of twelve
