"""What short-form and long-form evaluation share: flags, scores, and the files they leave."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import evaluate
from accelerate import Accelerator

from distillery import data, results, schema, whisper
from distillery.arguments import (
    DataArguments,
    DecodingArguments,
    ModelArguments,
    RunArguments,
    at_least,
    flag,
    one_of,
)
from distillery.metrics import Unit, alignment, pair_error_rate, score
from distillery.normalizers import VARIANTS, Normalizer, raw_text
from distillery.runtime import code_commit, versions
from distillery.shards import replacing
from distillery.tokens import language_code
from distillery.transcription import Decoding

logger = logging.getLogger(__name__)

NUM_WORST = 50  # utterances that are shown aligned


@dataclass(frozen=True)
class EvaluationArguments:
    """What evaluation decides beside the model, the data and the decoding."""

    output_dir: str = flag("eval", "Folder for metrics and predictions.", "-o")
    per_device_eval_batch_size: int = flag(16, "Windows that are decoded at once.", "-b", "--batch")
    generation_max_length: int = flag(
        225, "Most ids of the transcript of one window.", "--max_label_length"
    )
    normalizer: str = flag(
        "auto", f"How texts are normalised before they are scored: {', '.join(VARIANTS)}."
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return [
            *at_least(self, "per_device_eval_batch_size", 1),
            *at_least(self, "generation_max_length", 8),
            *one_of(self, "normalizer", VARIANTS),
        ]


@dataclass(frozen=True)
class Heard:
    """One row after decoding: what was said, what was written, and how long it lasts.

    `problem` names why a clip could not be transcribed, and is None for the others.
    """

    id: str
    reference: str
    prediction: str
    duration_s: float
    problem: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """One model on one split: where the files go, and everything that identifies the result."""

    form: str
    spec: data.DatasetSpec
    decoding: Decoding
    normalizer: Normalizer
    folder: Path
    identity: dict[str, Any]

    @property
    def metrics_path(self) -> Path:
        """Return the file that the result is appended to, one row per evaluation."""
        language = language_code(self.decoding.language) if self.decoding.language else "en"
        return self.folder / f"metric.{language}.{self.decoding.task}.jsonl"

    @property
    def predictions_path(self) -> Path:
        """Return the file of this evaluation's predictions; its name ends in a sum of the identity.

        Two models of the same base name therefore never share a file.
        """
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        names = [Path(self.identity["model"]).name, Path(self.spec.name).stem, str(self.spec.split)]
        return self.folder / "predictions" / f"{'.'.join(names)}.{digest[:8]}.csv"

    def earlier(self) -> results.Row | None:
        """Return the result of an earlier, identical evaluation, if its predictions are there."""
        if not self.metrics_path.exists() or not self.predictions_path.exists():
            return None
        return results.find_row(results.read_rows(self.metrics_path), self.identity)

    def conclude(
        self, heard: list[Heard], wall_s: float, num_parameters: int, max_bad_fraction: float
    ) -> results.Row:
        """Score what was heard, write predictions and metrics, and return the row of metrics.

        Raises:
            ValueError: too many clips could not be used, or an id occurs twice.
        """
        # In the order of their ids, whichever process heard them.
        good = sorted((row for row in heard if row.problem is None), key=lambda row: row.id)
        _check_complete(heard, good, max_bad_fraction, str(self.spec))
        scores = score([h.reference for h in good], [h.prediction for h in good], self.normalizer)
        results.write_predictions(self.predictions_path, map(self._prediction, good))
        audio_s = sum(row.duration_s for row in good)
        row = {
            **self.identity,
            **asdict(scores),
            **self.more_figures(good),
            "num_bad": len(heard) - len(good),
            "num_parameters": num_parameters,
            "audio_s": round(audio_s, 3),
            "wall_s": round(wall_s, 3),
            "rtfx": audio_s / wall_s,
            "predictions": str(self.predictions_path.relative_to(self.folder)),
            "versions": versions(),
            "commit": code_commit(),
        }
        evaluate.save(str(self.predictions_path.with_suffix(".json")), **row)
        self._write_worst(good)
        results.append_row(self.metrics_path, row)
        return row

    def more_figures(self, good: Sequence[Heard]) -> dict[str, Any]:
        """Return figures beside the error rates; a form that has some overrides this."""
        return {}

    def _write_worst(self, good: list[Heard]) -> None:
        """Write the worst utterances, aligned with their references, for a person to read."""
        unit: Unit = "char" if "no-spaces" in self.normalizer.id else "word"
        pairs = [(self.normalizer(h.reference), self.normalizer(h.prediction), h.id) for h in good]
        rated = [(pair_error_rate(ref, pred, unit), ref, pred, i) for ref, pred, i in pairs if ref]
        lines = [
            f"{row_id}: {rate:.1f} % of the {unit}s wrong\n{alignment(ref, pred, unit)}"
            for rate, ref, pred, row_id in sorted(rated, key=lambda r: -r[0])[:NUM_WORST]
            if rate > 0
        ]
        with replacing(self.predictions_path.with_suffix(".worst.txt")) as temporary:
            temporary.write_text("\n\n".join(lines) + "\n", encoding="utf-8")

    def _prediction(self, heard: Heard) -> results.Prediction:
        return results.Prediction(
            heard.id,
            self.normalizer(heard.reference),
            self.normalizer(heard.prediction),
            heard.reference,
            heard.prediction,
        )


def _check_complete(
    heard: list[Heard], good: list[Heard], max_bad_fraction: float, name: str
) -> None:
    if not good:
        reasons = {row.problem for row in heard}
        raise ValueError(
            f"{name}: no clip could be used: {', '.join(map(str, reasons)) or 'empty'}"
        )
    if len({row.id for row in heard}) != len(heard):
        raise ValueError(f"{name}: ids are not unique; name another column with --id_column_name")
    bad = len(heard) - len(good)
    if bad > max_bad_fraction * len(heard):
        raise ValueError(
            f"{name}: {bad} of {len(heard)} clips cannot be used; that is more than "
            f"--max_bad_fraction {max_bad_fraction:g} allows"
        )


def plan(
    form: str,
    spec: data.DatasetSpec,
    model: whisper.Whisper,
    model_args: ModelArguments,
    decoding_args: DecodingArguments,
    args: EvaluationArguments,
    **algorithm: Any,
) -> Evaluation:
    """Put together what identifies one evaluation.

    Args:
        form: `short_form` or `long_form`.
        spec: what is read.
        model: the model, loaded.
        model_args, decoding_args, args: the flags.
        algorithm: more settings that change the result.
    """
    preset = getattr(model.model.generation_config, "language", None)
    decoding = Decoding(
        decoding_args.language or (preset if model.tokens.is_multilingual else None),
        decoding_args.task,
        decoding_args.return_timestamps,
        decoding_args.generation_num_beams,
        min(args.generation_max_length, model.max_label_length),
    )
    model.tokens.prefix(decoding.language, decoding.task, False)  # fails by name if they misfit
    normalizer = model.normalizer(decoding.language, decoding.task, args.normalizer)
    name = model_args.model_name_or_path
    identity = {
        "form": form,
        "model": str(Path(name).resolve()) if Path(name).exists() else name,
        "model_revision": model_args.model_revision,
        "model_fingerprint": whisper.fingerprint(name),
        "dataset": spec.name,
        "config": spec.config,
        "split": spec.split,
        "max_rows": spec.max_rows,
        "dataset_fingerprint": data.fingerprint(spec),
        "dtype": model_args.dtype,
        "attention": model_args.attn_type,
        "decoding": asdict(decoding),
        "normalizer": normalizer.id,
        **algorithm,
    }
    return Evaluation(form, spec, decoding, normalizer, Path(args.output_dir), identity)


def reference_of(row: dict[str, Any]) -> str:
    """Return a row's reference without markup; "" where it has none."""
    return raw_text(row.get(schema.TEXT) or "")


def report(accelerator: Accelerator, run_args: RunArguments, rows: list[results.Row]) -> None:
    """Print a table of results and hand them to the trackers."""
    rates = ["cer_norm", "wer_norm", "cer_raw", "wer_raw"]
    columns = ["model", "dataset", "algorithm", *rates, "rtfx", "num_rows"]
    columns = [column for column in columns if any(column in row for row in rows)]
    for line in results.markdown_table(rows, columns).splitlines():
        logger.info("%s", line)
    if accelerator.log_with:
        accelerator.init_trackers(run_args.wandb_project or "whisper-distillery-eval")
        for index, row in enumerate(rows):
            figures = {k: v for k, v in row.items() if isinstance(v, int | float)}
            accelerator.log({f"{row['form']}/{k}": v for k, v in figures.items()}, step=index)


def evaluate_each(
    accelerator: Accelerator,
    model: whisper.Whisper,
    data_args: DataArguments,
    run_args: RunArguments,
    plan_each: Callable[[data.DatasetSpec], Sequence[Evaluation]],
    transcribe: Callable[[Evaluation, data.Rows], tuple[list[Heard], float]],
) -> None:
    """Evaluate on each dataset in turn, unless the same was done before, and report.

    Args:
        accelerator: of this launch.
        model: the model.
        data_args, run_args: the flags.
        plan_each: puts together what identifies each evaluation on a dataset.
        transcribe: returns all rows, heard by all processes, and the seconds it took.
    """
    found = []
    for spec, rows in specs_with_references(data_args):
        for one in plan_each(spec):
            row = one.earlier()
            accelerator.wait_for_everyone()  # all have looked before one of them writes
            if row is not None:
                logger.info("%s was evaluated before: %s", spec, one.metrics_path)
            else:
                heard, wall_s = transcribe(one, rows)
                if accelerator.is_main_process:
                    bad = data_args.max_bad_fraction
                    row = one.conclude(heard, wall_s, model.num_parameters, bad)
            found.append(row)
    if accelerator.is_main_process:
        report(accelerator, run_args, [row for row in found if row is not None])
    accelerator.end_training()


def specs_with_references(data_args: DataArguments) -> list[tuple[data.DatasetSpec, data.Rows]]:
    """Load every split that the flags name; each must have references.

    Raises:
        ValueError: a dataset has no column of references.
    """
    found = []
    for spec in data_args.specs():
        rows = data.load(spec)
        data.require_column(rows, spec, schema.TEXT, "--text_column_name")
        found.append((data.with_split(spec, rows), rows))
    return found
