"""Files that mean harm: each function writes one into a folder and returns a command line."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT
COMPRESS = "{file} out.onnx --ratio 1.2 --method half"


def value(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def small(nodes=None, tensors=(), inputs=None, outputs=None, functions=(), opset=17):
    """A layer of 32 x 32, or these nodes, as a model."""
    weight = np.arange(1024, dtype=np.float32).reshape(32, 32) / 1024
    tensors = [numpy_helper.from_array(weight, "w"), *tensors]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")] if nodes is None else nodes
    graph = helper.make_graph(
        nodes,
        "net",
        [value("x", [1, 32])] if inputs is None else inputs,
        [value("y", [None, None])] if outputs is None else outputs,
        tensors,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, functions=list(functions))


def written(folder, proto, name="model.onnx"):
    (folder / name).write_bytes(proto.SerializeToString())
    return COMPRESS.format(file=name)


def outside(tensor, **entries):
    """The tensor with its values in another file."""
    for kind in ("raw_data", "float_data", "external_data"):
        tensor.ClearField(kind)
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in entries.items():
        tensor.external_data.add(key=key, value=str(entry))
    return tensor


# ---------------------------------------------------------------------------------- external data


def external_data_at(**entries):
    def write(folder):
        (folder / "data.bin").write_bytes(bytes(4096))
        (folder.parent / "secret.bin").write_bytes(bytes(4096))
        (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
        (folder / "away").symlink_to(folder.parent)
        (folder / "near.bin").symlink_to(folder / "data.bin")
        (folder / "circle.bin").symlink_to(folder / "circle.bin")
        proto = small()
        outside(proto.graph.initializer[0], **entries)
        return written(folder, proto)

    return write


def external_data_in(where):
    """A secret file, named where it is easily overlooked."""

    def write(folder):
        (folder.parent / "secret.bin").write_bytes(bytes(4096))
        secret = outside(
            TensorProto(name="s", data_type=FLOAT, dims=[32, 32]), location="../secret.bin"
        )
        constant = helper.make_node("Constant", [], ["s"], "secret")
        add = helper.make_node("Add", ["x", "s"], ["z"])
        last = helper.make_node("MatMul", ["z", "w"], ["y"], "layer")
        body = helper.make_graph(
            [helper.make_node("Identity", ["s"], ["b"])], "b", [], [value("b", [None, None])]
        )
        if where == "a function":
            constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(secret)
            inside = helper.make_function(
                "local", "F", ["x"], ["z"], [constant, add], [helper.make_opsetid("", 17)]
            )
            call = helper.make_node("F", ["x"], ["z"], domain="local")
            return written(folder, small([call, last], functions=[inside]))
        if where == "a list of tensors":
            constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
                numpy_helper.from_array(np.zeros((32, 32), np.float32), "s")
            )
            more = add.attribute.add(name="more", type=onnx.AttributeProto.TENSORS)
            more.tensors.add().CopyFrom(secret)
            return written(folder, small([constant, add, last]))
        if where == "a sparse tensor":
            proto = small([add, last])
            sparse = proto.graph.sparse_initializer.add(dims=[32, 32])
            del secret.dims[:]
            secret.dims.append(1024)
            sparse.values.CopyFrom(secret)
            sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(1024), "i"))
            return written(folder, proto)
        body.initializer.append(secret)
        yes = numpy_helper.from_array(np.array(True), "yes")
        choice = helper.make_node("If", ["yes"], ["s2"], then_branch=body, else_branch=body)
        add.input[1] = "s2"
        return written(folder, small([choice, add, last], [yes]))

    return write


# ----------------------------------------------------------------------------------------- tensors


def tensor_of(dims=(32, 32), data=bytes(4096), kind=FLOAT):
    def write(folder):
        proto = small()
        tensor = proto.graph.initializer[0]
        tensor.ClearField("dims")
        tensor.dims.extend(dims)
        tensor.raw_data = data
        tensor.data_type = kind
        return written(folder, proto)

    return write


def input_of(dims, kind=FLOAT):
    def write(folder):
        return written(folder, small(inputs=[value("x", dims, kind)]))

    return write


def filled(*dims):
    """A large tensor of a few bytes: what a node makes of its size."""

    def write(folder):
        size = numpy_helper.from_array(np.array(dims), "size")
        nodes = [
            helper.make_node("ConstantOfShape", ["size"], ["big"]),
            helper.make_node("ReduceSum", ["big"], ["one"]),
            helper.make_node("MatMul", ["x", "w"], ["z"], "layer"),
            helper.make_node("Add", ["z", "one"], ["y"]),
        ]
        return written(folder, small(nodes, [size]))

    return write


# ------------------------------------------------------------------------------------------ graphs


def cycle(folder):
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w"], ["y"], "layer"),
    ]
    return written(folder, small(nodes))


def function(name, calls):
    """A local function that calls others, one after the other."""
    tensors = ["x", *(f"t{i}" for i in range(len(calls) - 1)), "y"]
    nodes = [
        helper.make_node(op, [a], [b], domain="local" if op.startswith("F") else "")
        for op, a, b in zip(calls, tensors, tensors[1:], strict=False)
    ]
    return helper.make_function("local", name, ["x"], ["y"], nodes, [
        helper.make_opsetid("", 17), helper.make_opsetid("local", 1),
    ])  # fmt: skip


def calling(functions):
    nodes = [
        helper.make_node("F0", ["x"], ["z"], domain="local"),
        helper.make_node("MatMul", ["z", "w"], ["y"], "layer"),
    ]
    return small(nodes, functions=functions)


def recursive_function(folder):
    return written(folder, calling([function("F0", ["F0"])]))


def mutually_recursive_functions(folder):
    return written(folder, calling([function("F0", ["Relu", "F1"]), function("F1", ["F0"])]))


def billion_nodes_by_functions(folder):
    functions = [function(f"F{i}", [f"F{i + 1}"] * 10) for i in range(9)]
    return written(folder, calling([*functions, function("F9", ["Relu"])]))


def deep_bodies(levels):
    """If in If in If."""

    def graph(node):
        return helper.make_graph([node], "b", [], [value("b", [None, None])])

    def write(folder):
        leaf = body = graph(helper.make_node("Identity", ["x"], ["b"]))
        for _ in range(levels):
            body = graph(helper.make_node("If", ["yes"], ["b"], then_branch=body, else_branch=leaf))
        node = body.node[0]
        node.output[0] = "z"
        last = helper.make_node("MatMul", ["z", "w"], ["y"], "layer")
        yes = numpy_helper.from_array(np.array(True), "yes")
        return written(folder, small([node, last], [yes]))

    return write


def too_deep_bodies(folder):
    """More levels than a protobuf library reads, and than one writes."""
    node = b""
    for _ in range(3000):
        graph = b"\x0a" + size(node) + node if node else b""
        attribute = b"\x32" + size(graph) + graph  # AttributeProto.g
        node = b"\x2a" + size(attribute) + attribute  # NodeProto.attribute
    graph = b"\x0a" + size(node) + node
    (folder / "model.onnx").write_bytes(b"\x08\x09\x3a" + size(graph) + graph)
    return COMPRESS.format(file="model.onnx")


def size(data):
    """The length of a field as protobuf writes it."""
    number, found = len(data), b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def endless_loop(folder, keeps=False):
    """A loop without an end, which may keep what it has in every turn."""
    u = [value("u", [1, 32])]
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Relu", ["v"], ["u"]),
            helper.make_node("Concat", ["v"] * 256, ["turn"], axis=0),
        ],
        "body",
        [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("v", [1, 32])],
        [value("on", [], TensorProto.BOOL), *u, *[value("turn", [256, 32])] * keeps],
    )
    count = numpy_helper.from_array(np.array(2**62), "count")
    yes = numpy_helper.from_array(np.array(True), "yes")
    nodes = [
        helper.make_node("Loop", ["count", "yes", "x"], ["z", *["turns"] * keeps], body=body),
        helper.make_node("MatMul", ["z", "w"], ["y"], "layer"),
    ]
    proto = small(nodes, [count, yes])
    proto.graph.output.extend([value("turns", ["n", 256, 32])] * keeps)
    return written(folder, proto)


def division_by_zero(folder):
    """Which the processor answers with a signal."""
    zero = numpy_helper.from_array(np.zeros(32, np.int64), "zero")
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Div", ["i", "zero"], ["q"]),
        helper.make_node("Cast", ["q"], ["f"], to=FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"], "layer"),
    ]
    return written(folder, small(nodes, [zero]))


def division_by_zero_of_constants(folder):
    one = numpy_helper.from_array(np.ones(32, np.int64), "one")
    zero = numpy_helper.from_array(np.zeros(32, np.int64), "zero")
    nodes = [
        helper.make_node("Mod", ["one", "zero"], ["q"]),
        helper.make_node("Cast", ["q"], ["f"], to=FLOAT),
        helper.make_node("Add", ["f", "x"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["y"], "layer"),
    ]
    return written(folder, small(nodes, [one, zero]))


def many_bytes_of_nothing(folder):
    """Fields that no version of ONNX has."""
    good = small().SerializeToString()
    (folder / "model.onnx").write_bytes(b"\xfa\x3e\x04abcd" * 100_000 + good)
    return "inspect model.onnx"


def name_of(text):
    """A layer whose name a terminal would obey; it has to be shown, and never as it is."""

    def write(folder):
        proto = small()
        proto.graph.node[0].name = text
        written(folder, proto)
        return "inspect model.onnx"

    return write


def name_that_is_no_text(folder):
    data = small().SerializeToString().replace(b"layer", b"l\xff\xfeer")
    (folder / "model.onnx").write_bytes(data)
    return COMPRESS.format(file="model.onnx")


def device(folder):
    return COMPRESS.format(file="/dev/zero")


def pipe(folder):

    os.mkfifo(folder / "model.onnx")
    return COMPRESS.format(file="model.onnx")


def four_gigabytes_of_nothing(folder):
    with (folder / "model.onnx").open("wb") as stream:
        stream.truncate(4 << 30)
    return COMPRESS.format(file="model.onnx")


# -------------------------------------------------------------------------------------------- data


def calibrated(folder, calib, *more, shape=(1, 32)):
    written(folder, small(inputs=[value("x", list(shape))]))
    return " ".join(["model.onnx out.onnx --ratio 1.2 --method half --calib", calib, *more])


def bomb(nbytes):
    """An npz of which little is on disk."""

    def write(folder):
        header = io.BytesIO()
        shape = (nbytes // 128, 32)
        np.lib.format.write_array_header_1_0(
            header, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        with (
            zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("x.npy", "w", force_zip64=True) as stream,
        ):
            stream.write(header.getvalue())
            for _ in range(nbytes >> 24):
                stream.write(bytes(1 << 24))
        return calibrated(folder, "data.npz")

    return write


def npz_of_pickles(folder):
    class Harm:
        def __reduce__(self):
            return print, ("harm",)

    np.savez(folder / "data.npz", x=np.array([Harm()] * 32, object))
    return calibrated(folder, "data.npz")


def npy_that_claims(shape, descr="<f4"):
    def write(folder):
        with (folder / "data.npy").open("wb") as stream:
            np.lib.format.write_array_header_1_0(
                stream, {"descr": descr, "fortran_order": False, "shape": shape}
            )
            stream.write(bytes(4096))
        return calibrated(folder, "data.npy")

    return write


def npz_that_claims(shape, descr="<f4"):
    def write(folder):
        member = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            member, {"descr": descr, "fortran_order": False, "shape": shape}
        )
        member.write(bytes(4096))
        with zipfile.ZipFile(folder / "data.npz", "w") as archive:
            archive.writestr("x.npy", member.getvalue())
        return calibrated(folder, "data.npz")

    return write


def image_bomb(side, cut=False):
    """A PNG of one colour."""

    def write(folder):
        def chunk(kind, data):
            whole = kind + data
            return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

        (folder / "images").mkdir()
        row = bytes(side // 8 + 1)
        packer = zlib.compressobj(9)
        data = b"".join(packer.compress(row) for _ in range(min(side, 2000))) + packer.flush()
        picture = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
            + chunk(b"IDAT", data)
            + chunk(b"IEND", b"")
        )
        (folder / "images" / "a.png").write_bytes(picture[: len(picture) // 2 if cut else None])
        return calibrated(folder, "images", "--preprocess unit", shape=(1, 1, 32, 32))

    return write


def narrow_picture(folder):
    """A PNG of 1 x 12,000 pixels, of which a resize makes 256 x 3 million."""
    from PIL import Image

    (folder / "images").mkdir()
    Image.new("L", (1, 12_000)).save(folder / "images" / "a.png")
    return calibrated(folder, "images", "--preprocess imagenet", shape=(1, 3, 224, 224))


def npz_of_plain_bytes(folder):
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        archive.writestr("x", b"hello")
    return calibrated(folder, "data.npz")


def npz_that_is_a_pipe(folder):
    os.mkfifo(folder / "data.npz")
    return calibrated(folder, "data.npz")


def endless_batches(rows):
    """A function that never ends, of batches with no rows or with many."""

    def write(folder):
        name = f"endless_{rows}"
        (folder / f"{name}.py").write_text(
            f"import numpy as np\ndef f():\n    while True: yield {{'x': np.ones(({rows}, 32))}}\n"
        )
        return calibrated(folder, f"{name}:f", shape=("n", 32))

    return write


def yaml_of(text):
    def write(folder):
        (folder / "p.yaml").write_text(text)
        np.savez(folder / "data.npz", x=np.zeros((20, 1, 32, 32), np.float32))
        return calibrated(folder, "data.npz", "--preprocess p.yaml", shape=(1, 1, 32, 32))

    return write


LAUGHS = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
)


def labels_of(text):
    def write(folder):
        from PIL import Image

        (folder / "images").mkdir()
        for name in "ab":
            Image.new("L", (32, 32)).save(folder / "images" / f"{name}.png")
        (folder / "images" / "labels.csv").write_text(text)
        line = calibrated(folder, "images", "--preprocess unit", shape=(1, 1, 32, 32))
        return f"{line} --eval images"

    return write


def test_data(tensor):
    def write(folder):
        (folder / "sets" / "test_data_set_0").mkdir(parents=True)
        (folder.parent / "secret.bin").write_bytes(bytes(128))
        (folder / "sets" / "test_data_set_0" / "input_0.pb").write_bytes(tensor.SerializeToString())
        return calibrated(folder, "sets")

    return write


HOSTILE = {  # what it is -> what writes it, and a word of the error; None where it is only odd
    "external data at ../": (external_data_at(location="../secret.bin"), "outside"),
    "external data at an absolute path": (external_data_at(location="/etc/passwd"), "outside"),
    "external data behind a link": (external_data_at(location="link.bin"), "outside"),
    "external data behind a linked folder": (
        external_data_at(location="away/secret.bin"), "outside",
    ),
    "external data behind a link within": (external_data_at(location="near.bin"), None),
    "external data behind a link to itself": (external_data_at(location="circle.bin"), ""),
    "external data in memory": (
        external_data_at(location="*/_ORT_MEM_ADDR_/*", offset=4096, length=4096), "missing",
    ),
    "external data without a place": (external_data_at(), "missing"),
    "external data that is the folder": (external_data_at(location="."), "missing"),
    "external data with a null byte": (external_data_at(location="a\0b"), ""),
    "external data of negative length": (
        external_data_at(location="data.bin", offset=0, length=-4096), "length",
    ),
    "external data from a negative offset": (
        external_data_at(location="data.bin", offset=-8, length=4096), "offset",
    ),
    "external data from no number": (external_data_at(location="data.bin", offset="x"), "offset"),
    "external data that ends early": (
        external_data_at(location="data.bin", offset=64, length=4096), "truncated",
    ),
    "external data of another length": (
        external_data_at(location="data.bin", length=4000), "bytes",
    ),
    "external data of no length that ends early": (
        external_data_at(location="data.bin", offset=64), "truncated",
    ),
    "external data in a body": (external_data_in("a body"), "outside"),
    "external data in a function": (external_data_in("a function"), "outside"),
    "external data in a list of tensors": (external_data_in("a list of tensors"), "outside"),
    "external data in a sparse tensor": (external_data_in("a sparse tensor"), "outside"),
    "a tensor of 2^62 values": (tensor_of([2**31, 2**31]), ""),
    "a tensor of 2^128 values": (tensor_of([2**62, 2**62, 16]), ""),
    "a tensor of a negative size": (tensor_of([-32, -32]), ""),
    "a tensor of 0 x 2^62 values": (tensor_of([0, 2**62], b""), ""),
    "a tensor of a million dimensions": (tensor_of([2**62] * 1_000_000), ""),
    "a tensor with too few bytes": (tensor_of(data=bytes(4000)), ""),
    "a tensor with too many bytes": (tensor_of(data=bytes(8000)), ""),
    "a tensor of no known type": (tensor_of(kind=99), ""),
    "a tensor of undefined type": (tensor_of(kind=0), ""),
    "a tensor of strings as bytes": (tensor_of(kind=8), ""),
    "an input of 2^40 values": (input_of([1, 2**35, 32]), ""),
    "an input of 2^100 values": (input_of([2**50, 2**50, 32]), ""),
    "an input of no known type": (input_of([1, 32], 99), ""),
    "an input of a negative size": (input_of([-7, 32]), None),
    "a node that makes 4 TB": (filled(10**6, 10**6), ""),
    "a node that makes 2^80 values": (filled(2**40, 2**40), ""),
    "a cycle": (cycle, "topological"),
    "a recursive function": (recursive_function, "itself"),
    "functions that call each other": (mutually_recursive_functions, "itself"),
    "a billion nodes by functions": (billion_nodes_by_functions, "nodes"),
    "20 bodies in each other": (deep_bodies(20), None),
    "3000 bodies in each other": (too_deep_bodies, "not an ONNX model"),
    "an endless loop": (endless_loop, "more than"),
    "a division by zero": (division_by_zero, "onnxruntime"),
    "a division of constants by zero": (division_by_zero_of_constants, "onnxruntime"),
    "unknown fields": (many_bytes_of_nothing, None),
    "a name that clears the screen": (name_of("\x1b[2J\x1b]0;title\x07a\r\nb\u202ec"), None),
    "a name that is HTML": (name_of("<script>alert(1)</script>[bold]a[/bold]"), None),
    "a name that is no text": (name_that_is_no_text, "no text"),
    "a device": (device, "file"),
    "a pipe": (pipe, "file"),
    "4 GB of zeros": (four_gigabytes_of_nothing, ""),
    "an npz that grows to a gigabyte": (bomb(5 << 28), "times"),
    "an npz of pickles": (npz_of_pickles, "pickle"),
    "an npy that claims 2^60 values": (npy_that_claims((2**55, 32)), ""),
    "an npy of a negative size": (npy_that_claims((-1, 32)), ""),
    "an npy of pickles": (npy_that_claims((32, 32), "|O"), "pickle"),
    "an npy of no size": (npy_that_claims((0, 32)), ""),
    "an npz that claims 2^60 values": (npz_that_claims((2**55, 32)), ""),
    "an npz of strings": (npz_that_claims((32, 32), "<U4"), ""),
    "an image of 10^10 pixels": (image_bomb(10**5), "pixels"),
    "an image that ends early": (image_bomb(8000, cut=True), ""),
    "a picture that resizing blows up": (narrow_picture, "resizing makes"),
    "an npz of plain bytes": (npz_of_plain_bytes, "no array"),
    "an npz that is a pipe": (npz_that_is_a_pipe, "no regular file"),
    "batches without rows for ever": (endless_batches(0), "is empty"),
    "batches for ever": (endless_batches(2), None),
    "YAML that runs code": (yaml_of("!!python/object/apply:os.system ['touch harm']"), "YAML"),
    "YAML that grows to a billion words": (yaml_of(LAUGHS), ""),
    "YAML that grows in a value": (yaml_of(LAUGHS.replace("a11:", "mean:")), ""),
    "YAML that refers to itself": (yaml_of("mean: &a [*a, *a]"), ""),
    "YAML of 60,000 brackets": (yaml_of("[" * 60_000), "YAML"),
    "YAML of a megabyte": (yaml_of("# " * 500_000), "large"),
    "YAML that resizes to 10^12 pixels": (yaml_of("resize: 1000000\nscale: 255"), None),
    "labels that are not finite": (labels_of("file,label\na.png,nan\n"), "whole number"),
    "labels of 5000 digits": (labels_of(f"file,label\na.png,{'9' * 5000}\n"), ""),
    "labels beyond 64 bits": (labels_of(f"file,label\na.png,{10**30}\nb.png,1\n"), ""),
    "a sample in another folder": (
        test_data(outside(TensorProto(data_type=FLOAT, dims=[1, 32]), location="../secret.bin")),
        "",
    ),
    "a sample of 2^62 values": (test_data(TensorProto(data_type=FLOAT, dims=[2**31, 2**31])), ""),
    "a sample of no known type": (test_data(TensorProto(data_type=99, dims=[1, 32])), ""),
}  # fmt: skip
