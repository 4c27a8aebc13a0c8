"""Labelling: which clips a process takes, and the sealed shards that it makes of them.

Shards do not depend on each other, so processes need not wait for each other either.
"""
