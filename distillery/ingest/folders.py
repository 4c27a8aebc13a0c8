"""Folders of audio: plain ones, and those of LibriSpeech and Common Voice.

Each layout is a function from the files of a folder or an archive to an index of clips, and an
account of all that leads to no clip, or to one without a text.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from datasets import Dataset, IterableDataset, NamedSplit

from distillery.data.specs import choose
from distillery.ingest import clip_rows, file_trees, manifests
from distillery.ingest.archives import is_archive
from distillery.ingest.clip_rows import Clip, Index
from distillery.ingest.file_trees import (
    BYTE_ORDER_MARK,
    TEXT_SUFFIX,
    FileTree,
    is_audio,
    is_text,
    stem,
)
from distillery.ingest.pairing import Pairing
from distillery.storage.ledger import Ledger
from distillery.text import subtitles

logger = logging.getLogger(__name__)

HUB_SUFFIXES = (".parquet", ".arrow")

TRANSCRIPTS = re.compile(r"(?:^|/)([^/]+)/([^/]+)/\1-\2\.trans\.txt$")  # LibriSpeech's

TABLE = re.compile(r"(?:^|/)(validated|train|dev|test|other|invalidated)\.tsv$")  # Common Voice's
CLIPS = "clips"  # its folder of audio
CLIP, SENTENCE, CLIENT = "path", "sentence", "client_id"  # columns of its tables
TABLES_BY_SPLIT = {"validation": "dev"}
DEFAULT_TABLE = "validated"

# As they are counted.
WITHOUT_AUDIO, OTHER_SPLITS = "without audio", "of other splits"
NEITHER = "neither audio nor text"


def is_layout(path: Path) -> bool:
    """Tell whether a dataset is an archive, an audio file, or a folder of audio files."""
    if is_archive(path) or is_audio(path.name):
        return True
    if not path.is_dir():
        return False
    names = list(file_trees.file_names(path))
    return any(map(is_audio, names)) and not any(name.endswith(HUB_SUFFIXES) for name in names)


def load(
    path: Path, config: str | None, split: str | None, streaming: bool, cache_dir: str | None
) -> Dataset | IterableDataset:
    """Load a folder or an archive of audio with the contract's column names.

    Rows of a folder hold paths. Rows of an archive hold bytes: they are streamed, or copied to the
    cache of the datasets library.

    Raises:
        FileNotFoundError: there is nothing of that name.
        ValueError: no clips, a split or configuration that is not there, two clips with one id, or
            a damaged archive.
    """
    tree = file_trees.file_tree(path)
    pairing = Pairing()
    index, label = _index(tree, config, split, pairing)
    _account_for_files(tree, index, pairing.clips)
    logger.log(logging.INFO if pairing.is_clean else logging.WARNING, "%s: %s", path, pairing)
    if not index:
        raise ValueError(f"dataset {path} has no rows: no audio file in it is of this split")
    _refuse_id_twice(path, index)
    named = NamedSplit(re.sub(r"\W+", "_", label))
    return clip_rows.load(tree, index, named, streaming, cache_dir)


def _account_for_files(tree: FileTree, index: Index, clips: Ledger) -> None:
    """Account for all files that are not texts: those of the index become rows."""
    others = [name for name in tree.sizes if not (is_audio(name) or is_text(name))]
    clips.num_out = len(index)
    clips.dropped += Counter({OTHER_SPLITS: len(tree.audio) - len(index), NEITHER: len(others)})
    if others:
        clips.places[NEITHER] = others
    for reason, names in tree.rejected.items():
        clips.quarantine(reason, *names)
    clips.num_in = len(tree.audio) + len(others) + clips.quarantined.total()


def _index(
    tree: FileTree, config: str | None, split: str | None, pairing: Pairing
) -> tuple[Index, str]:
    """Return the clips, and the name of the split that they are."""
    if any(TABLE.search(name) and _has_clips(tree, name) for name in tree.sizes):
        return _common_voice(tree, config, split, pairing)
    if any(TRANSCRIPTS.search(name) for name in tree.sizes):
        return _librispeech(tree, split, pairing)
    return _plain(tree, pairing), split or "train"


def _plain(tree: FileTree, pairing: Pairing) -> Index:
    """Pair audio with the text file and the subtitles of the same name.

    What has neither is a row without a text.
    """
    if tree.root.is_dir():
        _refuse_manifest(tree)
    texts = {stem(name): name for name in tree.sizes if name.endswith(TEXT_SUFFIX)}
    pairing.texts.num_in += len(texts)
    cues = _subtitles(tree, pairing)
    index = {}
    for name in tree.audio:
        text_name, cues_name = texts.pop(stem(name), None), cues.pop(stem(name), None)
        text = None if text_name is None else _text_of(tree, text_name, pairing)
        path = None if cues_name is None else str(tree.root.resolve() / cues_name)
        pairing.texts.num_out += path is not None
        if text is None and path is None:
            pairing.without_text.append(name)
        index[name] = Clip(stem(name), text, subtitles=path)
    pairing.texts.quarantine(WITHOUT_AUDIO, *texts.values(), *cues.values())
    return index


def _subtitles(tree: FileTree, pairing: Pairing) -> dict[str, str]:
    """Return the names of subtitles by their stems; of SRT and WebVTT the first."""
    named: dict[str, str] = {}
    for suffix in subtitles.SUFFIXES:
        for name in (name for name in tree.sizes if name.endswith(suffix)):
            pairing.texts.num_in += 1
            if tree.texts is not None:
                reason = "subtitles in an archive: extract it to use them"
                pairing.texts.quarantine(reason, name)
            elif stem(name) in named:
                pairing.texts.dropped["subtitles of another kind are there"] += 1
            else:
                named[stem(name)] = name
    return named


def _refuse_manifest(tree: FileTree) -> None:
    stems = {stem(name) for name in tree.audio}
    for name in tree.sizes:
        is_top = "/" not in name and stem(name) not in stems
        if is_top and PurePosixPath(name).suffix in manifests.SUFFIXES:
            raise ValueError(
                f"dataset {tree.root} holds audio files and {name}: name {tree.root / name} as the "
                "dataset if it lists them; if not, move it elsewhere to read the audio files"
            )


def _text_of(tree: FileTree, name: str, pairing: Pairing) -> str | None:
    try:
        text = tree.read_text(name).removeprefix(BYTE_ORDER_MARK).decode("utf-8").strip()
    except UnicodeDecodeError:
        pairing.texts.quarantine("not UTF-8", name)
        return None
    except OSError:
        pairing.texts.quarantine("not readable", name)
        return None
    if not text:
        pairing.texts.quarantine("empty", name)
        return None
    pairing.texts.num_out += 1
    return text


def _librispeech(tree: FileTree, split: str | None, pairing: Pairing) -> tuple[Index, str]:
    """Read <split>/<speaker>/<chapter>/<utterance>.flac, and one transcript file for a chapter."""
    chapters = [name for name in tree.sizes if TRANSCRIPTS.search(name)]
    splits = sorted({_split_of(name) for name in chapters})
    # The folder of a split has no name in itself: it is what the user says.
    chosen = "" if splits == [""] else choose("split", split, splits, None, tree.root)
    texts: dict[str, str] = {}
    for name in chapters:
        if _split_of(name) == chosen:
            _read_chapter(tree, name, texts, pairing)
    index = {}
    for name in tree.audio:
        *_, speaker, chapter, _ = ["", "", *PurePosixPath(name).parts]
        if not chapter or not speaker or _split_of(name) != chosen:
            continue
        text = texts.pop(stem(name), None)
        if text is None:
            pairing.without_text.append(name)
        index[name] = Clip(PurePosixPath(stem(name)).name, text, speaker, chapter)
    pairing.texts.num_out = len(index) - len(pairing.without_text)
    pairing.texts.quarantine(WITHOUT_AUDIO, *texts)
    return index, chosen or split or tree.root.name.partition(".")[0]


def _split_of(name: str) -> str:
    parts = PurePosixPath(name).parts
    return parts[-4] if len(parts) > 3 else ""


def _read_chapter(tree: FileTree, name: str, texts: dict[str, str], pairing: Pairing) -> None:
    folder = PurePosixPath(name).parent
    for place, line in _lines(tree, name, pairing):
        utterance, _, text = line.partition(" ")
        key = str(folder / utterance)
        if not text.strip():
            pairing.texts.quarantine("no text", place)
        elif key in texts:
            pairing.texts.quarantine("duplicate", place)
        else:
            texts[key] = text.strip()


def _lines(tree: FileTree, name: str, pairing: Pairing) -> Iterator[tuple[str, str]]:
    """Yield (place, line) of the readable lines of a text file; quarantine the others."""
    content = tree.read_text(name).removeprefix(BYTE_ORDER_MARK).removesuffix(b"\n")
    for number, raw in enumerate(content.split(b"\n"), start=1):
        place = f"{name}:{number}"
        pairing.texts.num_in += 1
        try:
            line = raw.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError:
            pairing.texts.quarantine("not UTF-8", place)
            continue
        if line.strip():
            yield place, line
        else:
            pairing.texts.quarantine("blank", place)


def _common_voice(
    tree: FileTree, config: str | None, split: str | None, pairing: Pairing
) -> tuple[Index, str]:
    """Read <language>/<table>.tsv, whose rows name files in <language>/clips."""
    tables = [PurePosixPath(name) for name in tree.sizes if TABLE.search(name)]
    folders = {table.parent.name: table.parent for table in tables if _has_clips(tree, str(table))}
    # The folder of a language has no name in itself.
    languages = sorted(folders)
    language = (
        "" if languages == [""] else choose("configuration", config, languages, None, tree.root)
    )
    here = {table.stem: str(table) for table in tables if table.parent == folders[language]}
    wanted = None if split is None else TABLES_BY_SPLIT.get(split, split)
    chosen = choose("split", wanted, sorted(here), DEFAULT_TABLE, tree.root)
    return _read_table(tree, here[chosen], pairing), split or chosen


def _has_clips(tree: FileTree, table: str) -> bool:
    prefix = str(PurePosixPath(table).parent / CLIPS) + "/"
    return any(name.startswith(prefix) for name in tree.sizes)


def _read_table(tree: FileTree, table: str, pairing: Pairing) -> Index:
    lines = _lines(tree, table, pairing)
    header = next(lines, ("", ""))[1].split("\t")
    pairing.texts.num_in -= 1  # the header is no text
    for column in (CLIP, SENTENCE):
        if column not in header:
            raise ValueError(f"dataset {tree.root}: {table} has no column {column!r}")
    index: Index = {}
    for place, line in lines:
        fields = line.split("\t")  # never quoted
        if len(fields) != len(header):
            pairing.texts.quarantine(f"{len(fields)} instead of {len(header)} columns", place)
            continue
        row = dict(zip(header, fields, strict=True))
        name = _clip_name(tree, table, row[CLIP])
        if name is None:
            pairing.texts.quarantine(WITHOUT_AUDIO, place)
        elif name in index:
            pairing.texts.quarantine("duplicate", place)
        else:
            text = row[SENTENCE].strip() or None
            if text is None:
                pairing.texts.quarantine("empty", place)
                pairing.without_text.append(place)
            index[name] = Clip(PurePosixPath(name).stem, text, row.get(CLIENT))
    pairing.texts.num_out = len(index) - len(pairing.without_text)
    return index


def _clip_name(tree: FileTree, table: str, entry: str) -> str | None:
    folder = PurePosixPath(table).parent / CLIPS
    names = (str(folder / entry), str(folder / f"{entry}.mp3"))  # the first releases: no suffix
    return next((name for name in names if name in tree.sizes), None)


def _refuse_id_twice(path: Path, index: Index) -> None:
    names: dict[str, str] = {}
    for name, clip in index.items():
        other = names.setdefault(clip.id, name)
        if other != name:
            raise ValueError(
                f"dataset {path}: {other} and {name} would both have the id {clip.id!r}: remove or "
                "rename one of them"
            )
