"""Whisper Distillery: contracts, maths and input/output shared by the stage scripts."""
