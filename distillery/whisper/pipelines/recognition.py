"""Speech recognition with Whisper that punctuates, and fits timestamps to the sound.

    from transformers import pipeline

    recognise = pipeline(model=folder, trust_remote_code=True, punctuator=True, stable_ts=True)
    recognise("speech.flac", chunk_length_s=15, batch_size=8)
    # {"text": "…", "chunks": [{"timestamp": (0.5, 2.0), "text": "…"}, …]}

`scripts/push_pipeline.py` saves it beside a model.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutomaticSpeechRecognitionPipeline
from transformers.pipelines.audio_utils import ffmpeg_read

from .punctuation import Punctuator, load_punctuator
from .silence import fit_to_silence, load_stable_ts

AUDIO = "audio_of_chunks"  # the recording, for the step that fits timestamps to it


class RecognitionPipeline(AutomaticSpeechRecognitionPipeline):
    """Whisper with two steps behind it, each off unless asked for, here or in a call.

    Args:
        punctuator: True, `rules`, a Hub id or a folder; see `load_punctuator`.
        stable_ts: move timestamps out of silence; timestamps are then predicted in any case.

    Every other argument is of `AutomaticSpeechRecognitionPipeline`, but the search is greedy unless
    `num_beams` says otherwise.
    """

    def _sanitize_parameters(
        self,
        punctuator: bool | str | None = None,
        stable_ts: bool | None = None,
        return_timestamps: bool | str | None = None,
        **others: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if stable_ts:
            load_stable_ts()  # fail before anything is transcribed
            return_timestamps = return_timestamps or True
        before, model, after = super()._sanitize_parameters(
            return_timestamps=return_timestamps, **others
        )
        if stable_ts is not None:
            before["keep_audio"] = stable_ts
        if punctuator is not None:
            after["punctuator"] = load_punctuator(punctuator) if punctuator else None
        return before, model, after

    def preprocess(
        self, inputs: Any, keep_audio: bool = False, **others: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield the windows of a recording, with the recording itself where times are fixed."""
        if not keep_audio:
            yield from super().preprocess(inputs, **others)
            return
        audio = self._audio(inputs)
        # The pipeline below takes entries out of what it is given.
        for item in super().preprocess(dict(audio), **others):
            yield {**item, AUDIO: audio}

    def _audio(self, inputs: Any) -> dict[str, Any]:
        """Return mono samples and rate of a file, bytes (both read by ffmpeg), array or dict."""
        rate = self.feature_extractor.sampling_rate
        if isinstance(inputs, str):
            inputs = Path(inputs).read_bytes()
        if isinstance(inputs, bytes):
            inputs = ffmpeg_read(inputs, rate)
        if hasattr(inputs, "get_all_samples"):  # torchcodec's decoder, as datasets hands it out
            decoded = inputs.get_all_samples()
            inputs = {"raw": decoded.data, "sampling_rate": decoded.sample_rate}
        if isinstance(inputs, Mapping):
            rate = inputs["sampling_rate"]
            inputs = inputs["raw"] if "raw" in inputs else inputs["array"]
        samples = np.asarray(inputs)
        return {"raw": samples if samples.ndim == 1 else samples.mean(0), "sampling_rate": rate}

    def _forward(
        self, model_inputs: dict[str, Any], num_beams: int = 1, **others: Any
    ) -> dict[str, Any]:
        outputs: dict[str, Any] = super()._forward(model_inputs, num_beams=num_beams, **others)
        return outputs

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        punctuator: Punctuator | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Return `text` and, with timestamps, `chunks` of a recording from all of its windows."""
        audio, *_ = [output.pop(AUDIO, None) for output in model_outputs]
        output = super().postprocess(model_outputs, **others)
        timed = "chunks" in output
        chunks = output["chunks"] if timed else [{"text": output["text"]}]
        chunks = finish(chunks, punctuator, audio if timed else None)
        text = "".join(chunk["text"] for chunk in chunks)
        return {**output, "text": text, **({"chunks": chunks} if timed else {})}


def finish(
    chunks: Sequence[Mapping[str, Any]],
    punctuator: Punctuator | None,
    audio: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Fit the times of a recording's chunks to its sound, then punctuate their texts.

    Args:
        chunks: in order; `text` and, where there is audio, `timestamp`.
        punctuator: None leaves the texts as they are.
        audio: `raw` samples and `sampling_rate`; None leaves the times as they are.
    """
    timed = fit_to_silence(chunks, audio["raw"], audio["sampling_rate"]) if audio else chunks
    texts = [chunk["text"] for chunk in timed]
    return [
        {**chunk, "text": text}
        for chunk, text in zip(timed, punctuator(texts) if punctuator else texts, strict=True)
    ]
