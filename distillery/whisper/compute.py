"""Dtypes and attention implementations of a Whisper model, by the names that flags use.

Nothing heavy is imported here, so that flags can name these before torch is loaded.
"""

# Names of torch's dtypes.
DTYPES = ("float32", "float16", "bfloat16")

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
