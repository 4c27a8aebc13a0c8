"""Whisper models: loading, saving, cutting down to a student, and decoding with them.

How they learn is in `training`, how they are measured in `evaluation`.
"""
