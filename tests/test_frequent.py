"""Tables of which the rows that samples look up have second numbers."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import onnxcompress as oc
from onnxcompress.compression.measure.reads import having, with_reads
from onnxcompress.core.statistics import Statistics
from onnxcompress.data.samples import from_batches
from onnxcompress.execution.session import Session
from onnxcompress.graph import Model, find_constants, rewrite
from onnxcompress.methods.frequent import BYTE, Frequent
from onnxcompress.methods.integer import Integer

ROWS, COLUMNS, WORDS = 4096, 96, 24  # of the table; of a sample


def table_model(kind=np.float32, inside=False):
    """A table that is looked up with the ids that are given, or with their absolute values."""
    table = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(kind)
    lookup = helper.make_node("Gather", ["table", "at"], ["y"], "lookup")
    first = helper.make_node("Abs" if inside else "Identity", ["ids"], ["at"], "first")
    graph = helper.make_graph(
        [first, lookup],
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "words"])],
        [
            helper.make_tensor_value_info(
                "y", helper.np_dtype_to_tensor_dtype(np.dtype(kind)), ["batch", "words", COLUMNS]
            )
        ],
        [numpy_helper.from_array(table, "table")],
    )
    opsets = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def ids(count, seed=0):
    """Samples of words by Zipf's law."""
    law = 1 / np.arange(1, ROWS + 1) ** 1.1
    return np.random.default_rng(seed).choice(ROWS, (count, WORDS), p=law / law.sum())


def known(model, samples):
    """The table as a layer, with how often its rows are read."""
    layers = find_constants(model, {})
    return with_reads(model, layers, from_batches([{"ids": row[None]} for row in samples]))["table"]


@pytest.fixture(params=[np.float32, np.float16])
def case(request):
    model = table_model(request.param)
    return model, known(model, ids(64))


def test_a_row_counts_once_in_a_sample_wherever_its_number_is_computed():
    samples = np.array([[3, 3, 5], [3, 7, 7]])
    for inside in (False, True):
        reads = known(table_model(inside=inside), -samples if inside else samples)
        reads = reads.attributes["reads"]
        assert dict(zip(np.flatnonzero(reads), reads[reads > 0], strict=True)) == {3: 2, 5: 1, 7: 1}


@pytest.mark.parametrize("row", [ROWS, -ROWS - 1])
def test_a_row_that_the_table_does_not_have_is_an_error_of_the_samples(row):
    with pytest.raises(oc.DataError, match=f"looks up row {row} of table, which has {ROWS}"):
        known(table_model(), np.array([[0, row]]))


def test_rows_are_decoded_one_by_one_and_as_a_whole_alike(case):
    model, layer = case
    kind = layer.weight.dtype
    for setting in Frequent().settings(layer)[::3]:
        weight = setting.fit(layer, Statistics.white(layer))
        result, whole = rewrite(model, {"table": weight}), weight.decode()
        assert (whole.shape, whole.dtype) == (layer.weight.shape, kind)
        onnx.checker.check_model(result.proto, full_check=True)
        assert "table" not in result.initializers and result.nbytes < model.nbytes
        close = {"rtol": 8 * np.finfo(kind).eps, "atol": 8 * np.finfo(kind).eps}
        for at in (ids(3, seed=1), np.array([[-1, 0, ROWS - 1]])):
            [y] = Session(result).run({"ids": at})
            np.testing.assert_allclose(y, whole[at], **close)
            [second] = ReferenceEvaluator(result.proto).run(None, {"ids": at})
            np.testing.assert_allclose(second, whole[at], **close)


def test_a_table_that_others_read_as_a_whole_is_decoded_as_a_whole(case):
    model, layer = case
    changed = model.proto
    changed.graph.node.add(op_type="Identity", input=["table"], output=["all"], name="all")
    changed.graph.output.add(name="all")
    model = Model(changed)
    weight = Frequent(levels=16, second=16).settings(layer)[0].fit(layer, Statistics.white(layer))
    at = ids(2, seed=1)
    y, everything = Session(rewrite(model, {"table": weight})).run({"ids": at})
    eps = 8 * np.finfo(layer.weight.dtype).eps
    np.testing.assert_allclose(everything, weight.decode(), rtol=eps, atol=eps)
    np.testing.assert_array_equal(y, everything[at])
    dense = oc.expand(rewrite(model, {"table": weight}))
    assert not dense.makers.keys() - {"at", "y", "all"}
    stored = Session(dense).run({"ids": at})[1]
    np.testing.assert_allclose(stored, everything, rtol=eps, atol=eps)


def test_sizes_are_known_before_the_fit(case):
    _, layer = case
    settings = Frequent().settings(layer)
    assert [s.nbytes(layer) for s in settings] == sorted(s.nbytes(layer) for s in settings)
    for setting in settings:
        fitted, blank = setting.fit(layer, Statistics.white(layer)), setting.blank(layer)
        assert setting.nbytes(layer) == fitted.nbytes == blank.nbytes < layer.nbytes


def test_errors_are_about_those_of_other_samples(case):
    _, layer = case
    others = np.concatenate([*map(np.unique, ids(2000, seed=5))])
    for candidate in Frequent().candidates(layer, Statistics.white(layer)):
        fitted = candidate.fitted(layer, Statistics.white(layer)).decode().astype(np.float64)
        off = np.square(layer.weight - fitted).sum(1)[others].sum()
        true = off / np.square(layer.weight, dtype=np.float64).sum(1)[others].sum()
        assert candidate.error == pytest.approx(true, rel=0.3, abs=1e-6)


def test_scaled_multiplies_every_row(case):
    _, layer = case
    gain = np.random.default_rng(2).uniform(0.5, 2, ROWS)
    weight = Frequent().settings(layer)[0].fit(layer, Statistics.white(layer))
    scaled, expected = weight.scaled(gain).decode(), weight.decode() * gain[:, None]
    np.testing.assert_allclose(scaled, expected, rtol=1e-2, atol=1e-2)


def test_the_places_of_few_rows_take_a_byte(case):
    _, layer = case
    for setting in Frequent(levels=16).settings(layer):
        place = setting.fit(layer, Statistics.white(layer)).place
        assert place.itemsize == (1 if setting.rows <= BYTE else 2)
        assert (place > 0).sum() == setting.rows


def test_nothing_is_offered_where_reads_are_not_known():
    model = table_model()
    layer = find_constants(model, {})["table"]
    assert (
        Frequent().settings(layer)
        == []
        == list(Frequent().candidates(layer, Statistics.white(layer)))
    )
    matrix = replace(layer, attributes={})
    assert Frequent().declined(matrix) == "it is no large table that is looked up"
    unread = having(layer, np.zeros(ROWS, np.int64))
    assert Frequent().settings(unread) == []


def test_levels_fix_the_size_so_that_no_target_is_needed():
    model = table_model()
    [setting] = Frequent(levels=16, second=16).settings(known(model, ids(64)))
    assert setting.fixed and setting.rows > BYTE
    methods = "frequent:levels=16,second=16"
    result, report = oc.compress(model, methods=methods, samples={"ids": ids(64)})
    assert str(report.rows[0].method).startswith(methods) and result.nbytes * 6 < model.nbytes


def test_without_samples_it_says_that_it_needs_some():
    with pytest.raises(oc.BudgetError, match="know what samples read: give samples="):
        oc.compress(table_model(), methods="frequent", shapes={"ids": (1, WORDS)})


def test_at_equal_size_words_of_other_samples_err_less_than_with_equal_bits():
    model, samples = table_model(), ids(96)
    other = ids(200, seed=7)
    [expected] = Session(model).run({"ids": other})
    signal, snr = np.square(expected).sum(), {}
    for spec in ("integer", "auto"):
        methods = [Integer()] if spec == "integer" else None
        found, _ = oc.compress(
            model, methods=methods, target=oc.Target(ratio=8), samples={"ids": samples}, force=True
        )
        noise = np.square(Session(found).run({"ids": other})[0] - expected).sum()
        snr[spec] = 10 * np.log10(signal / noise)
        assert found.nbytes <= model.nbytes / 8
    assert snr["auto"] > snr["integer"] + 2


def test_settings_out_of_range_are_refused_in_one_line():
    for wrong in ({"levels": 5}, {"second": 1}, {"rows": 0}):
        with pytest.raises(ValueError, match="must be"):
            Frequent(**wrong)


def places_model(end="n", start=0, axes=(1,)):
    """A table of places of which the first so many are read."""
    table = np.random.default_rng(0).standard_normal((1, ROWS, COLUMNS)).astype(np.float32)
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["n"]),
        helper.make_node("Slice", ["table", "start", end, "axes", "step"], ["first"]),
        helper.make_node("Add", ["x", "first"], ["y"], "add"),
    ]
    numbers = {"one": [1], "start": [start], "axes": axes, "step": [1], "fixed": [WORDS]}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "n", COLUMNS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "n", COLUMNS])],
        [numpy_helper.from_array(table, "table"),
         *(numpy_helper.from_array(np.array(v, np.int64), k) for k, v in numbers.items())],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def texts(*lengths):
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, n, COLUMNS)).astype(np.float32)} for n in lengths]


@pytest.mark.parametrize("axis", [1, -2])
def test_of_a_table_of_places_the_first_so_many_rows_are_read(axis):
    model = places_model(axes=(axis,))
    layers = find_constants(model, {})
    table = with_reads(model, layers, from_batches(texts(5, 3, 7)))["table"]
    assert table.attributes["reads"][:8].tolist() == [3, 3, 3, 2, 2, 1, 1, 0]
    assert not table.attributes["reads"][8:].any()
    assert {s.levels for s in Frequent().settings(table)} >= {8, 16}
    assert min(s.levels for s in Frequent().settings(table)) == 8


@pytest.mark.parametrize("other", [{"start": 1}, {"axes": (2,)}, {"end": "fixed"}])
def test_other_slices_do_not_say_which_rows_are_read(other):
    table = find_constants(places_model(**other), {})["table"]
    assert "ends" not in table.attributes and Frequent().declined(table)


def test_places_that_no_sample_reaches_are_named_where_they_have_few_bits():
    samples = texts(*range(16, 56))
    setting = "frequent:levels=8,second=256"
    small, report = oc.compress(places_model(), methods=setting, samples=samples, jobs=1)
    [said] = [line for line in report.warnings if "places" in line]
    assert "after the first 5" in said and "skip=['table']" in said
    before, after = (Session(m).run(samples[0])[0] for m in (places_model(), small))
    assert np.abs(after - before).max() < 0.05
