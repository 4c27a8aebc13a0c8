"""What the stages that decode long recordings take from their flags."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from distillery.audio.decoding import Waveform
from distillery.cli.evaluation import check_chunk
from distillery.cli.long_form_arguments import CHUNKED, LongFormArguments
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding
from distillery.whisper.long_form import (
    NumberedSegments,
    transcribe_in_chunks,
    transcribe_sequentially,
)


def with_chunk(args: LongFormArguments, whisper: Whisper) -> LongFormArguments:
    """Fill in the length of chunks.

    Raises:
        ValueError: a chunk, or its stride, is too long.
    """
    if CHUNKED not in args.algorithms():
        return args
    check_chunk(args.chunk_length_s, whisper)
    chunk_s = args.chunk_length_s or whisper.log_mel.window_s
    if args.stride_length_s is not None and 2 * args.stride_length_s >= chunk_s:
        raise ValueError(
            f"--stride_length_s {args.stride_length_s:g} must be less than half of a chunk of "
            f"{chunk_s:g} s"
        )
    return replace(args, algorithm="+".join(args.algorithms()), chunk_length_s=chunk_s)


def long_form_of(
    args: LongFormArguments,
    whisper: Whisper,
    decoding: Decoding,
    batch_size: int,
    algorithm: str,
) -> Callable[[Iterable[Waveform]], NumberedSegments]:
    """Return an algorithm as a function of recordings.

    Args:
        args: its settings, with the length of chunks filled in.
        whisper: the model.
        decoding: of each window.
        batch_size: windows side by side.
        algorithm: one of `args.algorithms()`.
    """
    if algorithm == CHUNKED:
        return partial(
            transcribe_in_chunks,
            whisper,
            decoding=decoding,
            batch_size=batch_size,
            chunk_length_s=args.chunk_length_s or whisper.log_mel.window_s,
            stride_length_s=args.stride_length_s,
        )
    return partial(
        transcribe_sequentially,
        whisper,
        decoding=decoding,
        batch_size=batch_size,
        condition_on_prev_tokens=args.condition_on_prev_tokens,
    )
