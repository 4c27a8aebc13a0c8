"""What a stage needs as a program: flags, the accelerator, logging, dry runs, uploads.

The only room that knows argparse, accelerate and the groups of flags.
"""
