"""The schema of what --json prints, made from the types that a report consists of.

    python -m onnxcompress.cli.json_schema

writes it to ``report.schema.json`` beside this module, which ships with the package.  Keys are
added to it, never changed: what reads version 1 reads whatever comes later.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from onnxcompress.cli.outcome import BAD, DONE, INTERNAL, INTERRUPTED, MISSED
from onnxcompress.cli.supervisor import SCHEMA_VERSION
from onnxcompress.report.report import Report

FILE = Path(__file__).with_name("report.schema.json")
NOISE = ("title", "description")  # These come from docstrings, which the documentation shows.
TEXT, COUNT, ANY = {"type": "string"}, {"type": ["integer", "null"]}, {"type": "object"}
FILE_NAME = {"type": ["string", "null"], "description": "OUTPUT, null where nothing was written"}
INSPECTION = {
    "file": COUNT, "weights": COUNT, "macs": COUNT, "nodes": COUNT, "opset": COUNT,
    "ir_version": COUNT, "inputs": {"type": "array", "items": ANY},
    "outputs": {"type": "array", "items": ANY}, "compressed_before": {"type": "boolean"},
    "layers": {"type": "array", "items": ANY}, "rest": {"type": "array", "items": ANY},
    "estimates": {"type": "array", "items": ANY},
    "strip": COUNT, "simplify": {"type": ["object", "null"]},
    "note": {"type": ["string", "null"]}, "made": {"type": ["string", "null"]},
}  # fmt: skip
EXPANSION = {
    "expanded": {"type": "array", "items": TEXT}, "before": COUNT, "after": COUNT,
    "deviation": {"type": ["number", "null"]}, "output": FILE_NAME, "exit_code": COUNT,
}  # fmt: skip


def json_schema() -> dict[str, Any]:
    """The schema: an error, or the object of one of the commands."""
    report = _nullable(TypeAdapter(Report).json_schema(mode="serialization"))
    types = report.pop("$defs")
    properties = report["properties"]
    comparison = types["Comparison"]
    kinds = {
        "error": {"error": {**TEXT, "description": "one line; also where exit is 1 for want of "
                                                   "any result"}},
        "compress": {**properties, "worse": {"type": "boolean"}, "output": FILE_NAME,
                     "exit_code": COUNT},
        "sweep": {name: properties[name] for name in ("points", "provenance")},
        "compare": {**comparison["properties"], "ratio": {"type": ["number", "null"]},
                    "failures": properties["failures"], "provenance": properties["provenance"]},
        "inspect": INSPECTION,
        "expand": EXPANSION,
    }  # fmt: skip
    optional = {"compare": {*comparison["properties"]} - {*comparison["required"]}}
    codes = {"enum": [DONE, MISSED, BAD, INTERNAL, INTERRUPTED]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "What onnxcompress --json prints",
        "type": "object",
        "required": ["schema_version", "exit"],
        "properties": {"schema_version": {"const": SCHEMA_VERSION}, "exit": codes},
        "anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in kinds],
        "$defs": types | {
            kind: {
                "type": "object",
                "required": sorted(keys.keys() - optional.get(kind, set())),
                "properties": keys,
            }
            for kind, keys in kinds.items()
        },
    }  # fmt: skip


def _nullable(schema: Any) -> Any:
    """The same where every number may be null: JSON has neither NaN nor infinities."""
    if isinstance(schema, list):
        return [_nullable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: item for key, item in schema.items() if key not in NOISE or type(item) is not str}
    changed = {key: _nullable(item) for key, item in plain.items() if key != "default"}
    return changed | {"type": ["number", "null"]} if schema.get("type") == "number" else changed


def main() -> None:
    FILE.write_text(json.dumps(json_schema(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
