"""Damaged files of texts, judgments and vectors, for tests/fuzz.py."""

import csv
import io
import json

import numpy as np

from tests.fuzz_outcomes import Refused, attempt, check, is_number
from tests.mutations import mutate_bytes, mutate_json, mutate_lines

TEXTS = ["an old leaf", "the tree, tall", 'a "new" root', "Ünder\u00a0the light", "x"]
TRIPLETS = [
    {"anchor": a, "positive": b, "negative": c}
    for a, b, c in zip(TEXTS, TEXTS[1:], TEXTS[2:], strict=False)
]
SCORED = [
    {"sentence1": a, "sentence2": b, "score": 1.5 * i}
    for i, (a, b) in enumerate(zip(TEXTS, TEXTS[1:], strict=False))
]


def write_table(rows, delimiter):
    """csv or tsv of rows with the same columns."""
    file = io.StringIO()
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    writer = csv.writer(
        file, delimiter=delimiter, quoting=quoting, quotechar='"', escapechar="\\"
    )
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return file.getvalue().encode()


def parse_rows(path):
    """The rows of a file as json and csv read them."""
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    if path.suffix == ".tsv":
        lines = (line.removesuffix("\r") for line in text.split("\n"))
        table = [line.split("\t") for line in lines if line]
    else:
        table = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    header, *rows = table
    return [dict(zip(header, row, strict=True)) for row in rows]


def write_rows(rng, path, rows):
    """Writes damaged rows in the format of the file's ending."""
    if path.suffix == ".jsonl":
        path.write_bytes(mutate_lines(rng, rows))
    else:
        path.write_bytes(
            mutate_bytes(rng, write_table(rows, "," if path.suffix == ".csv" else "\t"))
        )


def fuzz_records(rng, folder):
    """Files of training pairs: every text is one of the file, unchanged."""
    from research.data.sources import SOURCES

    path = folder / f"a.{rng.choice(('jsonl', 'tsv', 'csv'))}"
    write_rows(rng, path, TRIPLETS)
    source = attempt(SOURCES["files"], path=str(path), names=(path,))
    rows = parse_rows(path)
    check(len(rows) == len(source.examples), len(rows), len(source.examples))
    for row, example in zip(rows, source.examples, strict=True):
        values = list(row.values())
        for text in (example.query, *example.positives, *example.negatives):
            check(isinstance(text, str) and text.strip(), row, example)
            lists = [x for value in values if isinstance(value, list) for x in value]
            check(text in values + lists, row, example)


def fuzz_sts(rng, folder):
    """Files of scored pairs: scores are finite, and those of the file."""
    from research.data.files import read_sts

    path = folder / f"a.{rng.choice(('jsonl', 'tsv', 'csv'))}"
    write_rows(rng, path, SCORED)
    first, second, scores = attempt(read_sts, path, names=(path,))
    rows = parse_rows(path)
    check(np.isfinite(scores).all(), scores)
    check(len(rows) == len(scores), rows, scores)
    for row, a, b, score in zip(rows, first, second, scores, strict=True):
        values = list(row.values())
        check(isinstance(a, str) and a in values and b in values, row, a, b)
        check(
            any(
                str(x) == str(score) or float(x) == score
                for x in values
                if not isinstance(x, list | dict | type(None)) and is_number(x)
            ),
            row,
            score,
        )


def fuzz_corpus(rng, folder):
    """Files of texts: as many as the file has, and none that it has not."""
    from research.data.corpus import find_corpus, read_texts

    path = folder / f"a.{rng.choice(('jsonl', 'tsv', 'csv', 'txt'))}"
    rows = [
        {"_id": f"d{i}", "title": "T" * (i % 2), "text": t} for i, t in enumerate(TEXTS)
    ]
    if path.suffix == ".txt":
        path.write_bytes(mutate_bytes(rng, "\n".join(TEXTS).encode()))
        texts = attempt(lambda: list(read_texts(find_corpus([path]))), names=(path,))
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
        for text in texts:
            check(any(text.text in line for line in lines), text, lines)
        return
    write_rows(rng, path, rows)
    texts = attempt(lambda: list(read_texts(find_corpus([path]))), names=(path,))
    for row, text in zip(parse_rows(path), texts, strict=True):
        expected = " ".join(filter(None, (row.get("title"), row["text"])))
        check(text.text.strip() == expected.strip(), row, text)


def embed_letters(texts, role):
    """[N, 16] counts of the bytes of texts, by their last four bits."""
    del role
    rows = [
        np.bincount(
            np.frombuffer(t.encode("utf-8", "surrogatepass"), np.uint8) % 16,
            minlength=16,
        )
        for t in texts
    ]
    return np.array(rows, np.float32) + np.float32(0.01)


def fuzz_beir(rng, folder):
    """BEIR folders: the nDCG is that of pytrec_eval on the judgments of the file."""
    import pytrec_eval

    from research.eval.tasks.retrieval import retrieval

    corpus = [{"_id": f"d{i}", "title": "", "text": t} for i, t in enumerate(TEXTS)]
    queries = [{"_id": f"q{i}", "text": t[:6]} for i, t in enumerate(TEXTS[:3])]
    qrels = [
        {"query-id": f"q{i}", "corpus-id": f"d{i + j}", "score": 1 + j}
        for i in range(3)
        for j in range(2)
    ]
    (folder / "qrels").mkdir()
    files = {"corpus.jsonl": corpus, "queries.jsonl": queries, "qrels/test.tsv": qrels}
    damaged = rng.choice((*files, "qrels/test.tsv"))
    for name, rows in files.items():
        path = folder / name
        if name == damaged:
            write_rows(rng, path, rows)
        elif path.suffix == ".tsv":
            path.write_bytes(write_table(rows, "\t"))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = (folder,)
    scores = attempt(retrieval, data=str(folder), names=names)
    scores = attempt(scores, embed_letters)
    # The oracle: all documents ranked by the same vectors
    rows = {
        name: parse_rows(folder / name) for name in ("corpus.jsonl", "queries.jsonl")
    }
    texts = {
        # As mteb joins them
        str(r["_id"]): " ".join(filter(None, (r.get("title"), r["text"]))).strip()
        for r in rows["corpus.jsonl"]
    }
    asked = {str(r["_id"]): r["text"] for r in rows["queries.jsonl"]}
    judged = {}
    lines = (folder / "qrels/test.tsv").read_bytes().decode("utf-8-sig")
    for line in lines.split("\n"):  # a return within a line is no end of it
        fields = line.removesuffix("\r").split("\t")
        if len(fields) == 3 and is_number(fields[2]):
            judged.setdefault(fields[0], {})[fields[1]] = int(float(fields[2]))
    judged = {q: grades for q, grades in judged.items() if q in asked}
    d, q = (embed_letters(list(x.values()), "") for x in (texts, asked))
    cosines = (q / np.linalg.norm(q, axis=1)[:, None]) @ (
        d / np.linalg.norm(d, axis=1)[:, None]
    ).T
    if not np.isfinite(cosines).all():
        raise Refused("a text without letters has no cosine for the oracle")
    gaps = np.diff(np.sort(cosines, axis=1), axis=1)
    if np.any((gaps > 0) & (gaps < 1e-6)):
        raise Refused("the last bit of a cosine decides on an order")
    run = {
        n: {m: float(np.float32(c)) for m, c in zip(texts, row, strict=True)}
        for n, row in zip(asked, cosines, strict=True)
        if n in judged
    }
    result = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(run)
    expected = 100 * np.mean([x["ndcg_cut_10"] for x in result.values()])
    check(abs(expected - scores["ndcg@10"]) < 0.5, expected, scores)


def fuzz_vectors(rng, folder):
    """Folders of vectors: their rows and names, or a refusal."""
    from research.inference.index.shard_files import write_shard
    from research.inference.index.vector_shards import (
        check_manifest,
        read_manifest,
        read_text_rows,
        read_vectors,
    )

    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    manifest = {
        "texts": 6,
        "shard_size": 4,
        "kind": "dense",
        "dim": 2,
        "files": [],
        "options": {},
        "dtype": "float32",
    }
    for i, part in enumerate((vectors[:4], vectors[4:])):
        write_shard(
            folder / f"vectors-{i:05}-of-00002.npy",
            part,
            [f"n{j + 4 * i}" for j in range(len(part))],
            [f"text {j + 4 * i}" for j in range(len(part))],
        )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    path = rng.choice(sorted(folder.iterdir()))
    if path.suffix == ".json" and rng.random() < 0.8:
        path.write_text(json.dumps(mutate_json(rng, manifest)))
    else:
        path.write_bytes(mutate_bytes(rng, path.read_bytes()))
    attempt(read_manifest, folder, names=(folder,))
    attempt(check_manifest, folder, {"kind": "dense", "options": {}}, names=(folder,))
    loaded = attempt(read_vectors, folder, names=(folder,))
    check(loaded.shape == (6, 2), loaded.shape)
    if path.suffix == ".npy":
        return  # values have no checksum
    np.testing.assert_array_equal(attempt(lambda: loaded[0:6]), vectors)
    rows = attempt(read_text_rows, folder, [0, 5], names=(folder,))
    names = {number: row["id"] for number, row in rows.items()}
    check(path.suffix == ".jsonl" or names == {0: "n0", 5: "n5"}, names)


KINDS = {
    "records": fuzz_records,
    "sts": fuzz_sts,
    "corpus": fuzz_corpus,
    "beir": fuzz_beir,
    "vectors": fuzz_vectors,
}
