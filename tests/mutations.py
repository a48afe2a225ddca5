"""Small random damages of JSON, of tables and of bytes, for tests/fuzz.py."""

import copy
import json

# Values that real files were seen to have, and others at the borders of types.
VALUES = (
    *(None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1e-30, 1e30, 2**31, 2**63, 10**30),
    *(float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "text",
        "None",
        "nan",
        "1",
        "-1",
        "1.5",
        "\ud800",
        "a\rb",
        "\u2028",
        "é",
    ),
    *([], [1], ["a"], [None], {}, {"a": 1}, [[]], "gs://a/b", "../x", "a\tb", '"'),
)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"
BYTES = (b"\0", b"\xff", b"\n", b"\r", b"\t", b'"', b"{", b"}", b"[", b",", b"\xed\xa0")


def list_paths(value, path=()):
    """The path of every part of a nested JSON value, the value's own first."""
    paths = [path]
    if isinstance(value, dict):
        parts = value.items()
    else:
        parts = enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        paths += list_paths(part, (*path, key))
    return paths


def mutate_json(rng, value):
    """A copy with one part replaced, removed, renamed, added or put in a list."""
    value = copy.deepcopy(value)
    *parents, last = rng.choice(list_paths(value)) or (None,)
    if last is None:
        return rng.choice(VALUES)
    parent = value
    for key in parents:
        parent = parent[key]
    action = rng.choice(("replace", "replace", "replace", "remove", "add", "wrap"))
    if action == "replace":
        parent[last] = rng.choice(VALUES)
    elif action == "wrap":
        parent[last] = [parent[last]]
    elif action == "add" and isinstance(parent, dict):
        parent[rng.choice(("text", "label", "x", "", "_id"))] = rng.choice(VALUES)
    elif isinstance(parent, dict) and rng.random() < 0.3:
        parent[f"{last}_"] = parent.pop(last)
    else:
        del parent[last]
    return value


def mutate_bytes(rng, content):
    """Bytes with a part cut off, changed, repeated or inserted."""
    at = rng.randrange(len(content) + 1)
    end = min(len(content), at + rng.choice((1, 1, 4, 50)))
    return rng.choice(
        (
            lambda: content[:at],
            lambda: content[:at] + content[end:],
            lambda: content[:at] + rng.choice(BYTES) + content[at:],
            lambda: content[:at] + rng.choice(BYTES) + content[at + 1 :],
            lambda: content[:end] + content[at:],
            lambda: b"\xef\xbb\xbf" + content,
            lambda: content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n"))),
            lambda: rng.choice((b"", LFS, b"\n", b"[]", b"null", b"\x1f\x8b")),
        )
    )()


def mutate_lines(rng, rows):
    """jsonl with one of its rows changed as JSON, or its bytes changed."""
    if rng.random() < 0.7:
        rows = mutate_json(rng, rows)
    rows = rows if isinstance(rows, list) else [rows]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return mutate_bytes(rng, content) if rng.random() < 0.4 else content


def mutate_text(rng, text):
    """Text, such as a call or a flag, with some characters changed."""
    content = mutate_bytes(rng, text.encode()) if rng.random() < 0.5 else text.encode()
    text = content.decode("utf-8", "replace")
    # Another literal in place of one in the text
    if rng.random() < 0.6:
        words = [i for i, c in enumerate(text) if c in "(=,0123456789'"]
        if words:
            at = rng.choice(words)
            text = (
                text[: at + 1]
                + repr(rng.choice(VALUES))
                + text[at + 1 + rng.randrange(3) :]
            )
    return text
