"""Dtypes and attention implementations of a Whisper model, by the names that flags use.

Nothing heavy is imported with it, so that flags can name these before torch is loaded.
"""

import os

# Names of torch's dtypes.
DTYPES = ("float32", "float16", "bfloat16")
AUTO = "auto"  # what the launch or the device says: see `resolved_dtype`

# Accelerate's names for what it computes in; `no` is also what a launch says that was told nothing.
MIXED_PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}

# Transformers' names, and the names that distil-whisper's commands use for the same things.
ATTENTIONS = {
    "eager": "eager",
    "sdpa": "sdpa",
    "flash_attn": "sdpa",
    "flash_attn_2": "flash_attention_2",
    "flash_attention_2": "flash_attention_2",
    "flash_attention_3": "flash_attention_3",
    "flex_attention": "flex_attention",
}


def resolved_dtype(name: str) -> str:
    """Return the dtype to compute in: of `auto`, the launch's, or else the device's best.

    That is what `accelerate launch --mixed_precision` asks for; without it, bfloat16 where the GPU
    computes in it, and float32 elsewhere.

    Args:
        name: one of `DTYPES` or `AUTO`.
    """
    if name != AUTO:
        return name
    for dtype, precision in MIXED_PRECISIONS.items():
        if precision == launched_precision() != "no":
            return dtype
    import torch

    has_gpu = torch.cuda.is_available()
    fast = has_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


def launched_precision() -> str:
    """Return what `accelerate launch` was told to compute in, by accelerate's name."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
