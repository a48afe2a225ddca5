"""How long texts are cut into chunks, as one option of embed, evaluate and search.

late:256                     the text is read once, the states of each 256 tokens
                             are averaged (late chunking, Guenther et al. 2024)
late:sentences=5             the same over 5 sentences
late:256,window=8192,overlap=512
                             the text is read in windows that overlap (the long
                             form of the same paper); overlap is 256 if not given
landmark:sentences=1         as late, but a chunk is the state of its last token
                             (Luo et al. 2024), for models trained that way
naive:256                    each chunk is read on its own
pcw:512                      parallel context windows (LongEmbed, Zhu et al. 2024):
                             one vector for the text, the mean of those of its
                             windows of 512 tokens, special ones included
"""

import re
from dataclasses import dataclass, replace

KINDS = ("late", "landmark", "naive", "pcw")
# jina-ai/late-chunking run_chunked_eval.py: its command's default.
OVERLAP = 256


@dataclass(frozen=True)
class Chunking:
    """How texts are cut.

    Attributes:
        kind: one of KINDS.
        size: tokens or sentences of a chunk; of pcw, tokens of a window.
        unit: "tokens" or "sentences".
        window: tokens that late and landmark read at a time; None for the whole text.
        overlap: tokens of the window before that a window reads again.

    Raises:
        ValueError: these do not go together.
    """

    kind: str
    size: int
    unit: str = "tokens"
    window: int | None = None
    overlap: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            known = ", ".join(KINDS)
            raise ValueError(f"unknown chunking {self.kind!r}; known: {known}")
        for name, tokens in (("size", self.size), ("window", self.window)):
            if tokens is not None and tokens < 1:
                raise ValueError(f"chunk {self}: {name} {tokens} is below 1")
        if self.kind == "pcw" and self.unit != "tokens":
            raise ValueError(f"chunk {self}: pcw takes a number of tokens, as pcw:512")
        if self.kind in ("naive", "pcw") and self.window is not None:
            raise ValueError(f"chunk {self}: window fits late and landmark only")
        if self.window is None and self.overlap:
            raise ValueError(f"chunk {self}: overlap needs a window")
        if self.window is not None and not 0 <= self.overlap < self.window:
            allowed = f"allowed: 0 ... {self.window - 1}, below the window"
            raise ValueError(f"chunk {self}: overlap {self.overlap}; {allowed}")

    def __str__(self) -> str:
        unit = "sentences=" if self.unit == "sentences" else ""
        long = "" if self.window is None else f",window={self.window}"
        again = f",overlap={self.overlap}" if self.overlap else ""
        return f"{self.kind}:{unit}{self.size}{long}{again}"

    @property
    def whole(self) -> bool:
        """Whether a text is read in one row, so that the encoder's reach cuts it."""
        return self.kind in ("late", "landmark") and self.window is None


def parse(text: str) -> Chunking:
    """The chunking that the option names, as at the head of this file.

    Raises:
        ValueError: it names none, or arguments that do not fit it.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in KINDS:
        raise ValueError(f"unknown chunking {kind!r}; known: {', '.join(KINDS)}")
    fields = {}
    for argument in rest.split(",") if rest else ():
        name, equals, number = argument.rpartition("=")
        name = name if equals else "tokens"
        if name not in ("tokens", "sentences", "window", "overlap") or name in fields:
            allowed = "a number of tokens, sentences=, window= and overlap="
            raise ValueError(f"chunk {text!r} has {argument!r}; allowed: {allowed}")
        if not re.fullmatch(r"-?\d+", number):
            raise ValueError(f"chunk {text!r}: {argument!r} is not a whole number")
        fields[name] = int(number)
    units = [name for name in ("tokens", "sentences") if name in fields]
    if len(units) != 1:
        raise ValueError(f"chunk {text!r} needs one size, as {kind}:512")
    size = fields.pop(units[0])
    if "window" in fields:
        fields = {"overlap": OVERLAP, **fields}
    return Chunking(kind, size, units[0], **fields)


def parse_several(text: str) -> list[Chunking | None]:
    """The chunkings between semicolons: late:64;128;256 or none;naive:256;late:256.

    A number alone is the one before with that size; none is no chunks (None).

    Raises:
        ValueError: as `parse`.
    """
    found: list[Chunking | None] = []
    for part in map(str.strip, text.split(";")):
        if part == "none":
            found.append(None)
        elif part.isdecimal() and found and found[-1] is not None:
            found.append(replace(found[-1], size=int(part)))
        else:
            found.append(parse(part))
    return found


def check_reach(chunking: Chunking, reach: int) -> None:
    """Whether what is read at a time fits an encoder of `reach` tokens.

    Raises:
        ValueError: it does not.
    """
    read = chunking.window or (chunking.size if chunking.kind == "pcw" else 1)
    if read > reach:
        raise ValueError(
            f"chunk {chunking} reads {read} tokens at a time; "
            f"this encoder reaches 1 ... {reach}"
        )
