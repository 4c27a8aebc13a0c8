"""Rows and what becomes of them: columns, layouts on the disk, windows of several clips, batches.

How datasets are found and read is in `ingest`; how one file is written safely is in `storage`.
"""
