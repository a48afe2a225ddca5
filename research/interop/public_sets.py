"""Public data sets of the Hugging Face hub, in the layout that the recipes read.

A set is pinned to a commit. Its files are checked against the hub's own sha256, and
what is written is recorded with its sha256 in `fetched.json` of the data folder.
"""

import fnmatch
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from research.atomic_write import (
    atomic_write,
    open_gzip,
    read_json,
    to_json,
    write_json,
)

RECORD = "fetched.json"
# Articles of SQuAD's validation split by the splits of squad_retrieval; others train.
SQUAD_DEV = ("Amazon_rainforest", "Ctenophora", "Geology", "Kenya")
SQUAD_DEV += ("Prime_number", "Teacher")
SQUAD_TEST = ("Apollo_program", "Computational_complexity_theory")
SQUAD_TEST += ("Economic_inequality", "Fresno,_California", "Huguenot", "Islamism")
SQUAD_TEST += ("Newcastle_upon_Tyne", "Packet_switching", "Rhine", "Steam_engine")
SQUAD_TEST += ("University_of_Chicago", "Yuan_dynasty")

Rows = Iterable[dict[str, Any]]
# write(rows, path of the file or folder)
Write = Callable[[Rows, Path], None]


class PublicSet(NamedTuple):
    """A data set of the hub.

    Attributes:
        repo: Id of the data set.
        revision: Commit, 40 hexadecimal digits.
        parts: {file or folder in the data folder: pattern of the hub's files}.
        write: Writes the rows of a part.
        license: License of the data.
    """

    repo: str
    revision: str
    parts: dict[str, str]
    write: Write
    license: str


class HubFile(NamedTuple):
    """A file of the hub: its path, its bytes, and its sha256 if the hub knows it."""

    path: str
    size: int
    sha256: str


def write_rows(
    rows: Rows, path: Path, *, columns: dict[str, str], limit: int | None = None
) -> None:
    """Writes rows as jsonl.gz.

    Args:
        rows: The rows.
        path: The file.
        columns: {our name of a column: the hub's}; the others are left out.
        limit: Number of rows to write; None for all.
    """
    with open_gzip(path) as file:
        for row in islice(rows, limit):
            record = {name: row[source] for name, source in columns.items()}
            file.write(to_json(record, ensure_ascii=False) + "\n")


def write_texts(rows: Rows, path: Path) -> None:
    """Writes the column text as lines of a .txt.gz, with blank lines between blocks."""
    with open_gzip(path) as file:
        for row in rows:
            file.write(row["text"].strip() + "\n")


def write_squad(rows: Rows, path: Path) -> None:
    """Writes the questions of SQuAD, and all paragraphs, as a BEIR folder.

    A document is named by its article and its place there, a query as in SQuAD. The
    splits are by article: 30 train, 6 dev, 12 test.
    """
    documents: dict[str, tuple[str, str]] = {}  # {paragraph: (id, title)}
    counts: dict[str, int] = {}  # {title: number of its paragraphs}
    judgments = {"train": [], "dev": [], "test": []}
    with open_gzip(path / "queries.jsonl.gz") as queries:
        for row in rows:
            title, text = row["title"], row["context"]
            if text not in documents:
                number = counts.get(title, 0)
                counts[title] = number + 1
                documents[text] = f"{title}_{number}", title.replace("_", " ")
            query = {"_id": row["id"], "text": row["question"].strip()}
            queries.write(to_json(query, ensure_ascii=False) + "\n")
            part = "dev" if title in SQUAD_DEV else "train"
            part = "test" if title in SQUAD_TEST else part
            judgments[part].append(f"{row['id']}\t{documents[text][0]}\t1\n")
    with open_gzip(path / "corpus.jsonl.gz") as corpus:
        for text, (name, title) in documents.items():
            document = {"_id": name, "title": title, "text": text}
            corpus.write(to_json(document, ensure_ascii=False) + "\n")
    (path / "qrels").mkdir()
    for part, lines in judgments.items():
        header = "query-id\tcorpus-id\tscore\n"
        (path / "qrels" / f"{part}.tsv").write_text(header + "".join(lines))


def list_hub_files(public_set: PublicSet, pattern: str) -> list[HubFile]:
    """The files of a set that match a pattern, sorted by their paths.

    Raises:
        ValueError: The hub cannot be reached, or has no such file.
    """
    from huggingface_hub import HfApi

    repo = public_set.repo
    try:
        info = HfApi().dataset_info(
            repo, revision=public_set.revision, files_metadata=True
        )
    except Exception as error:  # of the hub, of httpx, or offline mode
        raise ValueError(_format_refusal(repo, error)) from None
    files = [
        HubFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else "")
        for file in info.siblings
        if fnmatch.fnmatchcase(file.rfilename, pattern)
    ]
    if not files:
        raise ValueError(f"{repo} has no file {pattern} on the Hugging Face hub")
    return sorted(files)


def download(public_set: PublicSet, file: HubFile) -> Path:
    """Downloads a file into the hub's cache, and checks its sha256.

    Raises:
        ValueError: The hub cannot be reached, or the content is another.
    """
    from huggingface_hub import hf_hub_download

    repo, revision = public_set.repo, public_set.revision
    try:
        path = hf_hub_download(repo, file.path, repo_type="dataset", revision=revision)
    except Exception as error:  # of the hub, of httpx, or offline mode
        raise ValueError(_format_refusal(repo, error)) from None
    if file.sha256 and hash_file(Path(path)) != file.sha256:
        raise ValueError(
            f"{file.path} of {repo} has arrived with another content than the hub "
            f"states: delete {path} and try again"
        )
    return Path(path)


def fetch_part(name: str, part: str, hub_files: list[HubFile], data: Path) -> list[str]:
    """Brings a file or folder of a set into the data folder, and records it there.

    Args:
        name: Key of PUBLIC_SETS.
        part: Key of its parts.
        hub_files: The part's files on the hub, from `list_hub_files`.
        data: The data folder.

    Returns:
        The paths of what was written, relative to the data folder.

    Raises:
        ValueError: The hub cannot be reached; nothing is left of the part.
    """
    public_set = PUBLIC_SETS[name]
    paths = [download(public_set, file) for file in hub_files]
    rows = (row for path in paths for row in _read_rows(path))
    with atomic_write(data / part, folder="." not in part) as draft:
        try:
            public_set.write(rows, draft)
        except KeyError as error:
            raise ValueError(
                f"{public_set.repo} has a row without the column {error}"
            ) from None
        # {path: sha256}. It is recorded before the part is in its place: what a killed
        # command leaves is then known as its own.
        files = sorted(path for path in [draft, *draft.rglob("*")] if path.is_file())
        digests = {
            str(Path(part) / path.relative_to(draft)): hash_file(path) for path in files
        }
        record = read_json(data / RECORD, missing={})
        entry = {"repo": public_set.repo, "revision": public_set.revision}
        entry |= {"license": public_set.license}
        previous = record.get(name, {}).get("sha256", {})
        entry["sha256"] = dict(sorted((previous | digests).items()))
        write_json(data / RECORD, record | {name: entry})
    return list(digests)


def find_entry(path: Path) -> dict[str, Any]:
    """What fetched.json says of a fetched file or folder; {} of any other."""
    path = path.absolute()
    for folder in path.parents[:2]:
        for entry in read_json(folder / RECORD, missing={}).values():
            if any(path in _list_parents(folder / file) for file in entry["sha256"]):
                return entry
    return {}


def find_missing_parts(name: str, data: Path) -> list[str]:
    """The files and folders of a set that a data folder lacks.

    Raises:
        ValueError: A file is there, but is not the one that was fetched.
    """
    digests = read_json(data / RECORD, missing={}).get(name, {}).get("sha256", {})
    missing = []
    for part in PUBLIC_SETS[name].parts:
        path = data / part
        if not path.exists():
            missing.append(part)
            continue
        # {path: sha256} of the files of this part
        files = {f: d for f, d in digests.items() if path in _list_parents(data / f)}
        if not files:
            raise ValueError(
                f"{path} is there and was not made by launch.fetch, which does "
                "not replace it: move it away, or name another folder by --data"
            )
        for file, digest in files.items():
            if not (data / file).is_file() or hash_file(data / file) != digest:
                raise ValueError(
                    f"{data / file} is not as it was fetched: delete {path}, and fetch "
                    "it again"
                )
    return missing


def find_fetch_command(message: str) -> str:
    """The command that brings what a message misses; "" if it is in no public set."""
    for name, public_set in PUBLIC_SETS.items():
        for part in public_set.parts:
            if missing := re.search(rf"(\S+)/{re.escape(part)}(/\S*)?(?!\S)", message):
                return f"python -m launch.fetch {name} --data={missing[1]}"
    return ""


def _list_parents(path: Path) -> tuple[Path, ...]:
    """The path itself and all its parents."""
    return path, *path.parents


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet or jsonl file, some at a time."""
    if path.suffix == ".jsonl":
        with open(path, encoding="utf-8") as lines:
            yield from map(json.loads, lines)
        return
    from pyarrow import parquet

    with parquet.ParquetFile(path) as table:
        for batch in table.iter_batches():
            yield from batch.to_pylist()


def _format_refusal(repo: str, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return f"the Hugging Face hub did not give the data set {repo}: {text[:300]}"


# {name of a set: where it is, and how it is written}
PUBLIC_SETS = {
    "nli": PublicSet(
        "sentence-transformers/all-nli",
        "d482672c8e74ce18da116f430137434ba2e52fab",
        {"nli/triplets.jsonl.gz": "triplet/train-*.parquet"},
        partial(write_rows, columns={n: n for n in ("anchor", "positive", "negative")}),
        "SNLI: CC BY-SA 4.0; MultiNLI: OANC and others, by genre",
    ),
    "stsb": PublicSet(
        "sentence-transformers/stsb",
        "ab7a5ac0e35aa22088bdcf23e7fd99b220e53308",
        {
            "stsb/train.jsonl.gz": "data/train-*.parquet",
            "stsb/dev.jsonl.gz": "data/validation-*.parquet",
            "stsb/test.jsonl.gz": "data/test-*.parquet",
        },
        partial(
            write_rows, columns={n: n for n in ("sentence1", "sentence2", "score")}
        ),
        "scores: CC BY-SA 4.0; texts: by their sources",
    ),
    "squad": PublicSet(
        "rajpurkar/squad",
        "0a3a8b7b57e8578ec40b2d2bb4c75aca1a6d6ce1",
        {"squad_retrieval": "plain_text/validation-*.parquet"},
        write_squad,
        "CC BY-SA 4.0",
    ),
    "banking77": PublicSet(
        "mteb/banking77",
        "0fd18e25b25c072e09e0d92ab615fda904d66300",
        {
            "banking77/train.jsonl.gz": "train.jsonl",
            "banking77/test.jsonl.gz": "test.jsonl",
        },
        partial(write_rows, columns={"text": "text", "label": "label_text"}),
        "CC BY 4.0",
    ),
    "natural-questions": PublicSet(
        "sentence-transformers/natural-questions",
        "f9e894e1081e206e577b4eaa9ee6de2b06ae6f17",
        {"natural-questions/pairs.jsonl.gz": "pair/train-*.parquet"},
        partial(write_rows, columns={"query": "query", "answer": "answer"}),
        "CC BY-SA 3.0",
    ),
    "msmarco-small": PublicSet(
        "sentence-transformers/msmarco-bm25",
        "f710ec18ffdab0f4a216bb4b2f466d7a04a3a7f2",
        {"msmarco-small/triplets.jsonl.gz": "triplet/train-00000-of-00002.parquet"},
        partial(
            write_rows,
            columns={n: n for n in ("query", "positive", "negative")},
            limit=100_000,
        ),
        "MS MARCO: non-commercial research",
    ),
    "wikitext": PublicSet(
        "Salesforce/wikitext",
        "b08601e04326c79dfdd32d625aee71d232d685c3",
        {"rawtext/wikitext.txt.gz": "wikitext-2-raw-v1/train-*.parquet"},
        write_texts,
        "CC BY-SA 3.0 and GFDL",
    ),
}
