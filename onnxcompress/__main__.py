"""``python -m onnxcompress``."""

from onnxcompress.cli.entry import main

main()
