"""Transformers pipelines that are saved beside a model, and run without this package.

The modules here import each other relatively and nothing else of the package: `transformers` copies
them into a model's folder, and loads them from there.
"""
