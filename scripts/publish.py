r"""Complete the card of a finished model or dataset, and upload the folder.

Reads   a folder that a stage has finished; results of evaluations of the model.
Writes  its card: the results with their intervals, the licence; and the Hub's repository.

    python scripts/publish.py --folder student --eval_results eval+eval-long \
        --license apache-2.0 --hub_model_id my-org/my-student

Without --hub_model_id nothing is uploaded. What a user wrote into the card stays.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a bare clone

from distillery.cli.arguments import license_problems
from distillery.cli.flags import flag, parse, required


@dataclass(frozen=True)
class PublicationArguments:
    """Folder, card and repository."""

    folder: str = required("Folder of a finished model or dataset.", "-m", "-d")
    eval_results: str | None = flag(
        None,
        "Folders with results of the model (metric.*.jsonl), joined with '+': they are put into "
        "its card, as a table with intervals and as the Hub reads them.",
        is_input=True,
    )
    license: str | None = flag(
        None, "Licence of the result, for its card, as the Hub names it: apache-2.0."
    )
    hub_model_id: str | None = flag(
        None, "Hub repository to upload to, such as 'my-org/my-name'; default: nothing is uploaded."
    )
    hub_public: bool = flag(False, "Make the repository public.")

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        return license_problems(self.license)


GROUPS = (PublicationArguments,)

if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__)

import logging
from dataclasses import replace

import yaml

from distillery.cli import hub
from distillery.cli.flags import plus_list
from distillery.cli.runtime import hold_folder, set_up_logging
from distillery.evaluation import card_results
from distillery.evaluation.results import Result
from distillery.storage.publication import CARD, EVAL_RESULTS, hub_ids
from distillery.storage.runs import Run
from distillery.whisper import model_card

logger = logging.getLogger(__name__)


def main(args: PublicationArguments) -> None:
    """Complete the card, and upload."""
    set_up_logging()
    run = _finished_run(args)
    hold_folder(run, "--folder")
    logger.info("%s; %s", run.folder, hub.upload_plan(run))
    hub.check(run)
    if args.license is not None:
        model_card.add_header(run.folder, {"license": args.license})
    if args.eval_results is not None:
        folders = plus_list(args.eval_results)
        results = card_results.results_of(folders, run.folder, args.hub_model_id)
        table = card_results.table(results)
        model_card.add_results(run.folder, table, card_results.model_index(results))
        if args.hub_model_id is not None:
            _add_benchmarks(run, results)
        logger.info("%s: %d results are in its card", run.folder, len(results))
    hub.publish(run)


def _finished_run(args: PublicationArguments) -> Run:
    """Return the run that the folder holds, with the repository that is asked for now."""
    run = Run.finished(Path(args.folder), "--folder")
    if CARD not in run.outputs.written():
        raise ValueError(f"--folder {run.folder} holds no model or dataset: it has no card")
    asked = {name: getattr(args, name) for name in ("hub_model_id", "hub_public")}
    return replace(run, arguments={**run.arguments, **asked, "push_to_hub": False})


def _add_benchmarks(run: Run, results: list[Result]) -> None:
    """Write the results on benchmarks of the Hub as the Hub wants them."""
    datasets = {name for result in results for name in hub_ids(result.dataset)}
    tasks = {name: hub.benchmark_tasks(name) for name in sorted(datasets)}
    for name, entries in card_results.benchmark_entries(results, tasks).items():
        path = run.folder / EVAL_RESULTS / f"{name.replace('/', '_')}.yaml"
        path.parent.mkdir(exist_ok=True)
        with run.outputs.replacing(path, spare=True) as temporary:
            temporary.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    run.list_more()


if __name__ == "__main__":
    main(*ARGUMENTS)
