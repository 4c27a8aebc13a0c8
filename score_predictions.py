r"""Score files of predictions, and print tables of all results in a folder.

Reads   CSV files with the columns reference_raw and prediction_raw, or reference and prediction;
        and id, where there is one; the predictions.jsonl of run_inference.py; and the results that
        evaluations left.
Writes  one row per file in `metric.<language>.<task>.jsonl`, and its predictions as CSV; with
        --html a page about all results.

    python score_predictions.py --predictions_file a.csv+b.csv -m org/model-a+org/model-b \
        -d org/test-set --language ja -o eval

CER, WER, raw CER and raw WER of all results of a folder, models by test sets, and a page:

    python score_predictions.py -o eval --html report.html

No model is run. A file that was scored before is shown and not scored again.
"""

from dataclasses import dataclass
from pathlib import Path

from distillery.cli.arguments import known_language
from distillery.cli.evaluation_arguments import ScoringArguments
from distillery.cli.flags import VERIFY, flag, missing, one_of, parse, plus_list, same_length
from distillery.text.tokens import TASKS


@dataclass(frozen=True)
class PredictionsArguments:
    """Files to score."""

    predictions_file: str | None = flag(
        None,
        "CSV files, or JSON lines of run_inference.py, to score, joined with '+'; default: only "
        "show the results that are there.",
    )
    model_name_or_path: str | None = flag(
        None,
        "Names of the models that wrote them, joined with '+'; default: the files'.",
        "-m",
        "--model",
    )
    dataset_name: str | None = flag(
        None,
        "Names of the test sets, joined with '+'; default: 'predictions'.",
        "-d",
        "--dataset",
    )
    dataset_config_name: str | None = flag(None, "Configuration of each, joined with '+'.")
    dataset_split_name: str | None = flag(None, "Split of each, joined with '+'.")
    language: str | None = flag(
        None, "Language spoken, as a code or an English name; needed for files.", "-l"
    )
    task: str = flag("transcribe", f"What was written: {' or '.join(TASKS)}.", "-t")
    punctuator: str | None = flag(
        None, "Punctuate the predictions first, as run_short_form_eval.py does.", "-p"
    )
    verify: bool = flag(False, VERIFY, resumable=True)
    dry_run: bool = flag(
        False, "Say which files would be scored, write nothing and stop.", resumable=True
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        paths = plus_list(self.predictions_file)
        lost = [path for path in paths if not Path(path).is_file()]
        names = ("dataset_name", "dataset_config_name", "dataset_split_name")
        return [
            *(missing(self, "language") if paths else []),
            *[f"--predictions_file {path}: there is no such file" for path in lost],
            *known_language(self.language),
            *one_of(self, "task", TASKS),
            *same_length(self, *names),
        ]


GROUPS = (PredictionsArguments, ScoringArguments)


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__)

import logging
import sys

from distillery.cli import forecast
from distillery.cli.evaluation import files_forecast, scoring_of, write_page
from distillery.cli.runtime import hold_folder, log_end, set_up_logging, stage_run
from distillery.data.specs import broadcast_specs
from distillery.evaluation import results, tables
from distillery.evaluation.predictions_files import PredictionsFile, name_files, score_files

logger = logging.getLogger(__name__)


def main(args: PredictionsArguments, scoring_args: ScoringArguments) -> None:
    """Score the files, and print tables of all results in the folder."""
    set_up_logging()
    run = stage_run("score_predictions", (args, scoring_args), Path(scoring_args.output_dir), {})
    files = _named_files(args)
    if args.dry_run:
        sys.stdout.write(forecast.text_of(run, files_forecast(files)))
        return
    if files:
        hold_folder(run)
        named = " + ".join(str(file.path) for file in files)
        logger.info("predictions of %s, to %s; nothing is uploaded", named, run.folder)
        language = str(args.language)
        scoring = scoring_of(scoring_args, verify=args.verify)
        score_files(run, files, language, args.task, scoring, args.punctuator)
    sys.stdout.write(tables.error_tables(results.read_folder(scoring_args.output_dir)))
    write_page(scoring_args, run)
    if files:
        log_end(run, f"metric.*.jsonl and predictions; files: {len(files)}")


def _named_files(args: PredictionsArguments) -> list[PredictionsFile]:
    """Return the files with the models and test sets that the flags name."""
    paths = [Path(name) for name in plus_list(args.predictions_file)]
    columns = {
        "name": plus_list(args.dataset_name),
        "config": plus_list(args.dataset_config_name),
        "split": plus_list(args.dataset_split_name),
    }
    specs = broadcast_specs(columns) if args.dataset_name is not None else []
    return name_files(paths, plus_list(args.model_name_or_path), specs)


if __name__ == "__main__":
    main(*ARGUMENTS)
