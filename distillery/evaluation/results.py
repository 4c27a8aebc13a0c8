"""Results on disk: rows of figures as JSON lines, predictions as CSV.

A results file is only ever appended to, a whole row at a time. Predictions are replaced as a whole.
"""

import csv
import io
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from distillery.data import schema
from distillery.storage.files import replacing
from distillery.storage.json_lines import JsonRow, read_rows
from distillery.text.error_rates import Unit

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """A row of a predictions file; the fields are its columns."""

    id: str
    reference_norm: str
    prediction_norm: str
    reference_raw: str
    prediction_raw: str


Record = TypeVar("Record", bound="JsonRecord")


@dataclass(frozen=True)
class JsonRecord:
    """A row of figures with a field for each that is read here; `more` holds all others.

    Rows that an older version wrote may lack figures, and a newer one may add some: nothing is lost
    when a row is written again.
    """

    @classmethod
    def from_row(cls: type[Record], row: Mapping[str, Any]) -> Record:
        """Return the record of a row of JSON.

        Raises:
            ValueError: it lacks a field that has no default.
        """
        known = [f for f in fields(cls) if f.name != "more"]
        required = [f.name for f in known if f.default is f.default_factory is MISSING]
        lacking = [name for name in required if name not in row]
        if lacking:
            raise ValueError(f"a row of results lacks {', '.join(lacking)}: mend or remove it")
        values = {f.name: row[f.name] for f in known if f.name in row}
        values["more"] = {key: row[key] for key in row if key not in values}
        return cls(**values)

    def to_row(self) -> JsonRow:
        """Return the row of JSON."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        others = values.pop("more")
        return {**values, **others}


@dataclass(frozen=True)
class Result(JsonRecord):
    """One row of a `metric.*.jsonl`: what was evaluated, how, and the figures.

    Figures that an older row lacks are None or empty; `more` holds settings, and figures of long
    recordings alone.

    Attributes:
        form: `short_form` or `long_form`.
        model: the whole path of a folder, or a Hub id.
        dataset, config, split: the test set.
        cer_norm, wer_norm, cer_raw, wer_raw: as in `error_rates.Scores`, in percent.
        decoding: the fields of `windows.Decoding`, as far as they are known.
        normalizer: the normaliser's id.
        postprocessing: names of the steps after decoding.
        num_rows, num_empty_references: as in `error_rates.Scores`.
        num_bad: clips that could not be used.
        ci: for each rate [low, high], in percent.
        edits: for each rate the fields of `error_rates.ErrorCounts`.
        by_duration: as `Tally.by_duration` returns it.
        wer_words, word_segmenter: the rate over Japanese words, and the program that found them.
        baselines: the comparison with each baseline, as `comparison.compare` returns it.
        num_parameters: of the model.
        audio_s, wall_s: seconds of audio, and seconds that transcribing them took.
        rtfx: `audio_s` / `wall_s`.
        predictions: path of the predictions file, relative to the folder of the results.
        columns: the user's names of the dataset's columns.
        versions, commit: of the libraries, and of this code.
    """

    form: str
    model: str
    dataset: str
    cer_norm: float
    wer_norm: float
    cer_raw: float
    wer_raw: float
    config: str | None = None
    split: str | None = None
    decoding: Mapping[str, Any] | None = None
    normalizer: str = ""
    postprocessing: Sequence[str] = field(default_factory=list)
    num_rows: int = 0
    num_empty_references: int = 0
    num_bad: int = 0
    ci: Mapping[str, Sequence[float]] | None = None
    edits: Mapping[str, Mapping[str, int]] | None = None
    by_duration: Sequence[Mapping[str, Any]] = field(default_factory=list)
    wer_words: float | None = None
    word_segmenter: str | None = None
    baselines: Sequence[Mapping[str, Any]] = field(default_factory=list)
    num_parameters: int | None = None
    audio_s: float | None = None
    wall_s: float | None = None
    rtfx: float | None = None
    predictions: str = ""
    columns: Mapping[str, str | None] | None = None
    versions: Mapping[str, str] | None = None
    commit: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def figure(self, name: str) -> Any:
        """Return a field, or an item of `more`, by its name; None where there is none."""
        return getattr(self, name) if name in _FIELDS else self.more.get(name)

    @property
    def unit(self) -> Unit:
        """What errors are shown in: characters where words have no spaces between them."""
        return unit_of(self.normalizer)

    @property
    def main_rate(self) -> str:
        """Name of the rate that means most for the script of the texts."""
        return "cer_norm" if self.unit == "char" else "wer_norm"


def unit_of(normalizer_id: str) -> Unit:
    """Return what errors are shown in under a normaliser; see `Result.unit`."""
    return "char" if "no-spaces" in normalizer_id else "word"


JSON_LINES = ".jsonl"
PREDICTION = "prediction"

_FIELDS = {f.name for f in fields(Result)} - {"more"}


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """Return all results of a file in order.

    Raises:
        ValueError: a row is no result, or no JSON.
    """
    return [_result(row, path) for row in read_rows(path)]


def _result(row: JsonRow, path: str | os.PathLike[str]) -> Result:
    try:
        return Result.from_row(row)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_folder(folder: str | os.PathLike[str]) -> list[Result]:
    """Return the results of all evaluations in a folder, each file's in order.

    Raises:
        ValueError: there is none.
    """
    paths = sorted(Path(folder).glob("metric.*.jsonl"))
    all_results = [result for path in paths for result in read_results(path)]
    if not all_results:
        raise ValueError(f"{folder} holds no result: it has no file metric.*.jsonl with a row")
    return all_results


def find_row(rows: Iterable[JsonRow], identity: Mapping[str, Any]) -> JsonRow | None:
    """Return the newest row that equals `identity` in all its items, or None.

    An identity must tell models apart: give the full path or Hub id, never its last part alone.

    Raises:
        ValueError: for an empty identity, which every row would match.
    """
    if not identity:
        raise ValueError("the identity of a result must name at least one column")
    matching = [
        row
        for row in rows
        if all(key in row and row[key] == value for key, value in identity.items())
    ]
    return matching[-1] if matching else None


def write_predictions(path: str | os.PathLike[str], rows: Iterable[Prediction]) -> None:
    """Write predictions to a CSV file, replacing it as a whole once all are on disk."""
    with (
        replacing(Path(path)) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        # Before Python 3.13 a lone carriage return is quoted only where everything is.
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(Prediction._fields)
        writer.writerows(rows)


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """Return the rows that `write_predictions` wrote, every field the same text as before.

    Raises:
        ValueError: if the columns differ from those, or a row has too few or too many fields.
    """
    path = Path(path)
    header, rows = _read_csv(path)
    if header != Prediction._fields:
        raise ValueError(
            f"{path}: columns are {', '.join(header) or 'missing'}, "
            f"expected {', '.join(Prediction._fields)}"
        )
    return [Prediction(*row) for row in rows]


def read_foreign_predictions(path: str | os.PathLike[str]) -> list[tuple[str, str, str]]:
    """Return id, reference and prediction, as written, of a predictions file from anywhere.

    The columns may be those of `Prediction`, of which the raw texts are taken, or `reference` and
    `prediction`; in JSON lines, such as inference writes, `text` is the prediction. Without a
    column `id`, or with one that does not tell the rows apart, rows are numbered from 1. "NA",
    "null" and "" are texts, not missing values.

    Raises:
        ValueError: a column is missing, there is no row, or a row has too few or too many fields.
    """
    path = Path(path)
    header, rows = _read_json_lines(path) if path.suffix == JSON_LINES else _read_csv(path)
    reference, prediction = (_column(path, header, side) for side in (schema.REFERENCE, PREDICTION))
    if not rows:
        raise ValueError(f"{path}: there is no row below the header")
    ids = [row[header.index(schema.ID)] for row in rows] if schema.ID in header else []
    if "" in ids or len(set(ids)) < len(ids):
        logger.warning("%s: ids are empty or occur more than once: rows are numbered instead", path)
        ids = []
    ids = ids or [str(number) for number in range(1, len(rows) + 1)]
    return [
        (row_id, row[reference], row[prediction]) for row_id, row in zip(ids, rows, strict=True)
    ]


def _read_csv(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the header and the rows of a CSV file, all of them as wide as the header."""
    csv.field_size_limit(2**31 - 1)  # the default, 128 KiB, is less than hours of speech take
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}: save it as UTF-8") from error
    with io.StringIO(text, newline="") as file:
        reader = csv.reader(file)
        header = tuple(next(reader, ()))
        rows = []
        for fields in reader:
            if len(fields) != len(header):
                raise ValueError(
                    f"{path}:{reader.line_num}: expected {len(header)} fields, got {len(fields)}"
                )
            rows.append(fields)
    return header, rows


def _read_json_lines(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return the keys and the rows of JSON lines as texts; what is null or absent is no text."""
    rows = read_rows(path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    texts = [[str(row[n]) if row.get(n) is not None else "" for n in names] for row in rows]
    if PREDICTION not in names:
        names = [PREDICTION if name == schema.TEXT else name for name in names]
    return tuple(names), texts


def _column(path: Path, header: tuple[str, ...], side: str) -> int:
    """Return the place of the column that holds the references or the predictions."""
    for name in (f"{side}_raw", side):
        if name in header:
            return header.index(name)
    raise ValueError(
        f"{path}: no column {side}_raw or {side}; its columns are {', '.join(header) or 'missing'}"
    )
