"""Uploading to the Hub: asked before the work, private unless asked otherwise, bounded, by list.

The client library itself tries most requests again, six times in all: what prepares the data, and
the data. Others it sends once: who is logged in, what is there, making a repository, a commit. Only
those are tried again here (`_patiently`), so that no loop runs within another.
"""

import logging
import random
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_download,
    hf_hub_url,
    set_client_factory,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, validate_repo_id

from distillery.ingest.responses import is_transient, retry_after_s
from distillery.storage.files import RUN_RECORD
from distillery.storage.publication import CARD, published_files
from distillery.storage.runs import Run

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT_S = 2.0  # doubles from attempt to attempt
MAX_WAIT_S = 300.0  # the Hub counts requests over five minutes
DEADLINE_S = 900.0  # of one request, with its waits
TIMEOUT_S = 120.0  # silence on a connection; the library has no limit of its own
FILES_PER_COMMIT = 200

# The others make models.
DATASET_STAGES = ("run_pseudo_labelling", "run_data_filtering", "split_dataset")
MODEL_FILES = [  # what is fetched of a model
    "README.md",
    "loss.png",  # in its card
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
BENCHMARK = "eval.yaml"  # in a dataset that the Hub takes for a benchmark
LOGIN = "run `hf auth login`, or set HF_TOKEN"

HTTPError = HfHubHTTPError.__bases__[0]  # httpx's or httpx2's, as the library has it
FAILURES = (HTTPError, OSError, RuntimeError, HFValidationError)


class HubError(ValueError):
    """The Hub does not take what it should take; the message says why, and what to do."""


# --- what will be uploaded ------------------------------------------------------------------------


def repo_type(run: Run) -> str:
    """Return what a run makes, `model` or `dataset`."""
    return "dataset" if run.stage in DATASET_STAGES else "model"


def target(run: Run) -> str | None:
    """Return the repository that a run's result is uploaded to, or None.

    It is uploaded as soon as a repository is named for it, as the commands of kotoba-whisper have
    it.
    """
    name: str | None = run.arguments.get("hub_model_id")
    if name is None and run.arguments.get("push_to_hub"):
        return run.folder.resolve().name
    return name


def upload_plan(run: Run) -> str:
    """Say whether a run's result will be uploaded, and as what."""
    repo_id = target(run)
    if repo_id is None:
        return "nothing is uploaded"
    visibility = "public" if run.arguments.get("hub_public") else "private"
    is_asked = run.arguments.get("push_to_hub")
    reason = "" if is_asked else ", because --hub_model_id names a repository for it"
    return f"will be uploaded as {repo_id}, {visibility}{reason}"


def upload_forecast(run: Run) -> str:
    """Say the same, and whether the Hub would take it now."""
    plan = upload_plan(run)
    try:
        user = check(run)
    except HubError as error:
        return f"{plan}; NOT POSSIBLE NOW: {error}"
    return plan if user is None else f"{plan}; logged in as {user}"


def check(run: Run) -> str | None:
    """Ask the Hub whether it would take a run's result, and return who is logged in.

    Returns None where nothing is to be uploaded: the Hub is not asked then.

    Raises:
        HubError: it cannot be reached, nobody is logged in, or the repository may not be written.
    """
    name = target(run)
    if name is None:
        return None
    _bound_requests()
    api = HfApi()
    with _told():
        validate_repo_id(name)
        account = _patiently(api.whoami)
        user = str(account["name"])
        repo_id = _full_id(name, user)
        _refuse_foreign_owner(repo_id.partition("/")[0], account)
        if not run.arguments.get("hub_public"):
            _refuse_public(api, repo_id, repo_type(run))
    return user


def _full_id(name: str, user: str) -> str:
    return name if "/" in name else f"{user}/{name}"


def _refuse_foreign_owner(owner: str, account: Mapping[str, Any]) -> None:
    names = [account["name"], *(each["name"] for each in account.get("orgs", []))]
    if owner not in names:
        raise HubError(
            f"{account['name']} may not upload to {owner}: --hub_model_id must begin with "
            f"{' or '.join(f'{name}/' for name in names)}"
        )
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"the token can only read: {LOGIN} with one that can write")


def _refuse_public(api: HfApi, repo_id: str, kind: str) -> None:
    """Raise HubError if what is meant to be private would land in a public repository."""
    try:
        info = _patiently(lambda: api.repo_info(repo_id, repo_type=kind))
    except RepositoryNotFoundError:
        return
    if not info.private:
        raise HubError(f"{repo_id} is public: name another repository, or say --hub_public")


# --- the upload -----------------------------------------------------------------------------------


def publish(run: Run) -> None:
    """Upload what a run made, where its flags ask for it; a second upload sends only changes.

    Raises:
        HubError: it could not be uploaded; the message says how to do it later.
    """
    name = target(run)
    if name is None:
        return
    try:
        url = _upload(run, name)
    except HubError as error:
        raise HubError(
            f"{run.folder} is complete, but was not uploaded as {name}: {error}. "
            "The same command, started again, uploads it and does nothing else; so does: "
            f"{_later_command(run, name)}"
        ) from error
    logger.info("uploaded %s to %s", run.folder, url)


def _later_command(run: Run, name: str) -> str:
    public = ["--hub_public"] if run.arguments.get("hub_public") else []
    words = ["--folder", str(run.folder), "--hub_model_id", name, *public]
    return shlex.join(["python", "scripts/publish.py", *words])


def _upload(run: Run, name: str) -> str:
    """Upload what a run's record lists, and return the address of the repository.

    The card and the record go last: with them, the data is whole. The token comes from the
    environment or the Hub's own token file.
    """
    kind = repo_type(run)
    _bound_requests()
    api = HfApi()
    with _told():
        user = "" if "/" in name else str(_patiently(api.whoami)["name"])
    files = published_files(run.folder, _full_id(name, user))
    names = sorted(files, key=lambda path: (path in (CARD, RUN_RECORD), path))
    with _told():
        made = _patiently(
            lambda: api.create_repo(
                name,
                repo_type=kind,
                private=not run.arguments.get("hub_public"),
                exist_ok=True,
            )
        )
        for first in range(0, len(names), FILES_PER_COMMIT):
            batch = names[first : first + FILES_PER_COMMIT]
            is_last = first + FILES_PER_COMMIT >= len(names)
            stale = _stale(api, made.repo_id, kind, files) if is_last else []
            additions = [CommitOperationAdd(path, files[path]) for path in batch]
            _commit(api, made.repo_id, kind, additions, stale, f"Made by {run.stage}")
    return str(made.url)


def _commit(
    api: HfApi,
    repo_id: str,
    kind: str,
    additions: list[CommitOperationAdd],
    stale: list[str],
    message: str,
) -> None:
    """Upload some files, and let the repository have them at once."""
    api.preupload_lfs_files(repo_id, additions, repo_type=kind, free_memory=False)
    operations = [*additions, *(CommitOperationDelete(path) for path in stale)]
    _patiently(
        lambda: api.create_commit(repo_id, operations, commit_message=message, repo_type=kind)
    )


def _stale(api: HfApi, repo_id: str, kind: str, files: Mapping[str, Any]) -> list[str]:
    """Return what an earlier upload listed as its own, and this one has not.

    `load_dataset` would go on reading it.
    """
    try:
        listed = _patiently(lambda: _record_of(repo_id, kind)).get("files", ())
    except EntryNotFoundError:
        return []
    if set(listed) <= set(files):
        return []
    there = _patiently(lambda: api.list_repo_files(repo_id, repo_type=kind))
    return [name for name in there if name in listed and name not in files]


def _record_of(repo_id: str, kind: str) -> Any:
    """Return the record that a repository holds."""
    url = hf_hub_url(repo_id, RUN_RECORD, repo_type=kind)
    response = get_session().get(url, headers=build_hf_headers())
    hf_raise_for_status(response)
    return response.json()


# --- patience -------------------------------------------------------------------------------------


def _patiently(ask: Callable[[], T]) -> T:
    """Ask until there is an answer; only faults that may pass are asked again, and for so long."""
    deadline = time.monotonic() + DEADLINE_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return ask()
        except HTTPError as error:
            wait_s = FIRST_WAIT_S * 2 ** (attempt - 1) * random.uniform(0.5, 1.0)
            if isinstance(error, HfHubHTTPError):
                if not is_transient(error.response.status_code):
                    raise
                wait_s = max(wait_s, retry_after_s(error.response.headers))
            if attempt == ATTEMPTS or time.monotonic() + wait_s > deadline:
                raise
            logger.warning("%s; asking again in %.0f s", _reason(error), wait_s)
        time.sleep(wait_s)
    raise AssertionError("the last attempt returns or raises")


def _bound_requests() -> None:
    """Give all requests of the library a time-out, and an end to what they wait for a server."""
    session = get_session()
    make, hooks = type(session), session.event_hooks
    if _refuse_long_wait not in hooks["response"]:
        bounded = {**hooks, "response": [*hooks["response"], _refuse_long_wait]}
        set_client_factory(
            lambda: make(event_hooks=bounded, follow_redirects=True, timeout=TIMEOUT_S)
        )


def _refuse_long_wait(response: Any) -> None:
    wait_s = retry_after_s(response.headers)
    if is_transient(response.status_code) and wait_s > MAX_WAIT_S:
        raise HubError(f"the Hub answers {response.status_code} and asks to wait {wait_s:.0f} s")


@contextmanager
def _told() -> Iterator[None]:
    """Turn what goes wrong with the Hub into one line."""
    try:
        yield
    except FAILURES as error:
        raise HubError(_reason(error)) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, RuntimeError) and error.__cause__ is not None:
        return _reason(error.__cause__)  # the library says of which file first
    if isinstance(error, LocalTokenNotFoundError):
        return f"nobody is logged in to the Hub: {LOGIN}"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: the Hub is not asked"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            return f"the Hub does not accept the token (401): {LOGIN}"
        return _line(f"the Hub answers {status}: {error.server_message or ''}")
    if isinstance(error, HTTPError):
        return f"the Hub cannot be reached ({_line(str(error)) or type(error).__name__})"
    return _line(str(error))


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".: ")


# --- what is fetched ------------------------------------------------------------------------------


def benchmark_tasks(repo_id: str) -> list[dict[str, Any]]:
    """Return the tasks of a dataset that is a benchmark of the Hub; none of any other.

    Raises:
        HubError: the Hub does not say.
    """
    with _told():
        try:
            path = _patiently(lambda: hf_hub_download(repo_id, BENCHMARK, repo_type="dataset"))
        except (EntryNotFoundError, RepositoryNotFoundError):
            return []
    found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return list(found.get("tasks", ())) if isinstance(found, dict) else []


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

    def fetch() -> str:
        try:
            return snapshot_download(
                repo_id, allow_patterns=files, revision=revision, cache_dir=cache_dir
            )
        except LocalEntryNotFoundError as error:
            if error.__cause__ is None:
                raise
            raise error.__cause__ from error  # what the Hub answered

    return Path(_patiently(fetch))
