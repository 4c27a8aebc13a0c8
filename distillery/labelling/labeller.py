"""The teacher at work: from decoded clips to labelled rows, as they come out of the decoder."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from distillery.data import schema
from distillery.data.collators import PROBLEM, REASON
from distillery.data.prompts import PromptColumns
from distillery.labelling.clips import CONTEXT, ClipBatch
from distillery.text.tokens import Prompt, SpecialTokens
from distillery.whisper.checkpoint import Whisper
from distillery.whisper.decoding import Decoding, Transcript
from distillery.whisper.greedy import Window
from distillery.whisper.sampling import seed_of
from distillery.whisper.windows import transcribe_stream

PROMPT = "prompt"  # the reason for a row whose language or task cannot be asked for

Place: TypeAlias = tuple[int, int]  # shard, and position in it


class LabelledClip(NamedTuple):
    """A row without its audio, with the columns of its label, or with its `PROBLEM`."""

    shard: int
    position: int
    row: dict[str, Any]

    @property
    def is_context(self) -> bool:
        """Whether it is only the window before the shard's first."""
        return self.position == CONTEXT


@dataclass(frozen=True)
class Prompts:
    """What each clip is asked for: its language and its task.

    Attributes:
        decoding: of clips whose row does not say.
        tokens: of the model.
        language_column, task_column: of the rows that do.
    """

    decoding: Decoding
    tokens: SpecialTokens
    language_column: str | None = None
    task_column: str | None = None

    @property
    def vary(self) -> bool:
        """Whether languages or tasks may differ from clip to clip."""
        is_detected = self.tokens.is_multilingual and self.decoding.language is None
        return is_detected or self.task_column is not None or self.language_column is not None

    def decoding_of(self, row: Mapping[str, Any]) -> Decoding:
        """Return how a row's clip is decoded.

        Raises:
            ValueError: the row names no language that the model knows, or no task.
        """
        asked = Prompt(self.decoding.language, self.decoding.task)
        columns = PromptColumns(asked, self.tokens, self.language_column, self.task_column)
        language, task = columns.of(row)
        return replace(self.decoding, language=language, task=task)


class Labeller:
    """Labels clips, so many at a time."""

    def __init__(self, teacher: Whisper, prompts: Prompts, batch_size: int) -> None:
        """Keep the teacher, which is on its device.

        Args:
            teacher: the model.
            prompts: what each clip is asked for; their beams and fallback hold for all.
            batch_size: windows side by side.
        """
        self.teacher, self._prompts, self._batch_size = teacher, prompts, batch_size
        self._rows: dict[Place, dict[str, Any]] = {}  # whose windows are in the decoder
        self._bad: deque[LabelledClip] = deque()

    def label(self, batches: Iterable[ClipBatch]) -> Iterator[LabelledClip]:
        """Yield every clip with its label, or with what is wrong with it; not in order."""
        windows, how = self._windows(batches), self._prompts.decoding
        transcripts = transcribe_stream(self.teacher, windows, how, self._batch_size)
        for place, transcript in transcripts:
            yield from self._take_bad()
            label = _label(transcript)
            if how.temperature_fallback:
                label[schema.TEMPERATURE] = transcript.temperature
            yield LabelledClip(*place, {**self._rows.pop(place), **label})
        yield from self._take_bad()

    def _windows(self, batches: Iterable[ClipBatch]) -> Iterator[Window[Place]]:
        """Yield the windows of usable clips, and set the others aside."""
        for places, batch in batches:
            waveforms = iter(batch.waveforms)
            for place, row in zip(places, batch.rows, strict=True):
                if row[PROBLEM]:
                    self._bad.append(LabelledClip(*place, row))
                    continue
                waveform = next(waveforms)
                try:
                    decoding = self._prompts.decoding_of(row)
                except ValueError as error:
                    problem = {PROBLEM: str(error), REASON: PROMPT}
                    self._bad.append(LabelledClip(*place, {**row, **problem}))
                    continue
                self._rows[place] = {**row, schema.TASK: decoding.task}
                (features,) = self.teacher.log_mel([waveform], self.teacher.model.device)
                yield Window(place, features, decoding, seed=seed_of(row[schema.ID]))

    def _take_bad(self) -> Iterator[LabelledClip]:
        while self._bad:
            yield self._bad.popleft()


def _label(transcript: Transcript) -> dict[str, Any]:
    return {
        schema.WHISPER_TRANSCRIPT: transcript.ids,
        schema.AVG_LOGPROB: transcript.avg_logprob,
        schema.TRUNCATED: transcript.truncated,
        schema.LANGUAGE: transcript.language,
    }
