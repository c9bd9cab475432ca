"""``python -m onnxcompress``."""

from onnxcompress.cli.supervisor import main

main()
