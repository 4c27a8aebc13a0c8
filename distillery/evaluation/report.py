"""One page of HTML with everything that evaluations found, for people to read.

The page is a single file without scripts and loads nothing from the network. It shows the newest
result of each evaluation in an output folder.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2

from distillery.data import schema
from distillery.data.specs import DatasetSpec
from distillery.evaluation import tables
from distillery.evaluation.figures import FILTERS, Axis, axis_for
from distillery.evaluation.hallucinations import Hallucinations
from distillery.evaluation.results import Prediction, Result, read_folder, read_predictions
from distillery.ingest import folders, manifests, sources
from distillery.storage.files import replacing
from distillery.text.error_rates import AlignedRun, ErrorCounts, Unit, aligned_runs, pair_error_rate
from distillery.text.normalizers import raw_text
from distillery.text.timestamps import TimestampScores
from distillery.text.tokens import language_code

NUM_WORST = 50  # utterances of an evaluation that are shown aligned

WRITES_DIGITS = "whisper-english"  # begins the ids of normalisers that write numbers as digits

# Beside the rates of the tables: the one over words as a Japanese analyser cuts them.
WORDS_TITLE = {"wer_words": "WER of analysed words"}

# Beside the error rates of long recordings.
LONG_FORM = {
    "num_loops": "Loops",
    "max_compression_ratio": "Highest compression ratio",
    "num_segments_in_silence": "Segments in silence",
    "num_segments_in_gaps": "Segments in gaps",
    "start_error_mean_s": "Error of starts, s",
    "end_error_mean_s": "Error of ends, s",
    "timestamp_coverage": "Time covered, %",
    "timestamp_overlap": "Overlap, %",
}

# Items of `Result.more` that are figures of long recordings; the others are settings.
_FIGURES = {
    "num_rows_with_times",
    *(each.name for kind in (Hallucinations, TimestampScores) for each in fields(kind)),
}


@dataclass(frozen=True)
class Entry:
    """One evaluation: its figures, what was predicted, and where the audio is.

    Attributes:
        result: as in a results file; a page does without what older rows lack.
        predictions: what the result's predictions file holds.
        audio: the audio file of each id, where the audio is in local files.
        why_no_audio: shown in place of the players where `audio` is empty.
    """

    result: Result
    predictions: Sequence[Prediction]
    audio: Mapping[str, str] = field(default_factory=dict)
    why_no_audio: str = "audio is inside the dataset"


def gather(folder: Path) -> list[Entry]:
    """Return the results that the tables of an output folder are made of.

    Raises:
        ValueError: the folder has no results, or a file in it is damaged.
    """
    results = tables.newest(read_folder(folder))
    clips = {spec: _local_clips(spec) for spec in {_source(result) for result in results}}
    return [_entry(folder, result, *clips[_source(result)]) for result in results]


def write_report(path: str | os.PathLike[str], entries: Sequence[Entry]) -> None:
    """Write a page about evaluations, replacing it as a whole.

    Players name their files relative to the page, so that a folder can be moved with both.
    """
    path = Path(path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    page = environment.get_template("report.html.j2").render(
        page=_Page(_shown_results(entries, path.absolute().parent)),
        rates=tables.titles_for(entry.result for entry in entries) | WORDS_TITLE,
        long_form=LONG_FORM,
        num_worst=NUM_WORST,
        generated=datetime.now(timezone.utc),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def worst(predictions: Iterable[Prediction], unit: Unit) -> list[tuple[float, Prediction]]:
    """Return the worst predictions and their error rates in percent; none without an error."""
    rated = [
        (pair_error_rate(p.reference_norm, p.prediction_norm, unit), p)
        for p in predictions
        if p.reference_norm
    ]
    return sorted((r for r in rated if r[0] > 0), key=lambda r: -r[0])[:NUM_WORST]


class _Clip(NamedTuple):
    """A row of a dataset: its audio file, and the reference."""

    path: str
    text: str


def _source(result: Result) -> DatasetSpec:
    """Return the dataset that a result is about, as far as players need it."""
    columns = result.columns or {}
    is_folder = Path(result.dataset).is_dir()  # a manifest may have no column that names splits
    return DatasetSpec(
        result.dataset,
        config=result.config if is_folder else None,
        split=result.split if is_folder else None,
        audio_column=columns.get(schema.AUDIO) or schema.AUDIO,
        text_column=columns.get(schema.TEXT),
        id_column=columns.get(schema.ID),
    )


def _local_clips(spec: DatasetSpec) -> tuple[Mapping[str, _Clip], str]:
    """Return by id the rows of a manifest or of a folder of audio, or why there are none."""
    path = Path(spec.name)
    if not (path.suffix in manifests.SUFFIXES or (path.is_dir() and folders.is_layout(path))):
        return {}, Entry.why_no_audio
    try:
        rows = sources.load(spec)
    except (FileNotFoundError, ValueError) as error:  # moved, or not what was evaluated
        return {}, str(error)
    texts = rows[schema.TEXT] if schema.TEXT in rows.column_names else [""] * len(rows)
    clips = zip(rows[schema.ID], rows[schema.AUDIO], texts, strict=True)
    return {i: _Clip(audio["path"], raw_text(text or "")) for i, audio, text in clips}, ""


def _entry(folder: Path, result: Result, clips: Mapping[str, _Clip], why_no_audio: str) -> Entry:
    """Put a result, its predictions and their audio together.

    A clip whose text has changed since is not the one that was evaluated: it gets no player.
    """
    path = folder / result.predictions
    predictions = read_predictions(path) if path.is_file() else []
    audio = {
        p.id: clips[p.id].path
        for p in predictions
        if p.id in clips and clips[p.id].text == p.reference_raw
    }
    reason = why_no_audio or f"the rows of {result.dataset} have changed since"
    return Entry(result, predictions, audio, reason)


@dataclass(frozen=True)
class _Utterance:
    """A prediction with errors, as it is shown."""

    prediction: Prediction
    error_rate: float
    runs: list[AlignedRun]
    player: str | None


@dataclass(frozen=True)
class _ShownResult:
    """An entry under the names that tell it from the other ones on the page."""

    entry: Entry
    model: str
    test_set: str
    folder: Path  # of the page

    @property
    def row(self) -> Result:
        return self.entry.result

    @property
    def unit(self) -> Unit:
        return self.row.unit

    @property
    def main_rate(self) -> str:
        return self.row.main_rate

    @property
    def language(self) -> str:
        """The texts' language code, or "" where it is not known."""
        decoding = self.row.decoding or {}
        if decoding.get("task") == "translate":
            return "en"
        return language_code(decoding["language"]) if decoding.get("language") else ""

    @property
    def settings(self) -> dict[str, str]:
        return _settings(self.row)

    @property
    def num_with_errors(self) -> int:
        pairs = [(p.reference_norm, p.prediction_norm) for p in self.entry.predictions]
        return sum(bool(ref) and pair_error_rate(ref, pred, self.unit) > 0 for ref, pred in pairs)

    @property
    def kinds(self) -> list[float]:
        """Substitutions, deletions and insertions, in percent of the reference's units."""
        counts = ErrorCounts(**(self.row.edits or {})[self.main_rate])
        edits = (counts.substitutions, counts.deletions, counts.insertions)
        return [100 * count / max(counts.reference_length, 1) for count in edits]

    @cached_property
    def worst(self) -> list[_Utterance]:
        return [
            _Utterance(
                prediction,
                error_rate,
                aligned_runs(prediction.reference_norm, prediction.prediction_norm, self.unit),
                self._player(prediction.id),
            )
            for error_rate, prediction in worst(self.entry.predictions, self.unit)
        ]

    def _player(self, row_id: str) -> str | None:
        """Return the address of a clip's audio file, relative to the page; None without one."""
        path = self.entry.audio.get(row_id)
        if path is None or not Path(path).is_file():
            return None
        return quote(os.fsencode(Path(os.path.relpath(path, self.folder)).as_posix()))


@dataclass(frozen=True)
class _Page:
    """All results, by model and by test set, in the order in which they were found."""

    results: list[_ShownResult]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(result.model for result in self.results))

    @property
    def test_sets(self) -> list[str]:
        return list(dict.fromkeys(result.test_set for result in self.results))

    @property
    def hours(self) -> float:
        """Audio of the test sets, each counted once."""
        longest_s = [max(r.row.audio_s or 0 for r in self.of(t)) for t in self.test_sets]
        return sum(longest_s) / 3600

    @property
    def sizes(self) -> dict[str, int | None]:
        """Number of parameters of each model; None where it is not known."""
        counts = {r.row.model: r.row.num_parameters for r in self.results}
        names = _shortest(counts)
        return {names[model]: count for model, count in counts.items()}

    @property
    def writes_digits(self) -> bool:
        """Whether some texts were normalised by Whisper's English rules: "five" becomes "5"."""
        return any(result.row.normalizer.startswith(WRITES_DIGITS) for result in self.results)

    def of(self, test_set: str, key: str | None = None) -> list[_ShownResult]:
        """Return the results on a test set; with `key`, those that have this figure."""
        matching = [result for result in self.results if result.test_set == test_set]
        return [r for r in matching if key is None or r.row.figure(key) not in (None, [], {}, ())]

    def rates(self, test_set: str) -> list[str]:
        """Return the two normalised rates in the order in which they are shown for a test set."""
        shown = self.of(test_set)
        return [rate for rate in tables.titles_for(r.row for r in shown) if rate.endswith("_norm")]

    def having(self, key: str) -> list[_ShownResult]:
        """Return the results that have a certain figure."""
        return [result for test_set in self.test_sets for result in self.of(test_set, key)]

    def baseline_name(self, baseline: Mapping[str, Any]) -> str:
        """Return what the page calls a baseline, or its own name if its result is elsewhere."""
        named = {r.row.predictions: r.model for r in self.results}
        return str(named.get(baseline["predictions"], baseline["model"]))

    def cell(self, model: str, test_set: str) -> _ShownResult | None:
        """Return a model's result on a test set."""
        both = (result for result in self.of(test_set) if result.model == model)
        return next(both, None)

    def best(self, rate: str, test_set: str) -> float | None:
        """Return the lowest rate on a test set, where several can be compared."""
        rates = [result.row.figure(rate) for result in self.of(test_set, rate)]
        return min(rates) if len(rates) > 1 else None

    def axis(self, rate: str, test_set: str) -> Axis:
        """Return an axis for the rates on a test set, intervals included."""
        results = self.of(test_set, rate)
        intervals = [(r.row.ci or {}).get(rate) or () for r in results]
        rates = [r.row.figure(rate) for r in results]
        return axis_for([max([rate, *ci]) for rate, ci in zip(rates, intervals, strict=True)])

    def duration_axis(self, test_set: str) -> Axis:
        """Return an axis for the rates by duration on a test set."""
        results = self.of(test_set, "by_duration")
        return axis_for([b[r.main_rate] for r in results for b in r.row.by_duration])

    def durations(self, test_set: str) -> list[tuple[dict[str, Any], list[dict[str, Any] | None]]]:
        """Return the ranges of durations on a test set, each with the rates of every model."""
        each = [
            {(b["from_s"], b["to_s"]): dict(b) for b in result.row.by_duration}
            for result in self.of(test_set, "by_duration")
        ]
        ranges = {key: b for bins in each for key, b in bins.items()}
        return [(ranges[k], [b.get(k) for b in each]) for k in sorted(ranges, key=lambda k: k[0])]

    def unlike(self, test_set: str) -> list[str]:
        """Return what makes the results on a test set hard to compare."""
        rows = [result.row for result in self.of(test_set)]
        names = {"normalizer": "normaliser", "num_rows": "number of clips"}
        return [name for key, name in names.items() if len({r.figure(key) for r in rows}) > 1]


def _shown_results(entries: Sequence[Entry], folder: Path) -> list[_ShownResult]:
    """Name the results as the tables do, but models and datasets without their folders."""
    results = [entry.result for entry in entries]
    models = tables.distinct_names(results, _shortest(result.model for result in results))
    test_sets = tables.set_names(results, _shortest(result.dataset for result in results))
    names = zip(entries, models, test_sets, strict=True)
    return [_ShownResult(entry, model, test_set, folder) for entry, model, test_set in names]


def _shortest(names: Iterable[str]) -> dict[str, str]:
    """Return the shortest ends of paths or Hub ids that tell them apart, of files the stems."""
    parts = {name: _without_suffix(Path(name)).parts for name in names}
    for length in range(1, 1 + max(map(len, parts.values()), default=0)):
        short = {name: "/".join(all_parts[-length:]) for name, all_parts in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {name: name for name in parts}


def _without_suffix(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in (*manifests.SUFFIXES, ".py") else path


def _settings(result: Result) -> dict[str, str]:
    """Return the settings that a result was made with, as text, groups unpacked."""
    settings: dict[str, str] = {}
    made = {"decoding": result.decoding, "normalizer": result.normalizer, **result.more}
    for key, value in made.items():
        if key not in _FIGURES:
            items = value.items() if isinstance(value, dict) else [(key, value)]
            settings |= {name: _setting(name, item) for name, item in items}
    return settings


def _setting(name: str, value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:8] if name.endswith("fingerprint") else text
