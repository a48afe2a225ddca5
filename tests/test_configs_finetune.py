"""The recipe for a file of one's own: what each variant sets, and what it refuses."""

import json

import pytest

from configs.finetune import get_config


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
    return tmp_path


def test_a_file_alone_is_trained_on_and_held_out(files):
    config = get_config("train=pairs.jsonl,batch=4,epochs=2")
    assert config.data.train.path == config.evals.dev.data == "pairs.jsonl"
    assert (config.data.train.part, config.evals.dev.part) == ("train", "held_out")
    assert config.evals.dev.name == "examples" and config.loss.name == "infonce"
    assert config.steps == 18 and config.eval_every == 4  # 2 x 36 / 4
    assert config.pool.name == "mean" and config.init_from.startswith("package:")


def test_scores_choose_the_loss_and_other_variants_are_set(files):
    config = get_config(
        "train=scores.jsonl,dev=scores.jsonl,steps=7,rate=1e-4,max_length=32,"
        "sizes=matryoshka,query_prompt='q: ',pool=cls"
    )
    assert config.loss.name == "cosent" and config.evals.dev.name == "sts"
    assert config.data.train.part == "all" and config.steps == 7
    assert config.optimizer.learning_rate == 1e-4 and config.max_length == 32
    assert config.size_loss.dims == (384, 256, 128, 64, 32, 16)
    assert config.data.train.query_prompt == "q: " and config.pool.name == "cls"
    assert config.data.train.document_prompt is None
    config = get_config("train=scores.jsonl,loss=cosine_mse(),sizes=starbucks")
    assert config.loss.name == "cosine_mse"
    assert config.size_loss.pairs[-1] == (6, 384)


def test_a_dev_file_is_told_by_what_is_in_it(files):
    assert get_config("train=pairs.jsonl,dev=pairs.jsonl").evals.dev.name == "examples"
    (files / "beir" / "qrels" / "test.tsv").write_text("")
    dev = get_config("train=pairs.jsonl,dev=beir").evals.dev
    assert (dev.name, dev.split, dev.data) == ("retrieval", "test", "beir")


def test_columns_go_to_a_dev_file_that_has_them(files):
    columns = 'columns="query=query, positive=answer"'
    config = get_config(f"train=pairs.jsonl,{columns}")
    named = "query=query, positive=answer"
    assert config.data.train.columns == config.evals.dev.columns == named
    dev = get_config(f"train=pairs.jsonl,dev=scores.jsonl,{columns}").evals.dev
    assert dev.name == "sts"


@pytest.mark.parametrize(
    "arg, message",
    [
        ("", "needs a file to train on: --config=configs/finetune.py:train=FILE"),
        ("train=none.jsonl", "there is no file none.jsonl"),
        ("train=pairs.jsonl,dev=none.jsonl", "there is no file none.jsonl"),
        ("train=pairs.jsonl,dev=beir", "beir has no qrels/ of dev, validation, test"),
        ("train=pairs.jsonl,sizes=half", "sizes is 'half'; allowed: full_size, matr"),
        ("train=pairs.jsonl,loss=cosen", "unknown name 'cosen'"),
        ("train=pairs.jsonl,trian=x", "has no variant 'trian'; it has"),
        ('train=pairs.jsonl,columns="query=a,positive=b"', "no column a; found query"),
    ],
)
def test_mistakes_are_one_sentence(files, arg, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        get_config(arg)
