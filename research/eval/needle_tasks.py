"""One line hidden in a long text: LongEmbed's passkey and needle sets, made anew.

Zhu et al. 2024 (arXiv:2404.12096), section 3. Only the names and facts are our own.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from research.data.files import open_text, read_records
from research.data.sources import SOURCES

# corpus {id: text}, queries {id: text}, qrels {query id: {document id: 1}}.
Collection = tuple[Mapping[str, str], Mapping[str, str], Mapping[str, Mapping]]
QUERIES = 50
NEEDLES = Path(__file__).with_name("needles.tsv")
WORD = re.compile(r"[A-Z]?[a-z'-]+[,.;:]?|[AI]")
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. "
    "There and back again."
)
# Of 8 to 20 characters and 1,259 in all, as those of the benchmark.
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


def budget(length: int) -> int:
    """The words of the text around the hidden line: 0.75 * length - 25.

    Args:
        length: the nominal length, in tokens.

    Raises:
        ValueError: fewer than two words, which have no place between them.
    """
    words = 3 * length // 4 - 25
    if words < 2:
        raise ValueError(
            f"length {length} is too short to hide a line in: the text has "
            "0.75 * length - 25 words, so at least 36 tokens"
        )
    return words


def passkey(length: int, seed: int = 0) -> Collection:
    """Whose pass key is in which of 100 documents of the same dull sentences?

    The line replaces the space at a word boundary, all equally likely: the published
    statistics do not tell how deep the benchmark's own lines are. The characters of
    the shortest and the longest document are the benchmark's at every length.

    Args:
        length: the nominal length of the documents, in tokens; see `budget`.
        seed: of the keys, their places and the names that are asked for.

    Returns:
        a corpus of 100 documents, each of another person and key; 50 queries; qrels.

    Raises:
        ValueError: the length is too short.
    """
    words = list(islice(cycle(FILLER.split()), budget(length)))
    random = np.random.default_rng((seed, length))
    names = " ".join(NAMES.split()).split(", ")
    keys = random.choice(np.arange(10_000, 100_000), len(names), replace=False)
    lines = [
        f"{name}'s pass key is {key}. Remember it. {key} is the pass key for {name}."
        for name, key in zip(names, keys, strict=True)
    ]
    questions = [f"what is the passkey for {name}?" for name in names]
    return _hidden(words, lines, questions, random)


def needle(length: int, words: Sequence[str], seed: int = 0) -> Collection:
    """Which of 100 copies of a text holds the fact that answers a question?

    As in the benchmark, the copies of a length are the same but for the fact. There,
    some questions occur twice with different answers, so that 100 % is out of reach;
    here every question is asked once.

    Args:
        length: the nominal length of the documents, in tokens; see `budget`.
        words: of the text, as `prose` reads them; the first `budget(length)` are used.
        seed: of the places of the facts and the choice of the questions.

    Returns:
        a corpus of 100 documents, 50 queries, qrels.

    Raises:
        ValueError: the length is too short, or there are not enough words.
    """
    if len(words) < budget(length):
        raise ValueError(
            f"needles at length {length} need a text of {budget(length)} words, "
            f"not {len(words)}"
        )
    random = np.random.default_rng((seed, length))
    records = [record for _, record in read_records(NEEDLES)]
    lines = [record["fact"] for record in records]
    questions = [record["question"] for record in records]
    return _hidden(words[: budget(length)], lines, questions, random)


def prose(source: str, count: int) -> list[str]:
    """The first `count` words of a text, or all of a shorter one.

    Args:
        source: a text file, or a folder of .txt files read in the order of their names,
            plain or .gz; "" is those docstrings of the installed Python packages that
            are plain words (code has many tokens a word, and the nominal length would
            be far off), the ones that are never trained on first.
        count: words that are wanted.

    Raises:
        FileNotFoundError: there is no such file, or no .txt file in the folder.
        ValueError: a file is not text.
    """
    lines = _file_lines(Path(source).expanduser()) if source else _docstrings()
    return list(islice((word for line in lines for word in line.split()), count))


def _docstrings() -> Iterator[str]:
    for split in ("test", "train"):
        for row in SOURCES["pydocs"](split=split).examples:
            if all(map(WORD.fullmatch, row.query.split())):
                yield row.query


def _file_lines(path: Path) -> Iterator[str]:
    files: Iterable[Path] = [path]
    if path.is_dir():
        files = sorted([*path.glob("*.txt"), *path.glob("*.txt.gz")])
        if not files:
            raise FileNotFoundError(f"folder {path} has no .txt or .txt.gz file")
    for file in files:
        with open_text(file) as opened:
            try:
                yield from opened
            except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
                raise ValueError(f"{file} cannot be read as text: {error}") from error


def _hidden(
    words: Sequence[str],
    lines: Sequence[str],
    questions: Sequence[str],
    random: np.random.Generator,
) -> Collection:
    """A document for each line, the words around it, and 50 of the questions."""
    places = random.integers(1, len(words), len(lines))
    corpus = {
        f"document{i}": "\n".join((" ".join(words[:at]), line, " ".join(words[at:])))
        for i, (line, at) in enumerate(zip(lines, places, strict=True))
    }
    asked = sorted(random.permutation(len(lines))[:QUERIES])
    queries = {f"query{i}": questions[i] for i in asked}
    return corpus, queries, {f"query{i}": {f"document{i}": 1} for i in asked}
