"""What a Whisper model can compute in and with, by the names that flags have for it.

Nothing heavy is imported here, so that a program can name these before it loads torch.
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
