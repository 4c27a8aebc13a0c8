"""Datasets as they lie around: one loader for whatever users have, and downloads.

What comes out are rows with the contract's columns (`data`). Nothing is judged or left out here but
what cannot be read.
"""
