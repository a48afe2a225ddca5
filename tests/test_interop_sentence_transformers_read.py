"""What a sentence-transformers folder says is used, or refused by name."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_interop_hf_families import CONFIGS
from tiny_models import make_model, random_params

from research.interop.load import load
from research.interop.sentence_transformers.read import OPTION_FILES
from research.interop.sentence_transformers.write import export

OPTIONS, MODEL = "sentence_bert_config.json", "config_sentence_transformers.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    export(make_model(), folder, dim=8)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


def edit(file, **changes):
    fields = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(fields | changes))


@pytest.mark.parametrize("name", OPTION_FILES)
def test_the_options_have_one_of_several_names(name, folder):
    (folder / OPTIONS).unlink()
    edit(folder / name, max_seq_length=17)
    assert load(str(folder)).max_length == 17


def test_an_empty_file_of_options_is_passed_over(folder):
    (folder / OPTIONS).write_text("{}")
    edit(folder / OPTION_FILES[1], max_seq_length=17)
    assert load(str(folder)).max_length == 17


@pytest.mark.parametrize("new", [True, False])
def test_sections_of_keyword_arguments(new, folder):
    names = ("processor_kwargs", "config_kwargs", "model_kwargs")
    names = names if new else ("tokenizer_args", "config_args", "model_args")
    values = (
        {"model_max_length": 11, "use_fast": True},
        {"hidden_act": "relu"},
        {"torch_dtype": "float16"},
    )
    (folder / OPTIONS).unlink()
    edit(folder / OPTIONS, max_seq_length=17, **dict(zip(names, values, strict=True)))
    model = load(str(folder))
    assert (model.max_length, model.config.act) == (11, "relu")


def test_similarity_default_prompt_and_width(folder):
    edit(
        folder / MODEL,
        similarity_fn_name="dot",
        prompts={"query": "q: ", "topic": "t: "},
        default_prompt_name="topic",
    )
    model = load(str(folder))
    assert (model.similarity, model.default_prompt) == ("dot", "topic")
    assert model.prompts == {"query": "q: ", "document": "", "topic": "t: "}
    # Without a Normalize module, the width is cut after all modules
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:-1]))
    edit(folder / MODEL, truncate_dim=5)
    model = load(str(folder))
    assert (model.dim, model.width, len(model.dense)) == (5, 5, 1)


def test_dropout_does_nothing(folder):
    modules = json.loads((folder / "modules.json").read_text())
    entry = {"path": "9_Dropout", "type": "sentence_transformers.models.Dropout"}
    (folder / "modules.json").write_text(json.dumps([*modules, entry]))
    assert load(str(folder)).dim == 8


REFUSED = [
    (OPTIONS, {"max_seq_length": "32"}, "max_seq_length '32', but it should be a num"),
    (OPTIONS, {"max_seq_length": 0}, "number of at least 1"),
    (OPTIONS, {"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
    (OPTIONS, {"module_output_name": "scores"}, "module_output_name 'scores'"),
    (OPTIONS, {"modality_config": {"message": {}}}, "modality_config.*only texts"),
    (OPTIONS, {"query_length": 16}, "query_length 16; we compute only None"),
    (OPTIONS, {"processing_kwargs": {"text": {"max_length": 4}}}, "text.*max_length"),
    (OPTIONS, {"query_expansion": {"length": 32}}, "query_expansion"),
    (OPTIONS, {"model_args": {"load_in_4bit": True}}, "arguments load_in_4bit"),
    (OPTIONS, {"config_args": 3}, "config_kwargs.*is no object: 3"),
    (OPTIONS, {"tokenizer_args": {"truncation_side": "left"}}, "truncation_side"),
    (MODEL, {"similarity_fn_name": "maxsim"}, "similarity_fn_name 'maxsim'"),
    (MODEL, {"model_type": "CrossEncoder"}, "model_type 'CrossEncoder'"),
    (MODEL, {"prompts": {"query": ["q"]}}, "the prompt query .*, which is no text"),
    (MODEL, {"prompts": {"query": "\ud800"}}, "the prompt query .*, which is no text"),
    (MODEL, {"prompts": "query: "}, "prompts 'query: '; they should have names"),
    (MODEL, {"truncate_dim": 4}, "truncate_dim 4, which cuts vectors after"),
    ("3_Normalize/config.json", {"module_input_name": "x"}, "module_input_name 'x'"),
    ("config.json", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("config.json", {"hidden_size": "16"}, "numbers as text: hidden_size '16'"),
    ("config.json", {"num_hidden_layers": None}, "depth is None; it takes a whole"),
    ("config.json", {"layer_norm_eps": [1]}, "norm_eps is .1.; it takes a number"),
    ("config.json", {"num_hidden_layers": 0}, "depth is 0"),
    ("config.json", {"num_attention_heads": 0}, "zero|0"),
    ("config.json", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
]


@pytest.mark.parametrize(("file", "fields", "message"), REFUSED, ids=str)
def test_what_we_do_not_compute_is_refused_by_name(file, fields, message, folder):
    edit(folder / file, **fields)
    with pytest.raises(ValueError, match=message):
        load(str(folder))


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([{"idx": 0, "path": ""}], "a module without type and path"),
        (["Transformer"], "a module without type and path: 'Transformer'"),
        ([{"type": "my_code.Transformer", "path": ""}], "my_code.Transformer, whose"),
        ([], "has the modules ; we compute Transformer"),
        ({}, "holds a JSON object; it should hold a JSON list"),
    ],
)
def test_modules_that_are_not_understood(modules, message, folder):
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=f"modules.json.*{message}"):
        load(str(folder))


@pytest.mark.parametrize(
    "code", ["modeling_x.XModel", "repo--modeling_x.JinaBertModel"]
)
def test_code_of_the_models_own(code, folder):
    edit(folder / "config.json", auto_map={"AutoModel": code})
    with pytest.raises(ValueError, match="auto_map.*would compute a plain bert"):
        load(str(folder))


def test_a_config_that_is_a_list(folder):
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json holds a JSON list"):
        load(str(folder))


def test_an_adapter_is_not_passed_over(folder):
    edit(folder / "adapter_config.json", peft_type="LORA")
    with pytest.raises(ValueError, match="is an adapter .*--adapter"):
        load(str(folder))


def test_weights_of_a_dense_module_that_are_not_there(folder):
    file = folder / "2_Dense" / "model.safetensors"
    weights = {name: x.copy() for name, x in load_file(file).items()}
    weights["linear.weight"][0, 0] = np.nan
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"values in linear\.weight.*not finite"):
        load(str(folder))
    file.write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
    with pytest.raises(ValueError, match="2_Dense.*is not a safetensors file"):
        load(str(folder))


def export_family(name, folder, **changes):
    model, cfg = make_model(), dataclasses.replace(CONFIGS[name], **changes)
    export(model._replace(config=cfg, params=random_params(cfg)), folder)


def test_rope_reads_on_to_the_stated_length(tmp_path):
    export_family("llama", tmp_path)
    edit(tmp_path / OPTIONS, max_seq_length=9_000)
    model = load(str(tmp_path))
    assert (model.max_length, model.config.max_len) == (9_000, 9_000)
    edit(tmp_path / "config.json", rope_scaling={"type": "linear", "factor": 2.0})
    edit(tmp_path / "config.json", rope_parameters=None)
    with pytest.raises(ValueError, match="max_seq_length 9000, but its RoPE scaling"):
        load(str(tmp_path))


def test_a_roberta_needs_the_id_of_its_pad_token(tmp_path):
    export_family("xlm-roberta", tmp_path, position_offset=1)
    edit(tmp_path / "config.json", pad_token_id=None)
    with pytest.raises(ValueError, match="pad_token_id null, but the positions"):
        load(str(tmp_path))
