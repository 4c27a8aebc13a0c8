"""Uploading to the Hub: private unless asked otherwise, and only what belongs there."""

import logging
from pathlib import Path

from huggingface_hub import HfApi

from distillery.checkpointing import BEST, CHECKPOINTS

logger = logging.getLogger(__name__)

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
]


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
