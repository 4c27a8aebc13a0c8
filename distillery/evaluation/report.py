"""One page of HTML with everything that evaluations found, for people to read.

The page is a single file without scripts, which asks no server for anything. It covers all results
in an output folder, the newest of each evaluation.
"""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from distillery.data import folders, manifests, schema, sources
from distillery.data.specs import DatasetSpec
from distillery.evaluation import tables
from distillery.evaluation.hallucinations import Hallucinations
from distillery.evaluation.results import Prediction, Row, read_folder, read_predictions
from distillery.storage.files import replacing
from distillery.text.error_rates import AlignedRun, ErrorCounts, Unit, aligned_runs, pair_error_rate
from distillery.text.normalizers import raw_text
from distillery.text.timestamps import TimestampScores
from distillery.text.tokens import language_code

NUM_WORST = 50  # utterances of an evaluation that are shown aligned

# The four tables, and the rate over words as a Japanese analyser cuts them.
RATES = {**tables.TITLES, "wer_words": "WER of analysed words"}
OUTLIER = 5  # bars that are so many times longer than the next one are cut off

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

# What an evaluation yields; the other items of a row say what was evaluated, and how.
_FIGURES = frozenset(
    {*RATES, "ci", "edits", "by_duration", "baselines", "num_rows", "num_empty_references"}
    | {"num_bad", "num_parameters", "audio_s", "wall_s", "rtfx", "predictions"}
    | {"versions", "commit", "columns", "num_rows_with_times"}
    | {one.name for kind in (Hallucinations, TimestampScores) for one in fields(kind)}
)
_NAMED_ELSEWHERE = frozenset({"form", "model", "dataset", "config", "split", "postprocessing"})


@dataclass(frozen=True)
class Entry:
    """One evaluation: its row of results, what was predicted, and where the audio is.

    Attributes:
        row: as in a results file; a page does without the items that older rows lack.
        predictions: what the row's predictions file holds.
        audio: the audio file of each id, where the audio is in local files.
        why_no_audio: shown in place of the players where `audio` is empty.
    """

    row: Row
    predictions: Sequence[Prediction]
    audio: Mapping[str, str] = field(default_factory=dict)
    why_no_audio: str = "audio is inside the dataset"


def gather(folder: Path) -> list[Entry]:
    """Return the results that the tables of an output folder are made of.

    Raises:
        ValueError: the folder has no results, or a file in it is damaged.
    """
    rows = tables.newest(read_folder(folder))
    sources = {_source(row) for row in rows}
    clips = {spec: _local_clips(spec) for spec in sources}
    return [_entry(folder, row, *clips[_source(row)]) for row in rows]


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
        page=_Page(_results(entries, path.absolute().parent)),
        rates=RATES,
        long_form=LONG_FORM,
        num_worst=NUM_WORST,
        written=datetime.now(timezone.utc),
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


def unit_of(normalizer_id: str) -> Unit:
    """Return what errors are shown in: characters where words have no spaces between them."""
    return "char" if "no-spaces" in normalizer_id else "word"


class _Clip(NamedTuple):
    """A row of a dataset: its audio file, and the reference."""

    path: str
    text: str


def _source(row: Row) -> DatasetSpec:
    """Return which dataset a result is about, and its columns, as far as players need it."""
    columns = row.get("columns") or {}
    is_folder = Path(row["dataset"]).is_dir()  # a manifest may have no column that names splits
    return DatasetSpec(
        row["dataset"],
        config=row["config"] if is_folder else None,
        split=row["split"] if is_folder else None,
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


def _entry(folder: Path, row: Row, clips: Mapping[str, _Clip], why_no_audio: str) -> Entry:
    """Put a result, its predictions and their audio together.

    A clip whose text is another by now is not the one that was evaluated: it gets no player.
    """
    path = folder / row["predictions"]
    predictions = read_predictions(path) if path.exists() else []
    audio = {
        p.id: clips[p.id].path
        for p in predictions
        if p.id in clips and clips[p.id].text == p.reference_raw
    }
    reason = why_no_audio or f"the rows of {row['dataset']} are others now"
    return Entry(row, predictions, audio, reason)


@dataclass(frozen=True)
class _Utterance:
    """A prediction with errors, as it is shown."""

    prediction: Prediction
    error_rate: float
    runs: list[AlignedRun]
    player: str | None


@dataclass(frozen=True)
class _Result:
    """An entry under the names that tell it from the other ones on the page."""

    entry: Entry
    model: str
    test_set: str
    folder: Path  # of the page

    @property
    def row(self) -> Row:
        return self.entry.row

    @property
    def unit(self) -> Unit:
        return unit_of(self.row["normalizer"])

    @property
    def main_rate(self) -> str:
        """The rate that means most for the script of the texts."""
        return "cer_norm" if self.unit == "char" else "wer_norm"

    @property
    def language(self) -> str:
        """The texts' language code, or "" where it is not known."""
        decoding = self.row.get("decoding") or {}
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
        counts = ErrorCounts(**self.row["edits"][self.main_rate])
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
class _Axis:
    """A scale from 0 to `end`, in percent."""

    end: float
    ticks: list[float]

    def place(self, value: float) -> float:
        """Return where a value lies, in percent of the axis."""
        return round(min(100 * value / self.end, 100), 3)


@dataclass(frozen=True)
class _Page:
    """All results, by model and by test set, in the order in which they were found."""

    results: list[_Result]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(result.model for result in self.results))

    @property
    def test_sets(self) -> list[str]:
        return list(dict.fromkeys(result.test_set for result in self.results))

    @property
    def hours(self) -> float:
        """Audio of the test sets, each counted once."""
        longest_s = [max(r.row.get("audio_s") or 0 for r in self.of(t)) for t in self.test_sets]
        return sum(longest_s) / 3600

    def of(self, test_set: str, key: str | None = None) -> list[_Result]:
        """Return the results on a test set, or those that have a certain item."""
        found = [result for result in self.results if result.test_set == test_set]
        return [r for r in found if key is None or r.row.get(key) not in (None, [], {})]

    def having(self, key: str) -> list[_Result]:
        """Return the results whose rows have a certain item."""
        return [result for test_set in self.test_sets for result in self.of(test_set, key)]

    def baseline_name(self, baseline: Mapping[str, Any]) -> str:
        """Return what the page calls a baseline, or its own name if its result is elsewhere."""
        named = {r.row["predictions"]: r.model for r in self.results}
        return str(named.get(baseline["predictions"], baseline["model"]))

    def cell(self, model: str, test_set: str) -> _Result | None:
        """Return a model's result on a test set."""
        both = (result for result in self.of(test_set) if result.model == model)
        return next(both, None)

    def best(self, rate: str, test_set: str) -> float | None:
        """Return the lowest rate on a test set, where several can be compared."""
        rates = [result.row[rate] for result in self.of(test_set, rate)]
        return min(rates) if len(rates) > 1 else None

    def axis(self, rate: str, test_set: str) -> _Axis:
        """Return a scale for the rates on a test set, intervals included."""
        results = self.of(test_set, rate)
        return _axis_for([max([r.row[rate], *_ci(r.row, rate)]) for r in results])

    def duration_axis(self, test_set: str) -> _Axis:
        """Return a scale for the rates by duration on a test set."""
        results = self.of(test_set, "by_duration")
        return _axis_for([b[r.main_rate] for r in results for b in r.row["by_duration"]])

    def durations(self, test_set: str) -> list[tuple[dict[str, Any], list[dict[str, Any] | None]]]:
        """Return the ranges of durations on a test set, each with what every model got there."""
        found = [
            {(b["from_s"], b["to_s"]): b for b in result.row["by_duration"]}
            for result in self.of(test_set, "by_duration")
        ]
        ranges = {key: b for bins in found for key, b in bins.items()}
        return [(ranges[k], [b.get(k) for b in found]) for k in sorted(ranges, key=lambda k: k[0])]

    def unlike(self, test_set: str) -> list[str]:
        """Return what differs between results on a test set that stand side by side."""
        rows = [result.row for result in self.of(test_set)]
        names = {"normalizer": "normaliser", "num_rows": "number of clips"}
        return [name for key, name in names.items() if len({row[key] for row in rows}) > 1]


def _results(entries: Sequence[Entry], folder: Path) -> list[_Result]:
    """Name the results as the tables do, but models and datasets without their folders."""
    rows = [entry.row for entry in entries]
    models = _shortest([row["model"] for row in rows])
    datasets = _shortest([row["dataset"] for row in rows])
    short = [
        {**row, "model": models[row["model"]], "dataset": datasets[row["dataset"]]} for row in rows
    ]
    names = zip(entries, tables.distinct_names(short), tables.set_names(short), strict=True)
    return [_Result(entry, model, test_set, folder) for entry, model, test_set in names]


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


def _settings(row: Row) -> dict[str, str]:
    """Return how a result was made: the row without its figures, groups of settings unpacked."""
    found: dict[str, str] = {}
    for key, value in row.items():
        if key not in _FIGURES | _NAMED_ELSEWHERE:
            items = value.items() if isinstance(value, dict) else [(key, value)]
            found |= {name: _setting(name, item) for name, item in items}
    return found


def _setting(name: str, value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:8] if name.endswith("fingerprint") else text


def _ci(row: Row, rate: str) -> list[float]:
    """Return the interval of a rate, or [] where the row has none."""
    return (row.get("ci") or {}).get(rate) or []


def _axis_for(values: Iterable[float]) -> _Axis:
    """Return a round scale for values; those far above at least half of them do not count.

    A model that loops has an error rate of several hundred percent, a good one of five, which
    would not be seen on one scale.
    """
    kept = sorted(values)
    for index in range((len(kept) + 1) // 2, len(kept)):
        if kept[index] > OUTLIER * kept[index - 1] > 0:
            del kept[index:]
            break
    largest = max(kept[-1], 0.1)
    magnitude = 10.0 ** math.floor(math.log10(largest))
    step = next(s for s in (0.2, 0.5, 1, 2) if largest / (s * magnitude) <= 5.001) * magnitude
    count = math.ceil(round(largest / step, 6))
    return _Axis(count * step, [round(i * step, 6) for i in range(count + 1)])


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _figure(value: float | None) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "–" if value is None else str(value)


def _interval(row: Row, rate: str) -> str:
    """Return the 95 % interval of a rate as text, "" where the row has none."""
    return "–".join(map(_rate, _ci(row, rate)))


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f}"


def _signed_interval(bounds: Sequence[float] | None) -> str:
    return " to ".join(map(_signed, bounds)) if bounds else "–"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _millions(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.1f} M"


def _minutes(duration_s: float | None) -> str:
    return "–" if duration_s is None else f"{duration_s / 60:.1f} min"


def _seconds(bounds: Mapping[str, Any]) -> str:
    if bounds["to_s"] is None:
        return f"over {bounds['from_s']:g} s"
    return f"{bounds['from_s']:g}–{bounds['to_s']:g} s"


def _breakable(name: str) -> Markup:
    """Let a long name be broken where its parts meet."""
    return Markup("").join(
        Markup("{}<wbr>").format(part) for part in re.split(r"(?<=[/._-])", name)
    )


FILTERS = {
    "breakable": _breakable,
    "rate": _rate,
    "figure": _figure,
    "interval": _interval,
    "signed": _signed,
    "signed_interval": _signed_interval,
    "ratio": _ratio,
    "millions": _millions,
    "minutes": _minutes,
    "seconds": _seconds,
}
