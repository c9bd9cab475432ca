"""Damaged models, samples and command lines by the thousand, each a result or a one-line error.

    python tests/fuzz.py 20000 [FIRST [SECONDS]]

Input number i is the same every time.  The inputs run one after the other in a child process; when
it crashes, takes too long or too much memory, that is counted, and a new one goes on.
"""

import contextlib
import io
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from threading import Timer

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor
from hostile import external_data_in, function, small
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from models import KINDS, layer_model, network

SECONDS = 60  # for one input, on a machine with nothing else to do
LONGEST = 2000  # characters of an error
MEMORY = 4 << 30  # bytes that the child may have
NUMBERS = (-1, 0, 1, 2, 3, 7, 16, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)
WORDS = ("", "x", "y", "w", "layer", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "Loop", "If", "NHWC")
COMMANDS = ("inspect", "compare", "expand", "sweep", "methods", "compress")
OPTIONS = (
    "--method", "--ratio", "--macs", "--energy", "--latency", "--min-snr", "--min-agreement",
    "--max-drop", "--calib", "--eval", "--metric", "--preprocess", "--samples", "--select",
    "--only", "--skip", "--input-shapes", "--seed", "--json", "--report", "--dry-run", "--quiet",
    "--verbose", "--strip", "--simplify", "--force", "--config", "--classes", "--state",
    "--compute", "--save-as-external-data", "--providers", "--cache", "--help", "--version",
    "--no", "--", "-",
)  # fmt: skip
VALUES = (
    *("", "0", "1", "-1", "0.5", "4", "64", "nan", "inf", "1e999", "98%", "\u00b2", "9" * 5000),
    *("half", "integer", "integer:bits=4", "integer:bits=99", "basis:rank=1e9", "codebook:dim=0"),
    *("basis+integer:bits=8", "auto", ":", "=", "[", "*", "***" * 2000, "layer", "y", "y:z"),
    *("x:1,32", "x:0,32", "x:-1", "x:9999999999,32", "none", "unit", "imagenet", "int8", "top1"),
    *("data.npz", "page.html", "kept", "sub", ".", "model.onnx", "out.onnx", "missing", "sub/a/b"),
    *("\udcfe", "\x1b[2J", "\U0001f4a9" * 300, "CPUExecutionProvider", "os:nothing"),
)  # fmt: skip
LINE = "model.onnx out.onnx --method half --method integer:bits=4"
OPERATORS = sorted({schema.name for schema in onnx.defs.get_all_schemas()})


def seeds():
    """Name -> bytes: models of every kind of layer, with bodies or functions, and data."""
    rng = np.random.default_rng(0)
    found = {f"{kind}.onnx": layer_model(kind, rng)[0].proto for kind in KINDS}
    for dtype in ("float16", "bfloat16"):
        found[f"{dtype}.onnx"] = layer_model("conv", rng, dtype)[0].proto
    found["network.onnx"] = network(rng).proto
    calls = [helper.make_node("F0", ["x"], ["z"], domain="local")]
    calls.append(helper.make_node("MatMul", ["z", "w"], ["y"], "layer"))
    functions = [function("F0", ["F1", "Relu"]), function("F1", ["Abs"])]
    found["functions.onnx"] = small(calls, functions=functions)
    files = {name: proto.SerializeToString() for name, proto in found.items()}
    with tempfile.TemporaryDirectory() as scratch:
        inner = Path(scratch, "inner")
        inner.mkdir()
        for where in ("a body", "a sparse tensor", "a function"):
            external_data_in(where)(inner)
            data = (inner / "model.onnx").read_bytes()
            files[f"{where}.onnx"] = data.replace(b"../secret.bin", b"sub/extra.bin")
    files["data.npz"] = _saved(np.savez, x=rng.normal(size=(8, 32)).astype(np.float32))
    files["packed.npz"] = _saved(np.savez_compressed, x=np.zeros((8, 32), np.float32))
    files["data.npy"] = _saved(np.save, rng.normal(size=(8, 32)).astype(np.float32))
    for kind in ("PNG", "JPEG", "BMP", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32), np.uint8)).convert("RGB").save(buffer, kind)
        files[f"image.{kind.lower()}"] = buffer.getvalue()
    tensor = numpy_helper.from_array(rng.normal(size=(1, 32)).astype(np.float32))
    files["input_0.pb"] = tensor.SerializeToString()
    files["p.yaml"] = b"resize: [16, 16]\ncrop: 8\ncolor: rgb\nscale: 255\nmean: [0.1, 0.2, 0.3]\n"
    files["labels.csv"] = b"file,label\na.png,1\nb.png,0\n"
    files["line"] = LINE.replace(" ", "\n").encode()
    return files


def _saved(save, *args, **arrays):
    buffer = io.BytesIO()
    save(buffer, *args, **arrays)
    return buffer.getvalue()


# --------------------------------------------------------------------------------------- mutations


def mutant(index, files):
    """The name of a seed, and what has become of it."""
    rng = random.Random(index)
    name = rng.choice(sorted(files)) if rng.random() < 0.3 else rng.choice(
        [name for name in sorted(files) if name.endswith(".onnx")]
    )  # fmt: skip
    if rng.random() < 0.15:
        return "line", "\n".join(_change_words(rng)).encode(errors="surrogateescape")
    data = files[name]
    if name.endswith((".onnx", ".pb")) and rng.random() < 0.6:
        message = (onnx.ModelProto if name.endswith(".onnx") else TensorProto)()
        message.ParseFromString(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            with contextlib.suppress(ValueError, TypeError):  # of another range or kind
                _change_field(rng, message)
        return name, message.SerializePartialToString()
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        data = _change_bytes(rng, data, files)
    return name, data


def _change_words(rng):
    """A command line with options and values that may not belong together."""
    words = LINE.split() + ["--calib", "data.npz"] * rng.randrange(2)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, kind = rng.randrange(len(words) + 1), rng.randrange(5)
        if kind < 3:
            words[place:place] = [rng.choice(OPTIONS), *[rng.choice(VALUES)] * rng.randrange(2)]
        elif kind == 3 and words:
            words[min(place, len(words) - 1)] = rng.choice(VALUES)
        else:
            del words[place : place + 1]
    return [rng.choice(COMMANDS)] * (rng.random() < 0.3) + words


def _change_bytes(rng, data, files):
    """Bits flipped, cut, doubled, or pieces of another seed put in."""
    if not data:
        return data
    i, j = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    k = min(len(data), i + rng.randrange(1, 9))
    other = files[rng.choice(sorted(files))]
    start = rng.randrange(len(other))
    byte = min(i, len(data) - 1)
    return rng.choice((
        lambda: data[:byte] + bytes([data[byte] ^ 1 << rng.randrange(8)]) + data[byte + 1 :],
        lambda: data[:i] + bytes(rng.choices((0, 1, 127, 128, 255), k=k - i)) + data[k:],
        lambda: data[:i] + rng.randbytes(k - i) + data[k:],
        lambda: data[:i],
        lambda: data[:i] + data[k:],
        lambda: data[:j] + data[i:j][:4096] + data[j:],
        lambda: data[:i] + other[start : start + 64] + data[k:],
        lambda: data[:i] + b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f" + data[k:],
    ))()  # fmt: skip


def _change_field(rng, message):
    """One field, anywhere in a message: another value, gone, twice, or in another order."""
    fields = list(message.DESCRIPTOR.fields)
    while True:
        given = [field for field, _ in message.ListFields()]
        field = rng.choice(given if given and rng.random() < 0.9 else fields)
        value = getattr(message, field.name)
        many = hasattr(value, "extend")
        if field.message_type is None or rng.random() < 0.1 or (many and not len(value)):
            break
        message = rng.choice(list(value)) if many else value
        fields = list(message.DESCRIPTOR.fields)
    if rng.random() < 0.15:
        message.ClearField(field.name)
    elif not many and field.message_type is None:
        setattr(message, field.name, _value(rng, field, value))
    elif many and len(value):
        one, two = rng.randrange(len(value)), rng.randrange(len(value))
        if rng.random() < 0.2:
            del value[one]
        elif field.message_type is not None:
            copied = type(value[two])()
            copied.CopyFrom(value[two])
            value[one].CopyFrom(copied) if rng.random() < 0.5 else value.append(copied)
        elif rng.random() < 0.7:
            value[one] = _value(rng, field, value[two])
        else:
            value.extend([_value(rng, field, value[two]) for _ in range(rng.choice((1, 3, 70)))])
    elif many and field.message_type is None:
        value.append(_value(rng, field, None))


def _value(rng, field, old):
    if field.type == FieldDescriptor.TYPE_STRING:
        return rng.choice((*WORDS, *([rng.choice(OPERATORS)] * 20), old or ""))
    if field.type == FieldDescriptor.TYPE_BYTES:
        old = old or b""
        return rng.choice((b"", old[: len(old) // 2], old + b"\0" * 7, rng.randbytes(16)))
    if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 1e30, float("inf"), float("nan")))
    if field.enum_type is not None:
        return rng.choice(list(field.enum_type.values_by_number))
    return rng.choice((*NUMBERS, *range(30), -(2**31), -(2**63)))


# ------------------------------------------------------------------------------------------ trials


def command(name, data, folder):
    """Write an input and what it needs; the words of the command line."""
    for old in sorted(folder.rglob("*"), reverse=True):
        old.rmdir() if old.is_dir() else old.unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "extra.bin").write_bytes(bytes(8192))
    (folder / "x").write_bytes(bytes(8192))
    words = f"{LINE} --jobs 1"
    if name.endswith(".onnx"):
        (folder / "model.onnx").write_bytes(data)
        return words.split() if hash_of(data) % 4 else ["inspect", "model.onnx"]
    if name == "line":
        np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(8, 32)).astype("f"))
    picture = name.endswith((".png", ".jpeg", ".bmp", ".webp", ".yaml", ".csv"))
    shape = [1, 3, 8, 8] if picture else [1, 32]
    node = "Conv" if picture else "MatMul"
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(shape))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    proto = small([helper.make_node(node, ["x", "w"], ["y"], "layer")], inputs=[x], outputs=[y])
    if picture:
        weight = np.linspace(-1, 1, 8 * 3 * 25, dtype=np.float32).reshape(8, 3, 5, 5)
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, folder / "model.onnx")
    if name == "line":
        return [w for w in data.decode(errors="surrogateescape").split("\n") if "\0" not in w]
    words += " --method half --calib "
    if not picture and name != "input_0.pb":
        (folder / name).write_bytes(data)
        return [*words.split(), name]
    place = folder / ("images" if picture else "sets/test_data_set_0")
    place.mkdir(parents=True)
    if picture:
        for letter in "ab":
            Image.new("RGB", (16, 16)).save(place / f"{letter}.png")
    (folder if name == "p.yaml" else place).joinpath(name).write_bytes(data)
    more = f"--preprocess {'p.yaml' if name == 'p.yaml' else 'unit'}" if picture else ""
    more += " --eval images" if name == "labels.csv" else ""
    return [*words.split(), place.parts[-1] if picture else "sets", *more.split()]


def hash_of(data):
    return sum(data[:: max(1, len(data) // 64)])


def trial(name, data, folder):
    """The exit code, and what is wrong with what the command line does: "" for nothing."""
    from onnxcompress.cli.commands import main

    words = command(name, data, folder)
    before, out, err = _content(folder), io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(words)
    except SystemExit as stop:
        code = stop.code or 0
    lines = [line for line in err.getvalue().splitlines() if line.startswith("Error")]
    if code not in (0, 1, 2) or len(lines) != (code != 0) or "Traceback" in err.getvalue():
        return code, f"exit code {code}: {' '.join(lines)}"
    if "\x1b" in out.getvalue() + err.getvalue():
        return code, "the terminal is sent control characters"
    if any(len(line) > LONGEST for line in lines):
        return code, "its error is long"
    return code, _harm(code, words, before, _content(folder)) or (
        "not enough memory" if any("not enough memory" in e for e in lines) else ""
    )


def _content(folder):
    """Every file below a folder -> what is in it; a cache may be filled whatever comes of it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if (path.is_file() and path.suffix != ".pickle") or path.name.startswith(".")
    }


def _harm(code, words, before, after):
    """What a command did to files that it should not have done."""
    kept = {name for name in before if after.get(name) == before[name]}
    made = {name for name in after if name not in kept}
    if code == 1:  # a page is written all the same, and shows what was reached
        made -= {page for option, page in pairwise(words) if option == "--report"}
    if any(Path(name).name.startswith(".") for name in made):
        return f"it left {made}"
    if code and (made or len(kept) < len(before)):
        return f"it failed and changed {made or set(before) - kept}"
    output = {"data.npz"} if "--calib" not in words else set()  # a word may name it as OUTPUT
    lost = set(before) - kept - output.intersection(words)
    if "--force" not in words and lost:
        return f"it changed {lost}"
    if "out.onnx" in made:
        try:
            onnx.checker.check_model("out.onnx")
        except (onnx.checker.ValidationError, ValueError) as error:
            return f"the result is no valid model: {error}"
    return ""


def prepare():
    """Limits, and a clock that takes no time, for a process that runs trials."""
    from onnxcompress.compression.measure import shapes
    from onnxcompress.compression.validate import validation
    from onnxcompress.execution.latency import Latency

    validation.latency = lambda *_: Latency(1, 1, 1, 0.9, 1.1)
    shapes.FIRST_RUN = 5.0
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    if hasattr(os, "sched_setaffinity"):  # one job, unless a command line asks for more
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def work(first, last):
    """Run inputs, and print a line before and after each."""
    prepare()
    files = seeds()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        print(flush=True)
        for index in range(first, last):
            name, data = mutant(index, files)
            code, wrong = trial(name, data, Path(scratch))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"{index}\t{name}\t{code}\t{peak >> 10}\t{wrong}", flush=True)


def campaign(first, last, limit=SECONDS):
    """Findings as (number of the input, what happened), how often each exit code, the most MB."""
    found, codes, most = [], Counter(), 0

    def note(index, wrong):
        found.append((index, wrong))
        print(index, wrong, flush=True)

    while first < last:
        command = [sys.executable, __file__, "--work", str(first), str(min(last, first + 1000))]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as child:
            assert child.stdout is not None
            timer = Timer(0, child.kill)
            for line in child.stdout:
                timer.cancel()
                if line.strip():
                    index, name, code, peak, wrong = line.rstrip("\n").split("\t", 4)
                    codes[code], most, first = codes[code] + 1, max(most, int(peak)), int(index) + 1
                    if wrong:
                        note(int(index), f"{name}: {wrong}")
                timer = Timer(limit, child.kill)
                timer.start()
            timer.cancel()
        if child.returncode:
            note(first, f"the process ended with {child.returncode}, -9 after {limit} s")
            first += 1
    return found, codes, most


if __name__ == "__main__":
    if sys.argv[1] == "--work":
        work(int(sys.argv[2]), int(sys.argv[3]))
    else:
        start = int(sys.argv[2]) if sys.argv[2:] else 0
        limit = int(sys.argv[3]) if sys.argv[3:] else SECONDS
        findings, codes, most = campaign(start, start + int(sys.argv[1]), limit)
        print(
            f"{sys.argv[1]} inputs, exit codes {dict(codes)}, {most} MB, {len(findings)} findings"
        )
