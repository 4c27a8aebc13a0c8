"""Files on disk that are whole or not there: shards, checkpoints, runs and what made them.

Nothing here knows about speech, text or models.
"""
