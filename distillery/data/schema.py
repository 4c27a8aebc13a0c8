"""Names of the columns that every stage agrees on; `column_types` has their types.

A stage reads and writes these names only; the user's own column names are translated once, when a
dataset is loaded (`distillery.ingest.sources`).
"""

from collections.abc import Mapping
from typing import Any

ID = "id"  # unique in its split; every join is by it
AUDIO = "audio"  # the source bytes, exactly as they came in
TEXT = "text"  # the reference transcript, where there is one
SPEAKER_ID = "speaker_id"
RECORDING_ID = "recording_id"
DURATION = "duration"  # seconds of real audio
START = "start_s"  # where a clip was cut out of its recording, in seconds
END = "end_s"
SUBTITLES = "subtitles"  # a recording's SRT or WebVTT, which it is cut by (`segmentation`)
OFFSET = "offset"  # where a row begins in its file, in seconds, as in NeMo's manifests
SEGMENTS = "segments"  # of a long recording: structs of the two below and `text`
SEGMENT_START = "start"  # seconds from the recording's beginning
SEGMENT_END = "end"
WORDS = "words"  # of a transcript: structs like those of segments; texts keep the space before them
REFERENCE = "reference"  # beside a transcript, whose `text` is what a model wrote
WHISPER_TRANSCRIPT = "whisper_transcript"  # what the teacher wrote: token ids, or text
CONDITION_ON_PREV = "condition_on_prev"  # token ids of the window before, or null
AVG_LOGPROB = "avg_logprob"  # mean log-probability of the teacher's tokens
COMPRESSION_RATIO = "compression_ratio"  # of the text by zlib: high where the teacher loops
TRUNCATED = "truncated"  # the teacher ran into the maximum length
TEMPERATURE = (
    "sampling_temperature"  # at which the transcript was drawn, with --temperature_fallback
)
LANGUAGE = "language"  # code of what is spoken, where it differs from clip to clip
TASK = "task"  # what was asked for, where it differs
SEGMENT_IDS = "segment_ids"  # of a packed window: the rows that it was made of, in its order
SEGMENT_OFFSETS = "segment_offsets"  # where each of them begins in the window, in seconds
SEGMENT_DURATIONS = "segment_durations"  # and how long it lasts
SEGMENT_TEXTS = "segment_texts"  # and its reference, or null
LABELS = "labels"  # final decoder targets, prompt and task prefix included
INPUT_FEATURES = "input_features"  # log-mel of real audio: of each mel bin its frames, float16
# In rows that filtering rejected: why, and the error rates in percent where they were compared.
FILTER_REASON = "filter_reason"
FILTER_WER = "filter_wer"
FILTER_CER = "filter_cer"

# Names of the reference in public speech datasets: the first that exists is taken by default.
REFERENCE_NAMES = (TEXT, "transcription", "sentence", "transcript")

# What a row's targets are made of: the first of these columns that it has a value in.
TARGET_COLUMNS = (LABELS, WHISPER_TRANSCRIPT, TEXT)
# Of these, what a teacher wrote, or was made of that; and what is said of it.
PSEUDO_LABELS = (LABELS, WHISPER_TRANSCRIPT, TRUNCATED)


def target(row: Mapping[str, Any]) -> Any:
    """Return the first of a row's target columns that is not null; an empty text counts."""
    return next((row[name] for name in TARGET_COLUMNS if row.get(name) is not None), None)
