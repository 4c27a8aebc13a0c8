"""Columns that every stage agrees on: their names, their types, and who writes them.

A stage reads and writes these names only; the user's own column names are translated once, when a
dataset is loaded (`distillery.data`).
"""

from datasets import Audio, Features, Value
from datasets.features import List

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
WHISPER_TRANSCRIPT = "whisper_transcript"  # what the teacher wrote: token ids, or text
CONDITION_ON_PREV = "condition_on_prev"  # token ids of the window before, or null
AVG_LOGPROB = "avg_logprob"  # mean log-probability of the teacher's tokens
COMPRESSION_RATIO = "compression_ratio"  # of the text by zlib: high where the teacher loops
TRUNCATED = "truncated"  # the teacher ran into the maximum length
LABELS = "labels"  # final decoder targets, prompt and task prefix included
INPUT_FEATURES = "input_features"  # log-mel, mels x frames of real audio

# What public speech datasets call the reference, for users who do not say: the first that is there.
REFERENCE_NAMES = (TEXT, "transcription", "sentence", "transcript")

AUDIO_TYPE = Audio(decode=False)  # a struct of bytes and path

TOKEN_IDS = List(Value("int32"))

SOURCE_TYPES = {
    ID: Value("string"),
    AUDIO: AUDIO_TYPE,
    TEXT: Value("string"),
    SPEAKER_ID: Value("string"),
    RECORDING_ID: Value("string"),
    DURATION: Value("float32"),
}


def source_features() -> Features:
    """Return the types of the columns that every loaded dataset has."""
    return Features(SOURCE_TYPES)


def label_features(decode_token_ids: bool) -> Features:
    """Return the types of the columns that labelling adds.

    Args:
        decode_token_ids: whether `whisper_transcript` holds text instead of token ids.
    """
    return Features(
        {
            WHISPER_TRANSCRIPT: Value("string") if decode_token_ids else TOKEN_IDS,
            CONDITION_ON_PREV: TOKEN_IDS,
            AVG_LOGPROB: Value("float32"),
            COMPRESSION_RATIO: Value("float32"),
            TRUNCATED: Value("bool"),
        }
    )
