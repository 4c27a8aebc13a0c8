"""Datasets: reading whatever users have, filtering it, and handing it on row by row.

Models are not here; how one file is written safely is in `storage`.
"""
