"""Read a downloaded ReazonSpeech, one shard per archive, without extracting anything.

Reads: a folder made by `reazonspeech_manual_downloader.py`. Columns: `name`, `audio` (bytes and
path), `transcription`. Every stage takes this file as a dataset:

    accelerate launch run_pseudo_labelling.py --dataset_name reazonspeech_manual_dataloader.py \
        --dataset_config_name all --dataset_dir_suffix 0_50 \
        --id_column_name name --text_column_name transcription …

In Python (`data_dir` names the folder itself where it is not the downloader's default):

    builder = ReazonSpeech(config_name="tiny", dataset_dir_suffix=None, data_dir=None)
    rows = builder.as_streaming_dataset(split="train")
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from distillery.data.schema import AUDIO
from distillery.ingest import reazonspeech

logger = logging.getLogger(__name__)

# The corpus's own names, as in its dataset on the Hub.
NAME = "name"
TRANSCRIPTION = "transcription"


@dataclass
class ReazonSpeechConfig(datasets.BuilderConfig):
    """A target and the folder that it was downloaded to."""

    dataset_dir_suffix: str | None = None

    @property
    def folder(self) -> Path:
        """The folder with the archives and the transcripts."""
        if self.data_dir and self.dataset_dir_suffix:
            raise ValueError(
                f"data_dir {self.data_dir} names the folder itself: leave out dataset_dir_suffix "
                f"{self.dataset_dir_suffix}"
            )
        if self.data_dir:
            return Path(self.data_dir).expanduser()
        return reazonspeech.default_folder(self.name, self.dataset_dir_suffix)

    def create_config_id(
        self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None
    ) -> str:
        """Name the cache after the files as well: more files must not meet an older cache."""
        files = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for pattern in ("*.tar", "*.tsv")
            for path in sorted(self.folder.glob(pattern))
        ]
        return super().create_config_id({**config_kwargs, "files": files}, custom_features)


class ReazonSpeech(datasets.GeneratorBasedBuilder):
    """ReazonSpeech v2 from local files."""

    BUILDER_CONFIG_CLASS = ReazonSpeechConfig
    BUILDER_CONFIGS = [ReazonSpeechConfig(name=target) for target in reazonspeech.NUM_ARCHIVES]  # noqa: RUF012
    DEFAULT_CONFIG_NAME = "tiny"

    def _info(self) -> datasets.DatasetInfo:
        text = datasets.Value("string")
        # Not `datasets.Audio`, which needs torchcodec to write even bytes that are encoded already.
        audio = {"bytes": datasets.Value("binary"), "path": text}
        return datasets.DatasetInfo(
            features=datasets.Features({NAME: text, AUDIO: audio, TRANSCRIPTION: text})
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        folder, target = self.config.folder, self.config.name
        archives = sorted(folder.glob("*.tar"))
        if not archives:
            raise FileNotFoundError(
                f"{folder} holds no archives (*.tar): run reazonspeech_manual_downloader.py "
                f"--target {target}, or name the right folder"
            )
        transcripts = _transcripts(folder, target)
        scans = self._account(transcripts, archives)
        return [
            datasets.SplitGenerator(
                name=datasets.Split.TRAIN,
                gen_kwargs={
                    "transcripts": str(transcripts),
                    "archives": [str(path) for path in archives],
                    "spans": _spans(transcripts, list(scans.values())),
                },
            )
        ]

    def _account(
        self, transcripts: Path, archives: list[Path]
    ) -> dict[Path, reazonspeech.ArchiveScan]:
        """Log how clips and texts match, or fail where none do; return the archives' scans."""
        missing = reazonspeech.missing_archives(self.config.folder, self.config.name)
        if missing:
            logger.warning(
                "%s lacks %d archives, such as %s: run reazonspeech_manual_downloader.py again",
                self.config.folder,
                len(missing),
                missing[0].name,
            )
        pairing, scans = reazonspeech.pair_folder(transcripts, archives)
        logger.log(logging.INFO if pairing.is_clean else logging.WARNING, "%s", pairing)
        if pairing.clips.num_out == 0:
            raise ValueError(f"{self.config.folder}: no clip has a text in {transcripts.name}")
        return scans

    def _generate_examples(
        self, transcripts: str, archives: list[str], spans: list[list[reazonspeech.Span]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        for archive, lines in zip(archives, spans, strict=True):
            texts = reazonspeech.read_spans(Path(transcripts), lines)
            for name, content in reazonspeech.read_clips(Path(archive)):
                if name in texts:  # the others are in the account
                    audio = {"bytes": content, "path": name}
                    yield name, {NAME: name, AUDIO: audio, TRANSCRIPTION: texts[name]}


def _transcripts(folder: Path, target: str) -> Path:
    """Find the transcript file, under the downloader's name or the corpus's own."""
    for path in (reazonspeech.transcripts_path(folder, target), folder / f"{target}.tsv"):
        if path.exists():
            return path
    raise FileNotFoundError(
        f"{folder} holds no transcripts ({target}.{target}.tsv): run "
        f"reazonspeech_manual_downloader.py --target {target} again"
    )


def _spans(
    transcripts: Path, scans: list[reazonspeech.ArchiveScan]
) -> list[list[reazonspeech.Span]]:
    """Return, per archive, where its clips' lines are in the transcript file."""
    directories = [scan.directories for scan in scans]
    spans = reazonspeech.transcript_spans(transcripts, set().union(*directories))
    return [[span for name in sorted(names) for span in spans[name]] for names in directories]
