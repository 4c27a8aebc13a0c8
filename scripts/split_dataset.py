r"""Split a dataset by speaker into train, validation and test.

Reads   any dataset: a manifest, a folder in the Hub's layout, a Hub id, a folder of audio.
Writes  of a manifest three, train.jsonl, validation.jsonl and test.jsonl, whose paths lead to the
        same audio; of any other dataset one in the Hub's layout with three splits, audio inside.

    python scripts/split_dataset.py -d speech.jsonl -o splits --test_share 0.1

A speaker is in one split alone; rows without a speaker go by their recording, those without either
by their id. Which split that is follows from the speaker's name and --seed: rows that are added
later move nobody.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a bare clone

from distillery.cli.arguments import DataArguments
from distillery.cli.flags import VERIFY, at_least, flag, parse, plus_list, required, within


@dataclass(frozen=True)
class SplitArguments:
    """Splits."""

    output_dir: str = required("Folder to write to.", "-o", resumable=True)
    overwrite_output_dir: bool = flag(
        False, "Throw away what another run of this script left in --output_dir.", resumable=True
    )
    validation_share: float = flag(0.05, "Share of the speakers to validate with; 0: no split.")
    test_share: float = flag(0.05, "Share of the speakers to test with; 0: no such split.")
    seed: int = flag(0, "Another one deals the speakers out anew.")
    rows_per_shard: int = flag(1000, "Rows in one Parquet file, where such are written.")
    verify: bool = flag(False, VERIFY, resumable=True)
    dry_run: bool = flag(
        False, "Say what would be in each split, write nothing and stop.", resumable=True
    )

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = [
            *within(self, "validation_share", 0, 1),
            *within(self, "test_share", 0, 1),
            *at_least(self, "rows_per_shard", 1),
        ]
        total = self.validation_share + self.test_share
        if not problems and not 0 < total < 1:
            problems.append(
                "--validation_share and --test_share must be more than 0 and less than 1 "
                f"together, got {total:g}"
            )
        return problems


GROUPS = (DataArguments, SplitArguments)


def check(data_args: DataArguments) -> list[str]:
    """Return what cannot be split."""
    problems = []
    if len(plus_list(data_args.dataset_name)) > 1:
        problems.append("--dataset_name names several: split one after the other")
    if data_args.streaming:
        problems.append("--streaming: all rows are looked at before one is written; leave it out")
    return problems


if __name__ == "__main__":
    # Before what is heavy is imported: --help and wrong flags answer within a second.
    ARGUMENTS = parse(GROUPS, description=__doc__, check=check)

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace

import pyarrow as pa
from datasets import Features, IterableDataset

from distillery.cli.runtime import log_end, log_start, set_up_logging, stage_run
from distillery.data import column_types, hub_layout, schema
from distillery.data.column_types import MapStyleRows
from distillery.data.specs import DatasetSpec
from distillery.ingest import manifests, sources
from distillery.ingest.label_folders import card_text, passed_on
from distillery.ingest.splitting import RawManifest, Shares, SplitRows, divide
from distillery.storage.checkpoints import sealed_folder
from distillery.storage.ownership import refuse_overlap, taken_name
from distillery.storage.runs import Run

logger = logging.getLogger(__name__)

ROWS_PER_TABLE = 100


def main(data_args: DataArguments, args: SplitArguments) -> None:
    """Share the rows out, and write the splits."""
    set_up_logging()
    (spec,) = data_args.specs()
    inputs = {str(spec): sources.fingerprint(spec)}
    run = stage_run("split_dataset", (data_args, args), Path(args.output_dir), inputs)
    refuse_overlap(run.folder, run.reads)
    shares = Shares(args.validation_share, args.test_share, args.seed)
    if args.dry_run:
        _, splits = _divided(spec, shares)
        sys.stdout.write("".join(f"{line}\n" for line in _described(splits)))
        return
    with taken_name(run.folder):
        if not run.was_made("--output_dir", args.overwrite_output_dir):
            run.refuse_damaged_inputs()
            log_start(run, None, None, None, f"rows of {spec}")
            rows, splits = _divided(spec, shares)
            for line in _described(splits):
                logger.info("%s", line)
            _write(run, rows, spec, splits)


def _is_manifest(spec: DatasetSpec) -> bool:
    return Path(spec.name).suffix in manifests.SUFFIXES


def _divided(
    spec: DatasetSpec, shares: Shares
) -> tuple[MapStyleRows | RawManifest, dict[str, SplitRows]]:
    """Return a dataset, and which of its rows go into which split."""
    if _is_manifest(spec):
        manifest = RawManifest.read(spec)
        return manifest, divide(manifest.contract_rows(), shares)
    rows = sources.load(spec)
    assert not isinstance(rows, IterableDataset)
    read = [schema.ID, schema.SPEAKER_ID, schema.RECORDING_ID]
    read.append(schema.DURATION if schema.DURATION in rows.column_names else schema.AUDIO)
    return rows, divide(rows.select_columns([c for c in read if c in rows.column_names]), shares)


def _described(splits: Mapping[str, SplitRows]) -> Iterator[str]:
    """Yield a line on each split that has rows."""
    for name, split in splits.items():
        if split.places:
            counts = ", ".join(f"{what}: {num:,}" for what, num in split.counts().items())
            yield f"{name}: {counts}"


def _write(
    run: Run, rows: MapStyleRows | RawManifest, spec: DatasetSpec, splits: Mapping[str, SplitRows]
) -> None:
    """Write all splits with their record, all of them or nothing."""
    used = {name: split.places for name, split in splits.items() if split.places}
    of_labels = {}
    with sealed_folder(run.folder) as temporary:
        if isinstance(rows, RawManifest):
            written = _write_manifests(rows, used, temporary, run.folder)
        else:
            read = sources.with_split(spec, rows)
            of_labels = passed_on({replace(read, split=name): spec for name in used})
            per_file = run.arguments["rows_per_shard"]
            written = _write_parquet(rows, str(read.config), used, temporary, per_file)
            lines = "".join(f"- {line}\n" for line in _described(splits))
            card = f"Split by speaker.\n\n{lines}{card_text(of_labels)}"
            hub_layout.write_card(temporary, {str(read.config): used}, "Splits", card)
        made = replace(run, folder=temporary)
        made.write_config()
        made.outputs.add_all()
        counts = {name: split.counts() for name, split in splits.items()}
        made.finish(splits=counts, **of_labels)
    log_end(run, ", ".join(written))


def _write_manifests(
    manifest: RawManifest, splits: Mapping[str, list[int]], folder: Path, final: Path
) -> list[str]:
    """Write a manifest for each split; return their names. Paths are relative to `final`."""
    for split, places in splits.items():
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for row in manifest.written(places, split, final):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return [f"{split}.jsonl" for split in splits]


def _write_parquet(
    rows: MapStyleRows, config: str, splits: Mapping[str, list[int]], folder: Path, per_file: int
) -> list[str]:
    """Write the files of each split, audio inside; return the splits' names."""
    audio = {schema.AUDIO: column_types.AUDIO_TYPE} if schema.AUDIO in rows.column_names else {}
    features = Features({**rows.features, **audio})
    for split, places in splits.items():
        starts = range(0, len(places), per_file)
        for index, start in enumerate(starts):
            path = hub_layout.shard_path(folder, config, split, index, len(starts))
            path.parent.mkdir(parents=True, exist_ok=True)
            some = rows.select(places[start : start + per_file])
            hub_layout.write_tables(path, _tables(some), features)
    return list(splits)


def _tables(rows: MapStyleRows) -> Iterator[pa.Table]:
    """Yield rows a few at a time, with the bytes of their audio."""
    for table in column_types.tables(rows, sys.maxsize, ROWS_PER_TABLE):
        if schema.AUDIO in table.column_names:
            place = table.column_names.index(schema.AUDIO)
            audio = hub_layout.embedded_audio(table[schema.AUDIO])
            table = table.set_column(place, schema.AUDIO, audio)
        yield table


if __name__ == "__main__":
    main(*ARGUMENTS)
