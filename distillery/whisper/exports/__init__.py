"""Whisper checkpoints as the files of other programs, and those programs as readers of them.

A module for each format writes the files, and yields the programs that read them, so that what they
write can be compared with the original. Not here: flags, and scores.
"""
