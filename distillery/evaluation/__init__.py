"""Scoring transcripts: results on disk, comparisons, tables, the report page.

Error rates themselves are in `text`, decoding is in `whisper`.
"""
