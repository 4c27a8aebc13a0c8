"""Labels of packed windows against those of single clips: windows, fill, time and error rates.

    PYTHONPATH=. python benchmarks/packed_labels.py --teacher runs/quickstart/teacher \
        --manifest runs/quickstart/corpus/train.jsonl --language ja --packing best_fit

The same clips are labelled one in each window and packed, with and without timestamps. `cer` is
that of whole windows; `cer_parts` that of clips, for which what is written for a window is split at
its timestamps. `--pause_s` is the silence between the parts of a window.
"""

import argparse
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers.utils import logging

from distillery.data import packed_windows, schema
from distillery.data.collators import Windows
from distillery.data.packed_windows import ClipCollator, Clips, WindowPacking
from distillery.data.packing import PACKERS, PAUSE_S
from distillery.data.specs import DatasetSpec
from distillery.ingest import sources
from distillery.text.error_rates import score
from distillery.text.labels import plain_text, text_ids
from distillery.text.packed_labels import split_label
from distillery.whisper import checkpoint, windows

COLUMNS = ("packing", "timestamps", "windows", "fill", "seconds", "cer", "cer_parts", "crossing")


def main(args: argparse.Namespace) -> None:
    """Label the clips in every way, and print a table."""
    logging.set_verbosity_error()
    torch.set_num_threads(args.num_threads)
    teacher = checkpoint.load(args.teacher)
    clips = decoded(args, teacher)
    print("| " + " | ".join(COLUMNS) + " |\n|" + " --- |" * len(COLUMNS))
    for timestamps in (False, True):
        for name in ("none", args.packing):
            row = measure(args, teacher, clips, name, timestamps)
            print("| " + " | ".join([name, str(timestamps), *row]) + " |", flush=True)


def decoded(args: argparse.Namespace, teacher: checkpoint.Whisper) -> list[Clips]:
    """Read and decode all clips."""
    rows = sources.load(DatasetSpec(name=str(args.manifest), max_rows=args.max_rows))
    collate = ClipCollator(teacher.log_mel.sampling_rate, teacher.log_mel.window_s)
    return list(DataLoader(rows, args.batch_size, collate_fn=collate))


def measure(
    args: argparse.Namespace,
    teacher: checkpoint.Whisper,
    clips: list[Clips],
    name: str,
    timestamps: bool,
) -> list[str]:
    """Label all clips, and return a row of the table."""
    decoding = windows.Decoding(args.language, "transcribe", timestamps, 1, 448).fitted_to(teacher)
    columns = packed_windows.SAME_RECORDING if name == "in_order" else ()
    packing = WindowPacking(PACKERS[name], columns, teacher.log_mel, args.pause_s)
    started = time.perf_counter()
    labelled = [
        pair
        for batch in packing.batches(clips, args.batch_size)
        for pair in transcribed(batch, teacher, decoding)
    ]
    seconds = time.perf_counter() - started
    fill = packed_windows.fill_of_rows((row for row, _ in labelled), packing.log_mel.window_s)
    whole = cer(args, teacher, [(row[schema.TEXT], row[schema.ID], ids) for row, ids in labelled])
    parts, crossing = rates_of_parts(args, teacher, labelled)
    return [
        f"{fill.num_windows}",
        f"{fill.share:.3f}",
        f"{seconds:.1f}",
        f"{whole:.2f}",
        parts,
        crossing,
    ]


def transcribed(
    batch: Windows, teacher: checkpoint.Whisper, decoding: windows.Decoding
) -> list[tuple[dict, list[int]]]:
    """Return each usable row of a batch with what the teacher writes."""
    rows = [row for row in batch.rows if not row["problem"]]
    if not batch.waveforms:
        return []
    features = teacher.log_mel(batch.waveforms)
    transcripts = windows.transcribe_windows(teacher, features, decoding)
    return [
        (row, text_ids(transcript.ids, teacher.tokens))
        for row, transcript in zip(rows, transcripts, strict=True)
    ]


def rates_of_parts(args, teacher, labelled) -> tuple[str, str]:
    """Return the error rate of clips, and how many passages are of two; "-" where none tells."""
    triples, crossing = [], 0
    for row, ids in labelled:
        split = split_label(ids, packed_windows.spans(row), teacher.tokens)
        if None in split.parts:
            return "-", "-"
        crossing += split.num_crossing
        triples += zip(row[schema.SEGMENT_TEXTS], row[schema.SEGMENT_IDS], split.parts, strict=True)
    return f"{cer(args, teacher, triples):.2f}", str(crossing)


def cer(args, teacher, triples) -> float:
    """Return the character error rate of (reference, id, token ids), without normalisation."""
    texts = [plain_text(ids, teacher.tokens, teacher.tokenizer) for _, _, ids in triples]
    normalizer = teacher.normalizer(args.language, "transcribe")
    return score([reference for reference, _, _ in triples], texts, normalizer).cer_norm


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--language", default="ja")
    parser.add_argument("--packing", choices=sorted(PACKERS), default="best_fit")
    parser.add_argument("--pause_s", type=float, default=PAUSE_S)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_rows", type=int, default=None)
    parser.add_argument("--num_threads", type=int, default=1)
    main(parser.parse_args())
