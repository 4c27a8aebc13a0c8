"""The formats that a checkpoint can be exported to: their quantisations, and what they need.

Nothing heavy is imported with it, so that flags can name these before torch is loaded.
"""

from importlib.util import find_spec

CTRANSLATE2, GGML, ONNX = "ctranslate2", "ggml", "onnx"

# The packages that write a format and read it back, as they are imported.
PACKAGES = {
    CTRANSLATE2: ("ctranslate2", "faster_whisper"),
    GGML: ("pywhispercpp",),
    ONNX: ("onnx", "onnxscript", "onnxruntime"),
}
FORMATS = tuple(PACKAGES)

# How weights are stored; the first of a format is its default.
FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"
QUANTIZATIONS = {
    CTRANSLATE2: (FLOAT32, FLOAT16, INT8),
    GGML: (FLOAT16, INT8),  # whisper.cpp stops at a float32 file: it convolves in float16
    ONNX: (FLOAT32, FLOAT16, INT8),
}


def bytes_per_weight(quantization: str) -> int:
    """Return how many bytes a weight takes, about: some stay in float32."""
    return {FLOAT32: 4, FLOAT16: 2, INT8: 1}[quantization]


def missing_packages(name: str) -> list[str]:
    """Return the packages of a format that are not installed, as pip names them."""
    return [package.replace("_", "-") for package in PACKAGES[name] if not find_spec(package)]
