"""Uploading to the Hub: private unless asked otherwise, and only what belongs there."""

import logging
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download

from distillery.storage.checkpoints import BEST, CHECKPOINTS
from distillery.storage.runs import Run

logger = logging.getLogger(__name__)

DATASET_STAGES = ("run_pseudo_labelling", "run_data_filtering")  # the others make models
DATASET_FILES = ["README.md", "run.json", "**/*.parquet"]
MODEL_FILES = [
    "README.md",
    "run.json",
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    # A pipeline that scripts/push_pipeline.py saved beside the model.
    "recognition.py",
    "punctuation.py",
    "silence.py",
]


def repo_type(run: Run) -> str:
    """Return what a run makes, `model` or `dataset`."""
    return "dataset" if run.stage in DATASET_STAGES else "model"


def target(run: Run) -> str | None:
    """Return the repository that a run's result is uploaded to, or None.

    A dataset is uploaded as soon as a repository is named for it, as the commands of
    kotoba-whisper have it; a model wants `--push_to_hub`.
    """
    name = run.arguments.get("hub_model_id")
    is_wanted = run.arguments.get("push_to_hub") or (name and repo_type(run) == "dataset")
    return (name or run.folder.resolve().name) if is_wanted else None


def upload_plan(run: Run) -> str:
    """Say whether a run's result will be uploaded, and as what."""
    repo_id = target(run)
    if repo_id is None:
        unused = run.arguments.get("hub_model_id")
        advice = f": --hub_model_id {unused} wants --push_to_hub, too" if unused else ""
        return f"nothing is uploaded{advice}"
    visibility = "public" if run.arguments.get("hub_public") else "private"
    return f"will be uploaded as {repo_id}, {visibility}"


def publish(run: Run) -> None:
    """Upload what a run made, where its flags ask for it."""
    repo_id = target(run)
    if repo_id is not None:
        kind = repo_type(run)
        files = MODEL_FILES if kind == "model" else DATASET_FILES
        public = bool(run.arguments.get("hub_public"))
        upload(run.folder, repo_id, kind, files, public, f"Made by {run.stage}")


def upload(
    folder: Path, repo_id: str, repo_type: str, files: list[str], public: bool, message: str
) -> None:
    """Upload the allowed files of a folder as one commit; a second upload sends only changes.

    The token comes from the environment or the Hub's own token file.

    Args:
        folder: what to upload.
        repo_id: `organisation/name`; the repository is made where it does not exist.
        repo_type: `model` or `dataset`.
        files: patterns of the files that may leave this machine.
        public: make a new repository public.
        message: of the commit.
    """
    api = HfApi()
    made = api.create_repo(repo_id, repo_type=repo_type, private=not public, exist_ok=True)
    api.upload_folder(
        repo_id=made.repo_id,
        repo_type=repo_type,
        folder_path=folder,
        allow_patterns=files,
        ignore_patterns=[f"{CHECKPOINTS}/**", f"{BEST}/**", ".*/**"],
        commit_message=message,
    )
    logger.info("uploaded %s to %s", folder, made.url)


def download(
    repo_id: str, files: list[str], revision: str | None = None, cache_dir: str | None = None
) -> Path:
    """Fetch files of a model and return the folder that holds them.

    Args:
        repo_id: `organisation/name`.
        files: patterns of the files that are wanted.
        revision: branch, tag or commit.
        cache_dir: where the Hub's files are kept.

    Raises:
        huggingface_hub.errors.HfHubHTTPError, LocalEntryNotFoundError: it is not there, or there is
            no network.
    """
    return Path(
        snapshot_download(repo_id, allow_patterns=files, revision=revision, cache_dir=cache_dir)
    )
