"""The groups of flags of labelling."""

from dataclasses import dataclass

from distillery.cli.arguments import OutputArguments
from distillery.cli.flags import at_least, flag, one_of

DATASET, LABELS = "dataset", "labels"
IN_ORDER, BEST_FIT = "in_order", "best_fit"  # names in `distillery.data.packing.PACKERS`


@dataclass(frozen=True)
class LabellingArguments:
    """Labelling."""

    per_device_eval_batch_size: int = flag(
        16, "Windows that are decoded at once.", "-b", resumable=True
    )
    max_label_length: int = flag(
        256, "Most ids of one transcript; a longer one is cut and flagged `truncated`."
    )
    min_duration_in_seconds: float | None = flag(None, "Drop shorter clips.")
    max_duration_in_seconds: float | None = flag(
        None,
        "Drop longer clips. Without it, those that are longer than the model's window are "
        "quarantined, and count for --max_bad_fraction.",
    )
    decode_token_ids: bool = flag(
        True,
        "Store text instead of token ids. Ids keep exactly what the teacher wrote, as a model for "
        "speculative decoding needs; text is tokenised again for training.",
    )
    output_format: str = flag(
        DATASET,
        "What is written: dataset (rows with their audio, complete in themselves), or labels (the "
        "same without audio: filter and training find it in the source, which must stay).",
    )
    concatenate_audio: bool = flag(
        True,
        "Let clips share a window of the model, so that little of it is silence: several times "
        "faster. Rows of the dataset are then windows, with the columns of the contract alone. "
        "False gives each clip a window of its own, as a teacher wants that heard no full ones.",
    )
    packing: str = flag(
        IN_ORDER,
        "How clips share windows: in_order (neighbours of one recording and speaker; where none "
        "are known, each clip has its own), or best_fit (any clips: order carries no meaning).",
    )
    language_column_name: str | None = flag(
        None,
        "Column with the language of each clip, in place of --language. Without either, a "
        "multilingual model detects it; column `language` then says which.",
    )
    task_column_name: str | None = flag(
        None, "Column with the task of each clip, transcribe or translate, in place of --task."
    )
    rows_per_shard: int = flag(1000, "Rows in each file; a killed process repeats at most one.")
    retry_quarantined: bool = flag(
        False,
        "Label the clips that could not be used before, and have been mended since: their shards "
        "are made again, all others stay.",
        resumable=True,
    )
    shard_index: int = flag(
        0,
        "Label this share of the shards, from 0, of --num_shards: for array jobs on many machines "
        "that write to one folder and need no launcher. The last to end finishes the dataset.",
        resumable=True,
    )
    num_shards: int = flag(1, "Number of shares; see --shard_index.", resumable=True)

    def problems(self) -> list[str]:
        """Return what is wrong with the values."""
        problems = [
            *at_least(self, "per_device_eval_batch_size", 1),
            *at_least(self, "max_label_length", 8),
            *at_least(self, "min_duration_in_seconds", 0),
            *at_least(self, "max_duration_in_seconds", self.min_duration_in_seconds or 0),
            *at_least(self, "rows_per_shard", 1),
            *at_least(self, "shard_index", 0),
            *at_least(self, "num_shards", 1),
            *one_of(self, "output_format", (DATASET, LABELS)),
            *one_of(self, "packing", (IN_ORDER, BEST_FIT)),
        ]
        if self.shard_index >= self.num_shards:
            problems.append(
                f"--shard_index {self.shard_index} must be below --num_shards {self.num_shards}"
            )
        return problems


def check(labelling_args: LabellingArguments, output_args: OutputArguments) -> list[str]:
    """Return what is wrong with flags of several groups together."""
    if labelling_args.num_shards > 1 and output_args.overwrite_output_dir:
        return [
            "--overwrite_output_dir would throw away what the other shares of --num_shards make: "
            "remove the output folder before the first of them is started"
        ]
    if labelling_args.num_shards > 1 and labelling_args.retry_quarantined:
        return ["--retry_quarantined is for one launch: leave out --num_shards and --shard_index"]
    return []
