# onnxcompress in a container; models and samples lie in the folder that is mounted at /work:
#   docker build -t onnxcompress .
#   docker run --rm -v "$PWD:/work" onnxcompress model.onnx small.onnx --ratio 8 --calib samples.npz
FROM python:3.11-slim
COPY pyproject.toml README.md LICENSE /source/
COPY onnxcompress /source/onnxcompress
RUN pip install --no-cache-dir "/source[report]" && rm -rf /source
WORKDIR /work
ENTRYPOINT ["onnxcompress"]
CMD ["--help"]
