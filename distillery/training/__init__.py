"""Losses, the training step and the loop that fine-tuning and distillation share.

Flags are not here: a stage hands over plain values.
"""
