"""The input shape of every layer, and its multiplications."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from onnxcompress.execution.session import Sample, Session
from onnxcompress.graph import (
    Model,
    constant_inputs,
    expose_shapes,
    inner_nodes,
    inner_shapes,
    linear_nodes,
)

# The first run of a model, on one sample, may take so many seconds, and less where it has a loop,
# which may be endless: then a second more for so many bytes of the model.
FIRST_RUN = 600.0
LOOPED_RUN, BYTES_PER_SECOND = 60.0, 1 << 21


def first_run(session: Session, sample: Sample) -> Sequence[Any]:
    """The outputs of a model that was never run before.

    Raises:
        ModelError: it does not run, or not in time: it may contain an endless loop.
    """
    looped = LOOPED_RUN + session.nbytes / BYTES_PER_SECOND
    return session.run(sample, min(FIRST_RUN, looped) if session.loops else FIRST_RUN)


def input_shapes(model: Model, sample: Sample) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """For one sample: the input shape of every linear node, and its multiplications.

    Of recurrent weights the shape of what they are multiplied with.
    In the bodies of If, Loop and Scan they are those of one turn, and left out where nobody knows.
    """
    nodes = linear_nodes(model)
    read = {key: (node, [*node.input[:2], node.output[0]]) for key, node in nodes.items()}
    recurrent = {key: by.tensor for key, by in constant_inputs(model).items() if by.tensor}
    tensors = {t for _, names in read.values() for t in names} | {*recurrent.values()}
    known = {name: tuple(c.dims) for name, c in model.constants.items() if name in tensors}
    unknown = sorted(tensors - set(known))
    if unknown:
        exposed, names = expose_shapes(model, unknown)
        session = Session(exposed, optimize=False)
        shown = dict(zip(session.outputs, first_run(session, sample), strict=True))
        known |= {name: tuple(int(n) for n in shown[names[name]]) for name in unknown}
    known |= inner_shapes(model, {n: x.shape for n, x in sample.items() if hasattr(x, "shape")})
    shapes, macs = {key: known[tensor] for key, tensor in recurrent.items()}, {}
    for key, (node, names) in (read | inner_nodes(model)).items():
        if not known.keys() >= set(names):
            continue
        left, right, out = (known[t] for t in names)
        constant_left = model.fixed(names[0]) and not model.fixed(names[1])
        shapes[key] = right if constant_left else left
        if node.op_type == "Conv":
            macs[key] = prod(out) * prod(right[1:])
        elif node.op_type == "ConvTranspose":
            macs[key] = prod(left) * prod(right[1:])
        elif node.op_type == "Einsum":
            terms = node.attribute[0].s.decode().replace(" ", "").partition("->")[0].split(",")
            if "." not in "".join(terms):
                macs[key] = prod(dict(zip("".join(terms), (*left, *right), strict=True)).values())
        else:
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            macs[key] = prod(out) * left[-2 if transposed else -1]
    return shapes, macs
