"""``python -m onnxcompress``."""

from onnxcompress.supervisor import main

main()
