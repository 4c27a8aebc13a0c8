"""Texts: tokens, labels, normalisation, timestamps, error rates.

Pure functions on strings, ids and numbers; no torch, no files of a run.
"""
