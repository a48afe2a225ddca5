"""LongEmbed's passkey and needle tasks: one line hidden in a long text.

Zhu et al. 2024 (arXiv:2404.12096), section 3. The names and the facts are our own.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from research.data.files import open_text, read_records
from research.data.sources import SOURCES

# (corpus {id: text}, queries {id: text}, qrels {query id: {document id: 1}}).
RetrievalTask = tuple[Mapping[str, str], Mapping[str, str], Mapping[str, Mapping]]
NUM_QUERIES = 50
NEEDLES_FILE = Path(__file__).with_name("needles.tsv")
PLAIN_WORD = re.compile(r"[A-Z]?[a-z'-]+[,.;:]?|[AI]")
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. "
    "There and back again."
)
# 100 names of 8 to 20 characters, 1,259 in total, as in the benchmark.
NAMES = """
Al Novak, Bo Larsen, Cyril Marsh, Abel Kern, Anna Bloomfield, Bela Horvat, Carl Jonsson,
Cora Whitfield, Dina Castellan, Earl Hobson, Edie Langley, Elia Ferraro, Emma Thornton,
Ezra Kaplan, Faye Oldham, Finn Gallagher, Gail Pruitt, Gita Ramanujam, Hana Suzuki, Hugo
Delgado, Ines Carvalho, Iris Middleton, Ivan Petrov, Jada Brookshire, Joel Vickers, June
Abbott, Kaya Demir, Kurt Zimmermann, Lars Nyberg, Lena Fischer, Liam Donovan, Lois
Crane, Lucy Harper, Maya Trentham, Milo Sandoval, Mona Bauer, Nina Popescu, Noah
Winslow, Olga Bielak, Omar Haddad, Owen Trevelyan, Paul Rigby, Rhea Banerjee, Rosa
Ibarra, Ruth Lindqvist, Saul Weber, Tara Quinlan, Theo Blakemore, Uma Deshpande, Vera
Kozlov, Wade Hutchinson, Yuri Sokolov, Zane Porter, Zoe Ellery, Agnes Holloway, Akira
Tanabe, Alma Reyes, Amos Fullerton, Astrid Dahlberg, Bruno Costa, Celia Montague, Chloe
Dubois, Clara Nystrom, Dario Conti, Delia Parrish, Diego Salinas, Edgar Stroud, Elsa
Virtanen, Felix Ackerman, Fiona McBride, Gavin Shelby, Greta Olsen, Harry Pemberton,
Hilda Kruger, Isaac Feldman, Jonas Eklund, Julia Stanton, Karim Nasser, Leona
Fitzgerald, Magda Wozniak, Marco Bellini, Nadia Rahimi, Nigel Cartwright, Oscar Mendez,
Petra Vogel, Quinn Sterling, Ramon Aguilar, Selma Arslan, Silas Whitaker, Tessa Monroe,
Tomas Kucera, Ursula Brandt, Victor Lemaire, Wanda Kowalski, Xavier Boudreau, Yvonne
Marchand, Zelda Hargrove, Josephine Radcliff, Bartholomew Ashton, Maximilian Thibodeau
"""


def filler_words(length: int) -> int:
    """Number of words around the hidden line: 0.75 * length - 25.

    Args:
        length: Nominal length of the document in tokens.

    Raises:
        ValueError: There would be fewer than two words to hide a line between.
    """
    words = 3 * length // 4 - 25
    if words < 2:
        raise ValueError(
            f"length {length} is too short to hide a line in: the text has "
            "0.75 * length - 25 words, so at least 36 tokens"
        )
    return words


def passkey(length: int, seed: int = 0) -> RetrievalTask:
    """Passkey retrieval: 100 documents of the same filler, each with a person's key.

    The line with the key is at a uniformly random word boundary; the paper does not
    tell how deep the benchmark's lines are. At every length, the shortest and the
    longest document have as many characters as in the benchmark.

    Args:
        length: Nominal length of the documents in tokens; see `filler_words`.
        seed: Seed of the keys, their positions, and the choice of queries.

    Returns:
        A corpus of 100 documents, each with a different person and key; 50 queries;
        qrels.

    Raises:
        ValueError: The length is too short.
    """
    # The same filler in all documents.
    words = list(islice(cycle(FILLER.split()), filler_words(length)))
    rng = np.random.default_rng((seed, length))
    names = " ".join(NAMES.split()).split(", ")
    # A key of five digits for each person.
    keys = rng.choice(np.arange(10_000, 100_000), len(names), replace=False)
    lines = [
        f"{name}'s pass key is {key}. Remember it. {key} is the pass key for {name}."
        for name, key in zip(names, keys, strict=True)
    ]
    questions = [f"what is the passkey for {name}?" for name in names]
    return _hide_lines(words, lines, questions, rng)


def needle(length: int, words: Sequence[str], seed: int = 0) -> RetrievalTask:
    """Needle retrieval: 100 copies of a text, each with a different fact.

    As in the benchmark, the copies differ in the fact only. In the benchmark, some
    questions occur twice with different answers, so that 100 % is out of reach; here
    every question occurs once.

    Args:
        length: Nominal length of the documents in tokens; see `filler_words`.
        words: Words of the text, from `read_words`; the first `filler_words(length)`
            are used.
        seed: Seed of the facts' positions and the choice of questions.

    Returns:
        A corpus of 100 documents, 50 queries, qrels.

    Raises:
        ValueError: The length is too short, or there are not enough words.
    """
    count = filler_words(length)
    if len(words) < count:
        raise ValueError(
            f"needles at length {length} need a text of {count} words, not {len(words)}"
        )
    # 100 facts with their questions.
    rng = np.random.default_rng((seed, length))
    records = [record for _, record in read_records(NEEDLES_FILE)]
    facts = [record["fact"] for record in records]
    questions = [record["question"] for record in records]
    return _hide_lines(words[:count], facts, questions, rng)


def read_words(source: str, count: int) -> list[str]:
    """The first `count` words of a text, or all of a shorter one.

    Args:
        source: A text file, or a folder of .txt files that are read in the order of
            their names, plain or .gz. Empty for the docstrings of the installed Python
            packages, those of held-out packages first. Only docstrings of plain words
            are used: code has many tokens per word, so that documents would be much
            longer than their nominal length.
        count: Maximum number of words.

    Raises:
        FileNotFoundError: There is no such file, or no .txt file in the folder.
        ValueError: A file is not text.
    """
    lines = _read_lines(Path(source).expanduser()) if source else _plain_docstrings()
    return list(islice((word for line in lines for word in line.split()), count))


def _plain_docstrings() -> Iterator[str]:
    for split in ("test", "train"):
        for example in SOURCES["pydocs"](split=split).examples:
            if all(map(PLAIN_WORD.fullmatch, example.query.split())):
                yield example.query


def _read_lines(path: Path) -> Iterator[str]:
    files: Iterable[Path] = [path]
    if path.is_dir():
        files = sorted([*path.glob("*.txt"), *path.glob("*.txt.gz")])
        if not files:
            raise FileNotFoundError(f"folder {path} has no .txt or .txt.gz file")
    for file in files:
        with open_text(file) as stream:
            try:
                yield from stream
            except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
                raise ValueError(f"{file} cannot be read as text: {error}") from error


def _hide_lines(
    words: Sequence[str],
    lines: Sequence[str],
    questions: Sequence[str],
    rng: np.random.Generator,
) -> RetrievalTask:
    """Makes a document per line, hidden between the words, and 50 queries.

    Args:
        words: Words of the text.
        lines: The line that each document hides.
        questions: The question that each line answers.
        rng: Source of randomness.
    """
    # A random word boundary for each line.
    positions = rng.integers(1, len(words), len(lines))
    corpus = {
        f"document{i}": "\n".join(
            (" ".join(words[:position]), line, " ".join(words[position:]))
        )
        for i, (line, position) in enumerate(zip(lines, positions, strict=True))
    }
    # A random sample of the questions.
    numbers = sorted(rng.permutation(len(lines))[:NUM_QUERIES])
    queries = {f"query{i}": questions[i] for i in numbers}
    return corpus, queries, {f"query{i}": {f"document{i}": 1} for i in numbers}
