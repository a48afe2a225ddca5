import json
import math

import pytest
import tensorflow_datasets as tfds

from research.data.examples import Example
from research.data.sources import SOURCES

load_beir, load_files, load_hub, load_labeled_texts, load_texts, load_tfds = (
    SOURCES[name] for name in ("beir", "files", "hub", "labeled_texts", "texts", "tfds")
)
load_labeled_pairs = SOURCES["labeled_pairs"]


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


PASSAGES = {
    "query": "a",
    "positive_passages": [{"title": "T", "text": "b"}],
    "negative_passages": [{"text": "c"}],
}
CORPUS = {"docid": 1, "text": "b"}
IDS = {
    "query_text": "a",
    "positive_document_ids": ["1"],
    "negative_document_ids": ["2"],
}


@pytest.mark.parametrize(
    "record, row",
    [
        ({"anchor": "a", "positive": "b"}, Example("a", ("b",))),
        (
            {"anchor": "a", "positive": "b", "negative": "c", "source": "no"},
            Example("a", ("b",), ("c",)),
        ),
        (
            {"query": "a", "positive": "b", "negative_1": "c", "negative_2": "d"},
            Example("a", ("b",), ("c", "d")),
        ),
        (
            {"sentence1": "a", "sentence2": "b", "score": 4.0},
            Example("a", ("b",), (), 0.8),
        ),
        (
            {"query": "a", "pos": ["b", "c"], "neg": ["d"], "group": 7},
            Example("a", ("b", "c"), ("d",), None, "7"),
        ),
        (PASSAGES, Example("a", ("T b",), ("c",))),
        (IDS, Example("a", ("T b",), ("c",))),
    ],
)
def test_column_conventions(tmp_path, record, row):
    path = jsonl(tmp_path / "a.jsonl", record)
    corpus = jsonl(
        tmp_path / "corpus.jsonl",
        {"docid": "1", "title": "T", "text": "b"},
        {"docid": "2", "document_text": "c"},
    )
    source = load_files(path=path, corpus=corpus, score_range=5.0)
    assert list(source.examples) == [row]
    assert source.negatives_per_query == len(row.negatives)


def test_columns_of_a_table(tmp_path):
    (tmp_path / "a.tsv").write_text(
        "anchor\tpositive\tnegative\tgroup\na\tb\tc\tg\nd\te\tf\t\n"
    )
    source = load_files(path=str(tmp_path / "a.tsv"), weight=2.0, query_prompt="q: ")
    assert list(source.examples) == [
        Example("a", ("b",), ("c",), None, "g"),
        Example("d", ("e",), ("f",)),
    ]
    assert source.weight == 2.0
    assert source.prompts == {"query": "q: "}


def test_negatives_that_every_row_has(tmp_path):
    rows = [{"query": "a", "pos": ["b"], "neg": ["c"] * n} for n in (3, 2)]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    assert load_files(path=path).negatives_per_query == 2
    assert load_files(path=path, negatives=0).negatives_per_query == 0
    with pytest.raises(ValueError, match="line 2 has 2 negatives, not the 3 asked"):
        load_files(path=path, negatives=3)
    note = load_files(path=path).note
    assert (
        note == "2 negatives per query, as many as line 2 has; other lines have up to 3"
    )


def test_one_row_without_a_negative_does_not_switch_off_those_of_others(tmp_path):
    rows = [{"anchor": "a", "positive": "b", "negative": c} for c in ("c", "", "d")]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    with pytest.raises(ValueError, match="line 2 has 0 negatives, not 1 as others; .*"):
        load_files(path=path)
    assert load_files(path=path, negatives=0).negatives_per_query == 0
    path = jsonl(tmp_path / "a.jsonl", rows[0], {"anchor": "a", "positive": "b"})
    with pytest.raises(ValueError, match="line 2 has 0 negatives"):
        load_files(path=path)


@pytest.mark.parametrize(
    "names, example",
    [
        ("premise hypothesis label", Example("a", ("b",), (), 1.0)),
        ("text1 text2 similarity", Example("a", ("b",), (), 1.0)),
        ("query document hard_negative", Example("a", ("b",), ("1",))),
        ("query passage neg_1", Example("a", ("b",), ("1",))),
        ("query answer negatives", Example("a", ("b",), ("1",))),
    ],
)
def test_other_usual_names_of_columns(tmp_path, names, example):
    (tmp_path / "a.tsv").write_text(names.replace(" ", "\t") + "\na\tb\t1\n")
    source = load_files(path=str(tmp_path / "a.tsv"))
    assert list(source.examples) == [example] and source.note == ""


def test_columns_that_are_not_used_are_named(tmp_path):
    row = {"anchor": "a", "positive": "b", "query": "c", "id": 7}
    path = jsonl(tmp_path / "a.jsonl", row, row | {"extra": None})
    assert load_files(path=path).note == "not used: extra, id, query"


@pytest.mark.parametrize(
    "record, message",
    [
        ({"anchor": "a", "text": "b"}, "no column positive .*; found anchor, text"),
        ({"query": "a", "pos": []}, "line 1 has no positive"),
        ({"anchor": "a", "positive": 3}, "line 1: positive is 3, not a text"),
        ({"anchor": "a", "positive": None}, "positive is null, not a text"),
        ({"anchor": "a", "positive": " "}, "line 1: positive is empty"),
        ({"anchor": math.nan, "positive": "b"}, "anchor is NaN, not a text"),
        ({"anchor": "a", "positive": "b", "negative": 0}, "negative is 0, not a text"),
        (
            {"anchor": "a", "positive": "b", "negative": ["c", None]},
            r"negative\[1\] is null, not a text",
        ),
        ({"query": "a", "pos": 3}, "pos is 3, not a text"),
        ({"query": "a", "pos": {"b": 1}}, r'pos is {"b": 1}, not a text'),
        ({"query": "a", "pos": ["b", ["c"]]}, r'pos\[1\] is \["c"\], not a text'),
        ({"query": "a", "pos": ["b"], "neg": math.nan}, "neg is NaN, not a text"),
        ({"query": "a", "pos": ["b"], "group": [1]}, r"group is \[1\], not a text or"),
        ({"query": "a", "positive_passages": ["b"]}, r'\[0\] is "b", not an object'),
        ({"query": "a", "positive_passages": "b"}, 'is "b", not a list'),
        (
            {"query": "a", "positive_passages": [{"title": 1.5, "text": "b"}]},
            r"passages\[0\]: title is 1.5, not a text",
        ),
        (
            {"query": "a", "positive_document_ids": [None]},
            "positive_document_ids is null, not a text or a whole number",
        ),
        ({"anchor": "a", "positive": "b", "label": "yes"}, 'is "yes", not a number'),
        ({"anchor": "a", "positive": "b", "label": True}, "is true, not a number"),
        ({"anchor": "a", "positive": "b", "label": math.nan}, "not a finite number"),
        ({"anchor": "a", "positive": "b", "score": math.inf}, "not a finite number"),
        (IDS, "set `corpus`"),
    ],
)
def test_bad_rows_say_where_and_what(tmp_path, record, message):
    corpus = "" if record is IDS else jsonl(tmp_path / "c.jsonl", CORPUS)
    with pytest.raises(ValueError, match=message):
        load_files(path=jsonl(tmp_path / "a.jsonl", record), corpus=corpus)


def test_weight_should_be_positive(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"anchor": "a", "positive": "b"})
    with pytest.raises(ValueError, match=r"weight 0\.0 should be positive"):
        load_files(path=path, weight=0.0)


def test_texts_are_their_own_positives(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two\r \r\n", newline="")
    assert list(load_texts(path=str(tmp_path / "a.txt")).examples) == [
        Example("one", ("one",)),
        Example(" two\r ", (" two\r ",)),
    ]
    path = jsonl(tmp_path / "a.jsonl", {"text": "one\n"}, {"text": ""})
    assert list(load_texts(path=path).examples) == [Example("one\n", ("one\n",))]
    path = jsonl(tmp_path / "a.jsonl", {"text": None})
    with pytest.raises(ValueError, match="a.jsonl line 1: text is null, not a text"):
        load_texts(path=path)
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no texts"):
        load_texts(path=str(tmp_path / "b.txt"))


def test_beir_positives_and_negatives(tmp_path):
    jsonl(tmp_path / "corpus.jsonl", *({"_id": d, "text": d} for d in "abc"))
    jsonl(tmp_path / "queries.jsonl", {"_id": "q", "text": "query"})
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/train.tsv").write_text(
        "query-id\tcorpus-id\tscore\nq\ta\t1\nq\tb\t2\nq\tc\t0\n"
    )
    source = load_beir(path=str(tmp_path), negatives=1)
    assert list(source.examples) == [Example("query", ("a", "b"), ("c",))]
    with pytest.raises(ValueError, match="1 documents of grade 0, not the 2"):
        load_beir(path=str(tmp_path), negatives=2)


def test_beir_leaves_out_what_has_no_text_and_counts_it(tmp_path):
    corpus = ({"_id": "a", "text": "a"}, {"_id": "b", "title": "", "text": " "})
    jsonl(tmp_path / "corpus.jsonl", *corpus)
    jsonl(tmp_path / "queries.jsonl", *({"_id": q, "text": q} for q in "qr"))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels/train.tsv").write_text(
        "q\ta\t1\nq\tb\t1\nq\tlost\t1\nr\tb\t1\nnone\ta\t1\n"
    )
    source = load_beir(path=str(tmp_path))
    assert list(source.examples) == [Example("q", ("a",))]
    assert source.note == (
        "left out: 2 judged documents without a text, 1 judged queries without a text, "
        "1 queries without a relevant document"
    )


class TinyPairs(tfds.core.GeneratorBasedBuilder):
    """Three pairs."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"q": tfds.features.Text(), "d": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, dl_manager):
        rows = [(i, {"q": f"query {i}", "d": f"document {i}"}) for i in range(3)]
        return {"train": rows}

    def _generate_examples(self):
        raise NotImplementedError


def test_any_tfds_set_without_tensorflow(tmp_path):
    place = {"dataset": "tiny_pairs", "split": "train", "data_dir": str(tmp_path)}
    source = load_tfds(**place, query="q", document="d")
    found = {Example(f"query {i}", (f"document {i}",)) for i in range(3)}
    assert set(source.examples) == set(source.examples[0:3]) == found
    assert source.examples[1] == source.examples[0:3][1]
    with pytest.raises(ValueError, match="no column x; found d, q"):
        load_tfds(**place, query="x", document="d")


def test_hub_set_from_a_local_folder(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set/train.jsonl", {"q": "a", "d": "b", "n": "c", "s": 1.0})
    source = load_hub(
        dataset=str(tmp_path / "set"),
        split="train",
        query="q",
        document="d",
        negatives=("n",),
        score="s",
        score_range=2.0,
    )
    assert list(source.examples) == [Example("a", ("b",), ("c",), 0.5)]
    assert source.negatives_per_query == 1


def test_hub_sets_that_were_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"q": "a", "d": "b"}, {"q": "c", "d": None}])
    rows.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "several"))
    columns = {"query": "q", "document": "d"}
    for name in ("one", "several"):
        source = load_hub(dataset=str(tmp_path / name), split="train", **columns)
        assert source.examples[0] == Example("a", ("b",))
        with pytest.raises(ValueError, match="row 1: d is null, not a text"):
            list(source.examples)
    with pytest.raises(ValueError, match="has no split 'dev'; it has train"):
        load_hub(dataset=str(tmp_path / "several"), split="dev", **columns)


def test_every_source_takes_weight_and_prompts():
    import inspect

    for name, source in SOURCES.items():
        parameters = inspect.signature(source).parameters
        for common in ("weight", "query_prompt", "document_prompt"):
            assert parameters[common].kind is inspect.Parameter.KEYWORD_ONLY, name


def test_texts_are_lines_blocks_or_files(tmp_path):
    import gzip

    path = tmp_path / "deep" / "a.txt.gz"
    path.parent.mkdir()
    with gzip.open(path, "wt") as file:
        file.write("Title\nfirst paragraph\n\n \nOther\nsecond\n")
    jsonl(tmp_path / "b.jsonl", {"text": "of a record"})
    (tmp_path / "notes.md").write_text("not read")

    def found(**options):
        return [row.query for row in load_texts(path=str(tmp_path), **options).examples]

    blocks = ["Title\nfirst paragraph", "Other\nsecond"]
    assert found(unit="block") == ["of a record", *blocks]
    assert found(unit="block", min_chars=13) == blocks[:1]
    assert len(found(unit="line")) == 5
    assert len(found(unit="file")) == 2
    with pytest.raises(ValueError, match="unit 'page'; known: block, line, file"):
        found(unit="page")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_texts(path=str(tmp_path / "c.txt"))
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="cannot be read as text"):
        found()


def test_classes_give_positives_and_hard_negatives(tmp_path):
    kinds = {f"text {i}": i % 3 for i in range(12)} | {"alone": "other"}
    path = jsonl(
        tmp_path / "a.jsonl", *({"text": t, "label": k} for t, k in kinds.items())
    )
    source = load_labeled_texts(path=path, positives=2, negatives=3)
    assert source.negatives_per_query == 3 and len(source.examples) == 12
    for row in source.examples:
        assert len(set(row.positives)) == 2 and len(set(row.negatives)) == 3
        assert row.query not in row.positives
        assert {kinds[text] for text in row.positives} == {kinds[row.query]}
        assert kinds[row.query] not in {kinds[text] for text in row.negatives}
    assert any("alone" in row.negatives for row in source.examples)
    assert {row.group for row in source.examples} == {"0", "1", "2"}
    assert load_labeled_texts(path=path, positives=2, negatives=3) == source
    assert load_labeled_texts(path=path, positives=2, negatives=3, seed=1) != source
    with pytest.raises(
        ValueError, match="9 texts are not of the class '0', fewer than"
    ):
        load_labeled_texts(path=path, negatives=10)
    bare = jsonl(tmp_path / "b.jsonl", {"text": "a", "kind": 1})
    with pytest.raises(ValueError, match="line 1: no column label"):
        load_labeled_texts(path=bare)
    for label in (None, 1.5, ["a"], True, ""):
        path = jsonl(tmp_path / "d.jsonl", {"text": "a", "label": label})
        with pytest.raises(ValueError, match="d.jsonl line 1: label is "):
            load_labeled_texts(path=path)
    lone = jsonl(tmp_path / "c.jsonl", *({"text": x, "label": x} for x in "ab"))
    with pytest.raises(ValueError, match="no class has two texts"):
        load_labeled_texts(path=lone)


def test_pairs_have_the_numbers_of_their_classes_as_scores(tmp_path):
    rows = [
        {"premise": f"p{i}", "hypothesis": f"h{i}", "label": label}
        for i, label in enumerate(["neutral", "entailment", "other", "neutral"])
    ]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    source = load_labeled_pairs(path=path, classes=("entailment", "neutral"))
    assert [x.score for x in source.examples] == [1.0, 0.0, 1.0]
    assert source.examples[1].positives == ("h1",)
    assert source.note == "left out: 1 pairs of other classes"
    everything = load_labeled_pairs(path=path)
    assert [x.score for x in everything.examples] == [1.0, 0.0, 2.0, 1.0]
    message = "has no pair of the class 'same'; it has entailment, neutral, other"
    with pytest.raises(ValueError, match=message):
        load_labeled_pairs(path=path, classes=("same",))


def test_the_content_of_a_source_has_a_hash(tmp_path):
    row = {"anchor": "a", "positive": "b"}
    hashes = [
        load_files(path=jsonl(tmp_path / f"{name}.jsonl", *rows)).content_hash
        for name, rows in (
            ("a", [row]),
            ("b", [row | {"unused": 1}]),
            ("a", [row, row]),
            ("a", [row | {"positive": "c"}]),
            ("a", [row | {"negative": "c"}]),
        )
    ]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4


@pytest.mark.parametrize(
    "record, scores",
    [
        ({"score": [0.9, 0.1, 0.2]}, (0.9, 0.1, 0.2)),
        ({"label": [0.5, -0.25]}, (0, -0.5, 0.25)),  # margins to the negatives
        ({"scores": [3, 1, 2], "label": 1}, (3, 1, 2)),
        ({"teacher_scores": [3, 1, 2]}, (3, 1, 2)),
        ({"pos_scores": [3], "neg_scores": [1, 2]}, (3, 1, 2)),
        ({"score": 3}, ()),
        ({"scores": []}, ()),
        ({"pos_scores": [], "neg_scores": None}, ()),
    ],
)
def test_lists_of_scores_are_a_teachers(tmp_path, record, scores):
    texts = {"query": "a", "positive": "b", "negatives": ["c", "d"]}
    path = jsonl(tmp_path / "a.jsonl", texts | record)
    (example,) = load_files(path=path).examples
    assert example.document_scores == scores
    grade = {"score": 3.0, "label": 1.0}
    numbers = [grade[k] for k in grade if isinstance(record.get(k), int)]
    assert example.score == (numbers[0] if numbers else None)
    halves = load_files(path=path, score_range=2.0).examples[0].document_scores
    assert halves == tuple(score / 2 for score in scores)


def test_columns_of_lists_of_scores_may_be_named(tmp_path):
    texts = {"q": "a", "p": "b", "n": ["c", "d"]}
    path = jsonl(tmp_path / "a.jsonl", texts | {"reranker": [3, 1, 2]})
    columns = "query=q, positive=p, negative=n, score=reranker"
    (example,) = load_files(path=path, columns=columns).examples
    assert example.document_scores == (3, 1, 2) and example.score is None


def test_lists_of_scores_are_joined_in_the_order_in_which_they_are_named(tmp_path):
    texts = {"q": "a", "p": "b", "n": ["c", "d"]}
    path = jsonl(tmp_path / "a.jsonl", {"bad": [1, 2], "good": [3]} | texts)
    columns = "query=q, positive=p, negative=n, score=good, score=bad"
    (example,) = load_files(path=path, columns=columns).examples
    assert example.document_scores == (3, 1, 2)


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"score": [1, 2, 3, 4]},
            "line 1: score should have a score for each of 1 positives and 2 negatives,"
            " or for one positive its margin to each negative, not 4 numbers",
        ),
        ({"pos_scores": [1], "neg_scores": [1, 2, 3]}, "pos_scores and neg_scores sh"),
        # Scores of negatives alone are not margins
        (
            {"neg_scores": [0.9, 0.1]},
            "neg_scores should have a score for each of 1 pos",
        ),
        ({"pos_scores": None, "neg_scores": [0.9, 0.1]}, "2 negatives, not 2 numbers"),
        ({"score": [1, "x", 3]}, r"line 1: score\[1\] is \"x\", not a number"),
    ],
)
def test_scores_of_another_number_are_one_sentence(tmp_path, record, message):
    texts = {"query": "a", "positive": "b", "negatives": ["c", "d"]}
    with pytest.raises(ValueError, match=message):
        load_files(path=jsonl(tmp_path / "a.jsonl", texts | record))


def test_scores_and_margins_in_one_file_are_one_sentence(tmp_path):
    texts = {"query": "a", "positive": "b", "negatives": ["c", "d"]}
    rows = [texts | {"score": scores} for scores in ([3, 1, 2], [3, 1, 2], [1, 2])]
    message = "line 3 has one score fewer than documents and line 1 has a score for"
    with pytest.raises(ValueError, match=message):
        load_files(path=jsonl(tmp_path / "a.jsonl", *rows))
