"""One small model in every kind of form in which real models arrive: KINDS, name -> builder.

All of a family compute with the weights of its first, which stores them in the simplest way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxcompress.graph import Model

Node = Callable[..., NodeProto]
node = helper.make_node
Arrays = Mapping[str, np.ndarray]
X = (2, 8, 16, 16)  # shape of the input
VERSIONS = (  # opset and IR
    *((7, 3), (8, 3), (9, 4), (10, 5), (11, 6), (12, 7), (13, 7), (14, 7), (15, 8), (16, 8)),
    *((18, 8), (19, 9), (20, 9), (21, 10), (22, 10), (23, 11), (24, 12), (25, 13), (26, 13)),
)
WIDE, OUT, HIDDEN, CLASSES, WORDS = 32, 64, 160, 64, 600


@dataclass(frozen=True)
class Net:
    """Nodes from x to y, and the weights that they read."""

    nodes: Sequence[NodeProto]
    weights: Arrays


def structured(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """A weight whose singular values fall, as those of trained ones do."""
    rows, columns = shape[0], int(np.prod(shape[1:]))
    u, _, v = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
    fall = np.exp(-4 * np.arange(len(v)) / len(v))
    return ((u * fall) @ v * 2).reshape(shape).astype(np.float32)


@cache
def network() -> Net:
    """Two convolutions and two matrices, 0.9 MB: x to y."""
    rng = np.random.default_rng(0)
    weights = {
        "conv1.w": structured(rng, WIDE, X[1], 3, 3),
        "conv1.b": rng.standard_normal(WIDE).astype(np.float32) / 10,
        "conv2.w": structured(rng, OUT, WIDE, 3, 3),
        "conv2.b": rng.standard_normal(OUT).astype(np.float32) / 10,
        "hidden.w": structured(rng, OUT * 16, HIDDEN),
        "head.w": structured(rng, CLASSES, HIDDEN),
        "head.b": rng.standard_normal(CLASSES).astype(np.float32) / 10,
    }
    same = {"pads": [1, 1, 1, 1], "strides": [2, 2], "kernel_shape": [3, 3]}
    nodes = [
        node("Conv", ["x", "conv1.w", "conv1.b"], ["a"], "conv1", **same),
        node("Relu", ["a"], ["b"], "relu1"),
        node("Conv", ["b", "conv2.w", "conv2.b"], ["c"], "conv2", **same),
        node("Relu", ["c"], ["d"], "relu2"),
        node("Flatten", ["d"], ["e"], "flat"),
        node("MatMul", ["e", "hidden.w"], ["f"], "hidden"),
        node("Relu", ["f"], ["g"], "relu3"),
        node("Gemm", ["g", "head.w", "head.b"], ["y"], "head", transB=1),
    ]
    return Net(nodes, weights)


@cache
def embedded() -> Net:
    """An embedding, a hidden layer and a head tied to the embedding: tokens to y."""
    rng = np.random.default_rng(0)
    weights = {"table": structured(rng, WORDS, HIDDEN), "mix.w": structured(rng, HIDDEN, HIDDEN)}
    nodes = [
        node("Gather", ["table", "tokens"], ["a"], "embedding"),
        node("MatMul", ["a", "mix.w"], ["b"], "mix"),
        node("ReduceMean", ["b"], ["c"], "mean", axes=[1], keepdims=0),
        node("Gemm", ["c", "table"], ["y"], "head", transB=1),
    ]
    return Net(nodes, weights)


# -------------------------------------------------------------------------------------- parts


def value(name: str, shape: Sequence[Any] | None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def tensors(weights: Arrays) -> list[TensorProto]:
    return [numpy_helper.from_array(array, name) for name, array in weights.items()]


def model(
    nodes: Sequence[NodeProto],
    weights: Arrays,
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    opset: int = 17,
    ir: int = 8,
    domains: Sequence[str] = (),
    functions: Sequence[Any] = (),
) -> Model:
    """A model x to y, unless it is said otherwise."""
    inputs = [value("x", X)] if inputs is None else inputs
    outputs = [value("y", [X[0], CLASSES])] if outputs is None else outputs
    graph = helper.make_graph(nodes, "net", inputs, outputs, tensors(weights))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=ir)
    proto.functions.extend(functions)
    return Model(proto)


def renamed(net: Net, names: Mapping[str, str], suffix: str = "") -> list[NodeProto]:
    """The nodes with other tensor names; those that are not named, but no weights, get a suffix."""
    result = []
    for original in net.nodes:
        changed = NodeProto()
        changed.CopyFrom(original)
        changed.name += suffix
        for field in (changed.input, changed.output):
            for i, name in enumerate(field):
                field[i] = names.get(name, name if name in net.weights else name + suffix)
        result.append(changed)
    return result


def constant(name: str, array: Any) -> NodeProto:
    return node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(array), name))


# ------------------------------------------------------------------------------ bodies of nodes


def branches(outside: bool, both: bool = False) -> Model:
    """If: the network in one branch, or in both; weights in the branch or in the main graph."""
    net = network()
    inside = [] if outside else tensors(net.weights)
    one = helper.make_graph(net.nodes, "one", [], [value("y", None)], inside)
    zero = [node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=0)]
    zero += [constant("zeros", np.zeros((CLASSES, X[0]), np.float32))]
    zero += [node("Add", ["zeros", "m"], ["s"]), node("Transpose", ["s"], ["y"], perm=[1, 0])]
    other = helper.make_graph(zero, "zero", [], [value("y", None)])
    if both:  # the same names again: two branches do not see each other
        nodes = [*net.nodes[:-1], *renamed(Net(net.nodes[-1:], net.weights), {"g": "g", "y": "z"})]
        nodes += [node("Neg", ["z"], ["y"])]
        other = helper.make_graph(nodes, "both", [], [value("y", None)], inside)
    nodes = [node("If", ["flag"], ["out"], "choice", then_branch=one, else_branch=other)]
    return model(
        nodes,
        net.weights if outside else {},
        [value("x", X), value("flag", [], TensorProto.BOOL)],
        [value("out", None)],
    )


def _loop_body(net: Net, outside: bool) -> GraphProto:
    nodes = [
        node("Identity", ["go"], ["on"]),
        node("Cast", ["i"], ["step"], to=TensorProto.FLOAT),
        node("Add", ["state", "step"], ["moved"]),
        *renamed(net, {"x": "moved", "y": "each"}),
    ]
    return helper.make_graph(
        nodes,
        "body",
        [
            value("i", [], TensorProto.INT64),
            value("go", [], TensorProto.BOOL),
            value("state", X),
        ],
        [value("on", [], TensorProto.BOOL), value("moved", X), value("each", [X[0], CLASSES])],
        [] if outside else tensors(net.weights),
    )


def loop(outside: bool) -> Model:
    """Loop: the network runs three times on what it carries."""
    net = network()
    body = _loop_body(net, outside)
    nodes = [node("Loop", ["count", "", "x"], ["last", "y"], "loop", body=body)]
    weights = {"count": np.array(3), **(net.weights if outside else {})}
    return model(nodes, weights, outputs=[value("y", None), value("last", None)])


def scan(outside: bool) -> Model:
    """Scan: the network over the first axis."""
    net = network()
    nodes = [
        node("Unsqueeze", ["slice", "axis0"], ["one"]),
        *renamed(net, {"x": "one", "y": "each"}),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [value("slice", X[1:])],
        [value("each", [1, CLASSES])],
        [numpy_helper.from_array(np.array([0]), "axis0")]
        + ([] if outside else tensors(net.weights)),
    )
    nodes = [node("Scan", ["x"], ["y"], "scan", body=body, num_scan_inputs=1)]
    return model(nodes, net.weights if outside else {}, outputs=[value("y", None)])


def nested() -> Model:
    """A Loop in a branch of an If; half of the weights in the body, half in the main graph."""
    net = network()
    split = list(net.weights)[:4]
    body = _loop_body(net, True)
    body.initializer.extend(tensors({name: net.weights[name] for name in split}))
    then = [
        constant("count", 2),
        node("Loop", ["count", "", "x"], ["last", "z"], "loop", body=body),
    ]
    one = helper.make_graph(then, "one", [], [value("z", None)])
    other = [constant("empty", np.zeros((2, X[0], CLASSES), np.float32))]
    two = helper.make_graph(other, "two", [], [value("empty", None)])
    weights = {name: array for name, array in net.weights.items() if name not in split}
    return model(
        [node("If", ["flag"], ["y"], "choice", then_branch=one, else_branch=two)],
        weights,
        [value("x", X), value("flag", [], TensorProto.BOOL)],
        [value("y", None)],
    )


# -------------------------------------------------------------------------------- local functions


def function(name: str, inputs: Sequence[str], nodes: Sequence[NodeProto], output: str) -> Any:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_function("local", name, inputs, [output], nodes, opsets)


def function_with_weights(calls: int = 1) -> Model:
    """A function that holds its weights as Constant nodes."""
    net = network()
    inner = [*(constant(name, array) for name, array in net.weights.items()), *net.nodes]
    nodes = [node("Net", ["x"], ["y"], "call", domain="local")]
    if calls == 2:
        nodes = [
            node("Net", ["x"], ["y1"], "first", domain="local"),
            node("Neg", ["x"], ["minus"]),
            node("Net", ["minus"], ["y2"], "second", domain="local"),
            node("Sub", ["y1", "y2"], ["y"]),
        ]
    made = [function("Net", ["x"], inner, "y")]
    return model(nodes, {}, domains=["local"], functions=made, ir=8)


def function_with_arguments() -> Model:
    """Functions that are given their weights; one calls the other."""
    net = network()
    block = function("Block", ["x", "w", "b"], [
        node("Conv", ["x", "w", "b"], ["h"], "conv", pads=[1] * 4, strides=[2, 2]),
        node("Relu", ["h"], ["y"], "relu"),
    ], "y")  # fmt: skip
    both = function("Both", ["x", "w1", "b1", "w2", "b2"], [
        node("Block", ["x", "w1", "b1"], ["h"], "one", domain="local"),
        node("Block", ["h", "w2", "b2"], ["y"], "two", domain="local"),
    ], "y")  # fmt: skip
    names = ["x", "conv1.w", "conv1.b", "conv2.w", "conv2.b"]
    nodes = [node("Both", names, ["d"], "both", domain="local"), *net.nodes[4:]]
    return model(nodes, net.weights, domains=["local"], functions=[block, both])


# ------------------------------------------------------------------------------------- constants


def constant_nodes() -> Model:
    net = network()
    nodes = [*(constant(name, array) for name, array in net.weights.items()), *net.nodes]
    return model(nodes, {})


def overridable() -> Model:
    """Every initializer is an input too, as older exporters write them."""
    net = network()
    inputs = [value("x", X), *(value(name, array.shape) for name, array in net.weights.items())]
    return model(net.nodes, net.weights, inputs)


def reached(through: str) -> Model:
    """Weights that nodes compute from constants."""
    net = network()
    stored, nodes = {}, []
    for name, array in net.weights.items():
        read, extra, attributes = array, {}, {}
        if through == "Transpose":
            axes = [*range(1, array.ndim), 0]
            read, attributes = array.transpose(axes), {"perm": np.argsort(axes).tolist()}
        elif through == "Cast":
            read, attributes = array.astype(np.float16), {"to": TensorProto.FLOAT}
        elif through == "Reshape":
            read, extra = array.ravel(), {"shape": np.array([0, *array.shape[1:]])}
            extra["shape"][0] = -1
        elif through == "DequantizeLinear" and array.ndim > 1:
            axis = 1 if name == "hidden.w" else 0
            rest = tuple(a for a in range(array.ndim) if a != axis)
            scale = np.abs(array).max(rest) / 127
            shaped = scale.reshape([-1 if a == axis else 1 for a in range(array.ndim)])
            read = np.round(array / shaped).astype(np.int8)
            extra, attributes = {"scale": scale.astype(np.float32)}, {"axis": axis}
        elif through == "DequantizeLinear":
            stored[name] = array
            continue
        stored[f"{name}.stored"] = np.ascontiguousarray(read)
        stored |= {f"{name}.{key}": part for key, part in extra.items()}
        inputs = [f"{name}.stored", *(f"{name}.{key}" for key in extra)]
        nodes.append(node(through, inputs, [name], f"{name}.made", **attributes))
    return model([*nodes, *net.nodes], stored)


def shared() -> Model:
    """The network twice, with the same weights."""
    net = network()
    nodes = [
        *renamed(net, {"x": "x", "y": "y1"}, ".1"),
        node("Neg", ["x"], ["minus"]),
        *renamed(net, {"x": "minus", "y": "y2"}, ".2"),
        node("Sub", ["y1", "y2"], ["y"]),
    ]
    return model(nodes, net.weights)


TOKENS = [value("tokens", [X[0], 12], TensorProto.INT64)]
SCORES = [value("y", [X[0], WORDS])]


def embedding() -> Model:
    """No head."""
    net = embedded()
    nodes = [*net.nodes[:-1], node("Identity", ["c"], ["y"])]
    return model(nodes, net.weights, TOKENS, [value("y", [X[0], HIDDEN])])


def tied(how: str) -> Model:
    """A head that reads the embedding: as it is, through a Transpose, or a MatMul of that."""
    net = embedded()
    nodes = list(net.nodes)
    if how != "Gemm":
        nodes[-1:] = [
            node("Transpose", ["table"], ["turned"], "turn", perm=[1, 0]),
            node(how, ["c", "turned"], ["y"], "head"),
        ]
    return model(nodes, net.weights, TOKENS, SCORES)


# ------------------------------------------------------------------------------------ other forms


def quantized() -> Model:
    """QDQ: inputs and weights of the layers in 8 bits."""
    net = network()
    stored: dict[str, np.ndarray] = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
    nodes = []
    for original in net.nodes:
        if original.op_type not in ("Conv", "MatMul", "Gemm"):
            nodes.append(original)
            continue
        x, name = original.input[0], original.input[1]
        scale = np.float32(np.abs(net.weights[name]).max() / 127)
        stored |= {f"{name}.q": np.round(net.weights[name] / scale).astype(np.int8)}
        stored |= {f"{name}.s": np.asarray(scale)}
        stored |= {n: net.weights[n] for n in original.input[2:]}
        read = node(original.op_type, [f"{x}.d", f"{name}.d", *original.input[2:]], original.output)
        read.name = original.name
        read.attribute.extend(original.attribute)
        nodes += [
            node("QuantizeLinear", [x, "s", "z"], [f"{x}.q"]),
            node("DequantizeLinear", [f"{x}.q", "s", "z"], [f"{x}.d"]),
            node("DequantizeLinear", [f"{name}.q", f"{name}.s", "z"], [f"{name}.d"]),
            read,
        ]
    return model(nodes, stored)


def odd_names(odd: bool) -> Model:
    """Nodes without names, or with names that no shell likes."""
    net = network()
    names = ["Ünïcödé→层", "a/b c\\d", "  ", "~1", "q\"'`$(x)", "*[a-z]?", "conv1", "\n\t"]
    tensor = {n: f"{names[i % 8]}{i}" for i, n in enumerate([*"abcdefg", *net.weights])}
    nodes = renamed(net, {**tensor, "x": "x", "y": "y"} if odd else {})
    for one, name in zip(nodes, names, strict=True):
        one.name = name if odd else ""
    weights = {tensor[name] if odd else name: array for name, array in net.weights.items()}
    return model(nodes, weights)


def at(opset: int, ir: int) -> Model:
    """The network in an older or a newer version of ONNX."""
    net = network()
    inputs = [value("x", X)]
    if ir < 4:
        inputs += [value(name, array.shape) for name, array in net.weights.items()]
    return model(net.nodes, net.weights, inputs, opset=opset, ir=ir)


def typed(kind: int) -> Model:
    """The network in another floating-point type."""
    net, dtype = network(), helper.tensor_dtype_to_np_dtype(kind)
    weights = {name: array.astype(dtype) for name, array in net.weights.items()}
    opset = 22 if kind == TensorProto.BFLOAT16 else 17  # the first that has such convolutions
    inputs, outputs = [value("x", X, kind)], [value("y", [X[0], CLASSES], kind)]
    return model(net.nodes, weights, inputs, outputs, opset=opset, ir=10)


def unknown(rank: bool) -> Model:
    """Shapes that nobody declares: open dimensions, or no rank at all."""
    net = network()
    shape = None if rank else ["n", None, "h", "w"]
    return model(net.nodes, net.weights, [value("x", shape)], [value("y", None)])


def several_outputs() -> Model:
    """Tensors, a sequence and an optional as outputs."""
    net = network()
    nodes = [
        *net.nodes,
        node("SequenceConstruct", ["g", "y"], ["both"]),
        node("Optional", ["g"], ["perhaps"]),
        node("Shape", ["y"], ["size"]),
    ]
    sequence = helper.make_sequence_type_proto(
        helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    optional = helper.make_optional_type_proto(
        helper.make_tensor_type_proto(TensorProto.FLOAT, [X[0], HIDDEN])
    )
    outputs = [
        value("y", [X[0], CLASSES]),
        helper.make_value_info("both", sequence),
        helper.make_value_info("perhaps", optional),
        value("size", [2], TensorProto.INT64),
    ]
    return model(nodes, net.weights, outputs=outputs)


def other_inputs(kind: str) -> Model:
    """A sequence of tensors, or an optional tensor, as input."""
    net = network()
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, X)
    if kind == "sequence":
        made = helper.make_value_info("xs", helper.make_sequence_type_proto(tensor))
        first = [constant("first", 0), node("SequenceAt", ["xs", "first"], ["x"])]
    else:
        made = helper.make_value_info("xs", helper.make_optional_type_proto(tensor))
        first = [node("OptionalGetElement", ["xs"], ["x"])]
    return model([*first, *net.nodes], net.weights, [made], opset=18)


def custom(domain: str = "somebody", op_type: str = "Softsign2", outputs: int = 1) -> Model:
    """An operator of another domain, whose last output is read."""
    net = network()
    names = [f"e{i}" for i in range(outputs)]
    nodes = [*net.nodes[:5], node(op_type, ["e"], names, "own", domain=domain)]
    nodes += renamed(Net(net.nodes[5:], net.weights), {"e": names[-1], "y": "y"})
    return model(nodes, net.weights, domains=[domain])


def rich() -> Model:
    """Everything that a model may hold beside its graph."""
    net = network()
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(3, np.float32), "few"),
        numpy_helper.from_array(np.array([1, 5, 9]), "few_indices"),
        [CLASSES],
    )
    nodes = [*net.nodes[:-1], node("Gemm", ["g", "head.w", "head.b"], ["h"], "head", transB=1)]
    nodes += [node("Add", ["h", "few"], ["y"], "add")]
    result = model(nodes, net.weights, opset=21, ir=11)
    proto = result.proto
    proto.graph.sparse_initializer.append(sparse)
    proto.producer_name, proto.model_version, proto.doc_string = "somebody", 7, "what it is"
    proto.domain = "org.example"
    proto.metadata_props.add(key="author", value="somebody")
    proto.graph.metadata_props.add(key="graph", value="net")
    proto.graph.doc_string = "a graph"
    for each in proto.graph.node:
        each.doc_string = f"about {each.name}"
        each.metadata_props.add(key="name", value=each.name)
    note = proto.graph.quantization_annotation.add(tensor_name="b")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="conv1.b")
    configuration = proto.configuration.add(name="two", num_devices=2)
    configuration.device.extend(["cpu:0", "cpu:1"])
    proto.graph.node[5].device_configurations.add(configuration_id="two", pipeline_stage=1)
    training = proto.training_info.add()
    training.algorithm.CopyFrom(
        helper.make_graph([node("Identity", ["y"], ["loss"])], "train", [], [value("loss", None)])
    )
    return result


PLAIN: Mapping[str, Callable[[], Model]] = {
    "plain": partial(at, 17, 8),
    "If, weights in the branch": partial(branches, False),
    "If, weights in the main graph": partial(branches, True),
    "If, the same weights in both branches": partial(branches, False, True),
    "If, both branches read the main graph": partial(branches, True, True),
    "Loop, weights in the body": partial(loop, False),
    "Loop, weights in the main graph": partial(loop, True),
    "Scan, weights in the body": partial(scan, False),
    "Scan, weights in the main graph": partial(scan, True),
    "Loop in If, weights in both": nested,
    "local function with weights": function_with_weights,
    "local function called twice": partial(function_with_weights, 2),
    "local functions, nested, given weights": function_with_arguments,
    "initializers that are inputs too": overridable,
    **{
        f"weights through {op}": partial(reached, op)
        for op in ("Identity", "Transpose", "Cast", "Reshape", "DequantizeLinear")
    },
    "Constant nodes": constant_nodes,
    "shared weights": shared,
    "nodes without names": partial(odd_names, False),
    "odd names": partial(odd_names, True),
    **{f"opset {opset}, IR {ir}": partial(at, opset, ir) for opset, ir in VERSIONS},
    **{
        name.lower(): partial(typed, TensorProto.DataType.Value(name))
        for name in ("FLOAT16", "BFLOAT16", "DOUBLE")
    },
    "open dimensions": partial(unknown, False),
    "unknown rank": partial(unknown, True),
    "several outputs, a sequence, an optional": several_outputs,
    "a sequence as input": partial(other_inputs, "sequence"),
    "an optional as input": partial(other_inputs, "optional"),
    "an operator that nobody knows": custom,
    "training info, sparse, metadata, devices": rich,
}
EMBEDDED: Mapping[str, Callable[[], Model]] = {
    "embedding": embedding,
    "embedding tied to a Gemm": partial(tied, "Gemm"),
    "embedding tied to a MatMul by Transpose": partial(tied, "MatMul"),
}
KINDS = {**PLAIN, **EMBEDDED}


def plain_form(kind: str) -> str:
    """The kind that stores the same weights in the simplest way."""
    return next(iter(PLAIN if kind in PLAIN else EMBEDDED))


def shapes(made: Model) -> dict[str, tuple[int, ...]]:
    """The shape of the input, for those that leave it open."""
    return {value.name: X for value in made.graph.input if value.name == "x"}
