"""What a run says of its data before the first step."""

from research.data.examples import Example
from research.data.pairs.pair_batches import make_pair_batches
from research.data.sources import Source
from research.experiment.data_summary import summarize_pairs
from research.text.tokenization import train_tokenizer

WORDS = ["red", "green", "blue"]


def summarize(examples, negatives, folder, max_length=32, prompt=""):
    tokenizer = train_tokenizer([*WORDS, "ask:"] * 3, 60)
    source = Source(examples, negatives, 1.0, {"query": prompt, "document": ""})
    batches = make_pair_batches(
        {"x": source},
        tokenizer,
        batch_size=1,
        max_length=max_length,
        seed=0,
        cache=folder,
    )
    return list(summarize_pairs(batches, tokenizer, max_length))


def test_a_source_is_summed_up_and_its_first_example_shown_with_its_prompt(tmp_path):
    examples = [
        Example("red", ("green", "blue"), ("blue", "red")),
        Example("green", ("red",), ("blue",)),
    ]
    assert summarize(examples, 1, tmp_path, prompt="ask: ") == [
        "data 'x': 2 rows, 28 tokens; 1 to 2 positives and 1 to 2 negatives per query, "
        "of which each step uses 1 and 1",
        "    query     [CLS] ask : red [SEP]",
        "    positive  [CLS] green [SEP]",
        "    negative  [CLS] blue [SEP]",
    ]


def test_one_of_a_kind_is_singular_and_texts_that_are_cut_are_counted(tmp_path):
    lines = summarize([Example("red", ("green blue red",))], 0, tmp_path, max_length=4)
    assert lines[:2] == [
        "data 'x': 1 row, 7 tokens; 1 positive and 0 negatives per query, of which "
        "each step uses 1 and 0",
        "data 'x': 1 of 2 texts has 4 tokens or more; what is beyond is cut",
    ]
