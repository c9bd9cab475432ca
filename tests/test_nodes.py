"""ONNX's own test models, one for every use of every operator, go through unharmed."""

from collections import Counter
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from node_cases import cases, forms

import onnxcompress as oc
from onnxcompress.core.statistics import Statistics
from onnxcompress.execution.session import Session
from onnxcompress.graph import check, find_constants, find_layers, inline_functions


def answers(model, feeds):
    """The outputs, None where onnxruntime cannot run the model."""
    try:
        return Session(model).run(feeds)
    except oc.ModelError:
        return None


def alike(a, b, error):
    """Whether two outputs differ by no more than this share of the largest entry."""
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(alike(x, y, error) for x, y in zip(a, b, strict=True))
    if a is None or b is None:
        return a is b
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype.kind != "f":
        return np.array_equal(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    scale = max(1.0, np.abs(a[np.isfinite(a)]).max(initial=0))
    return np.allclose(a, b, rtol=0, atol=error * scale, equal_nan=True)


def exact(method, layer):
    """The layer's weight in a method's form, with next to nothing lost."""
    if isinstance(method, oc.Basis):
        _, out, fan_in = layer.grouped.shape
        method = replace(method, rank=min(out, fan_in))
    return method.fit(layer, Statistics.white(layer))


@pytest.mark.usefixtures("unrecorded")
def test_compress_leaves_every_model_of_the_standard_equal_or_says_why_not(capsys):
    found = Counter()
    for case in cases():
        for name, model, feeds, _ in forms(case):
            before = model.proto.SerializeToString(deterministic=True)
            try:
                result, report = oc.compress(model, methods=[oc.Half()])
            except (oc.BudgetError, oc.ModelError, ValueError) as error:
                assert type(error).__module__.startswith("onnxcompress."), f"{name}: {error!r}"
                assert "\n" not in str(error)
                found["unchanged"] += 1
                result = model
            else:
                smaller = not report.worse and any(row.method for row in report.rows)
                found["with a compressed layer" if smaller else "unchanged"] += 1
                expected = answers(model, feeds)
                if expected is not None:
                    assert alike(expected, answers(result, feeds), 5e-3), name
            assert model.proto.SerializeToString(deterministic=True) == before, name
    with capsys.disabled():
        print(f"\n{dict(found)} of {sum(1 for case in cases() for _ in forms(case))} models")
    assert found["with a compressed layer"] > 5


def test_every_weight_of_the_standards_models_can_be_replaced(capsys, monkeypatch):
    monkeypatch.setattr(import_module("onnxcompress.graph.find_layers"), "LARGE", 2)
    found = Counter()
    for case in cases():
        for name, model, feeds, expected in forms(case):
            opened = inline_functions(model)
            layers, _ = find_layers(opened)
            every = layers | find_constants(opened, layers)
            for method in (oc.Half(), oc.Basis("filter")):
                weights = {
                    key: exact(method, layer)
                    for key, layer in every.items()
                    if not method.declined(layer)
                }
                if not weights:
                    continue
                result = oc.rewrite(opened, weights)
                check(result)
                found[f"rewritten by {method.name}"] += 1
                original = answers(model, feeds)
                if original is not None:
                    found["run"] += 1
                    changed = answers(result, feeds)
                    assert changed is not None and alike(original, changed, 5e-3), name
                    if alike(expected, original, 1e-3):
                        assert alike(expected, changed, 5e-3), name
    with capsys.disabled():
        print(f"\n{dict(found)}")
    assert found["run"] > 300
