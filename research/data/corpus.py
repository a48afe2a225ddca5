"""Texts to embed or to search, with the names that they go by."""

from pathlib import Path

from research.data.files import open_text, read_records
from research.data.sources import SOURCES


def read_corpus(path: str | Path) -> tuple[list[str], list[str]]:
    """(names, texts) of a file or a BEIR folder's corpus, in order, none left out.

    "pydocs" is the code of the installed packages that are never trained on.
    A .txt file has a text on each line; a jsonl, tsv or csv file the field `text`, and
    perhaps `title`, which comes before it, and `_id`. Each plain or .gz. A text without
    `_id` goes by its line number.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is empty, malformed or has no text; it is named by number.
    """
    if str(path) == "pydocs":
        code = [row.positives[0] for row in SOURCES["pydocs"](split="test").examples]
        return [str(number) for number in range(len(code))], code
    path = Path(path).expanduser()
    if path.is_dir():
        plain = path / "corpus.jsonl"
        return read_corpus(plain if plain.is_file() else path / "corpus.jsonl.gz")
    if Path(path.name.removesuffix(".gz")).suffix == ".txt":
        with open_text(path) as file:
            rows = [(n, {"text": line.strip()}) for n, line in enumerate(file, 1)]
    else:
        rows = list(read_records(path))
    if not rows:
        raise ValueError(f"{path} is empty: it holds no texts")
    names = [str(record.get("_id", line)) for line, record in rows]
    return names, [_text(path, line, record) for line, record in rows]


def _text(path: Path, line: int, record: dict) -> str:
    if "text" not in record:
        raise ValueError(f"{path} line {line}: no text; found {', '.join(record)}")
    text = f"{record.get('title') or ''} {record['text']}".strip()
    if not text:
        raise ValueError(f"{path} line {line} is empty: a text needs a token")
    return text
