"""Corpora: texts to embed or to search, each with its name."""

from pathlib import Path

from research.data.files import open_text, read_records
from research.data.sources import SOURCES


def read_corpus(path: str | Path) -> tuple[list[str], list[str]]:
    """(names, texts) of a file or of a BEIR folder's corpus, all of them in order.

    A .txt file has a text on each line; a jsonl, tsv or csv file has the field `text`,
    optionally `title`, which is put before it, and `_id`. Files may be gzipped (.gz). A
    text without `_id` is named by its line number.

    Args:
        path: A file, a BEIR folder, or "pydocs": the code of the installed packages
            that are held out from training.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is empty, malformed or has no text; it is named by number.
    """
    if str(path) == "pydocs":
        held_out = SOURCES["pydocs"](split="test").examples
        code = [example.positives[0] for example in held_out]
        return [str(number) for number in range(len(code))], code
    path = Path(path).expanduser()
    if path.is_dir():
        plain = path / "corpus.jsonl"
        return read_corpus(plain if plain.is_file() else path / "corpus.jsonl.gz")
    if Path(path.name.removesuffix(".gz")).suffix == ".txt":
        with open_text(path) as file:
            records = [(n, {"text": line.strip()}) for n, line in enumerate(file, 1)]
    else:
        records = list(read_records(path))
    if not records:
        raise ValueError(f"{path} is empty: it holds no texts")
    names = [str(record.get("_id", line)) for line, record in records]
    return names, [_read_text(path, line, record) for line, record in records]


def _read_text(path: Path, line: int, record: dict) -> str:
    if "text" not in record:
        raise ValueError(f"{path} line {line}: no text; found {', '.join(record)}")
    text = f"{record.get('title') or ''} {record['text']}".strip()
    if not text:
        raise ValueError(f"{path} line {line} is empty: a text needs a token")
    return text
