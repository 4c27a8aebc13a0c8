"""Samples: decoding them, their loudness, their log-mel features.

Nothing here knows about datasets or transcripts.
"""
