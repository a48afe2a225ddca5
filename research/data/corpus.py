"""Corpora: texts to embed or to search, each with its name."""

from pathlib import Path

from research.data.files import open_text, read_records
from research.data.sources import SOURCES


def read_corpus(path: str | Path) -> tuple[list[str], list[str]]:
    """Reads (names, texts) from a file or from the corpus of a BEIR folder, in order.

    A .txt file has one text per line. A jsonl, tsv or csv file has the field `text` and
    optionally `_id` and `title`; a title is put before its text. Files may be gzipped
    (.gz). A text without `_id` is named by its line number.

    Args:
        path: A file, a BEIR folder, or "pydocs", which stands for the code of those
            installed Python packages that are held out from training.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is empty, malformed or has no text; the message gives its
            number.
    """
    # Held-out packages: the code of each function is a text.
    if str(path) == "pydocs":
        held_out = SOURCES["pydocs"](split="test").examples
        code = [example.positives[0] for example in held_out]
        return [str(number) for number in range(len(code))], code
    # A BEIR folder, a text file, or a file of records.
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
