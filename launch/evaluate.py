"""Command that scores a model: nine types of tasks of MTEB, long texts, perplexity.

With --grid, the model is scored at every depth and width.

python -m launch.evaluate --model=M --task=sts --data=stsb/test.jsonl.gz [--grid]
python -m launch.evaluate --model=M --task=longembed [--lengths=256,512] [--data=qmsum]
python -m launch.evaluate --model=M --task=retrieval --data=D --chunk="none | late(64)"
python -m launch.evaluate --model=M --task=classification --data=banking77
python -m launch.evaluate --model=M --task=perplexity --data=texts.txt|pydocs
python -m launch.evaluate --model=M --task=mteb --tasks=STS12,SciFact
python -m launch.evaluate --model=M --task=suite --data=suite.json [--against=OTHER]
python -m launch.evaluate --model=M --task=sts --data=D --prompt=ke --prepend="(1, 7)"
python -m launch.evaluate --model=M --task=retrieval --data=D --against=OTHER
python -m launch.evaluate --model=M --task=retrieval --data=D --compress=all
"""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path

from absl import flags

from launch import evaluate_against as against
from launch import evaluate_compress, evaluate_mteb, evaluate_suite
from launch import evaluate_embedders as embedders
from launch import flags as options
from launch import main as cli
from launch.evaluate_kinds import CHUNKED_TASKS, choose_similarity
from launch.supervise import supervise
from research import processes
from research.eval import compare_chunking, grid, longembed
from research.eval.evaluators import EVALS, NO_MAIN_SCORE, name_main_score
from research.eval.suites import table
from research.eval.tasks.sts import list_pair_similarities
from research.inference.model import EmbeddingModel
from research.inference.similarity import NAMES
from research.models.encoder import truncate_depth
from research.types import ModelEvaluator

# Tasks that are made of several, with a table of their own.
SUITES = ("suite", "mteb")
# Tasks whose scores are made of no single queries, pairs or texts.
NO_ITEMS = ("longembed", "mexa")
# The task and its data.
TASK = flags.DEFINE_enum(
    "task", None, [*EVALS, *SUITES], "The task that is scored.", required=True
)
DATA = flags.DEFINE_string(
    "data",
    None,
    "The data of the task: a file, a folder of splits, a BEIR folder, or pydocs; or a "
    "suite, a folder of such data or a .json file that lists them.",
)
SPLIT = flags.DEFINE_string(
    "split", "test", "The split: the name of a file in --data, or in its qrels/."
)
LABEL = flags.DEFINE_string(
    "label",
    None,
    "The field of the labels for classification, multilabel and clustering. Default: "
    "label or labels.",
)
METRICS = flags.DEFINE_list(
    "metrics",
    None,
    "The metrics of retrieval and reranking, the main one first: ndcg, map, recall, "
    "precision, hit_rate or mrr with a number of documents. Default: ndcg@10 and "
    "map@1000, and others.",
)
ABSTENTION = flags.DEFINE_bool(
    "abstention",
    False,
    "Whether retrieval and reranking also measure how well a query's scores predict "
    "its metric: nAUC.",
)
VECTORS = cli.define_path(
    "vectors",
    None,
    "With --task=retrieval, a folder in which launch.embed wrote the vectors of the "
    "documents of --data. Default: documents are embedded.",
)
IGNORE_IDENTICAL_IDS = flags.DEFINE_bool(
    "ignore_identical_ids",
    False,
    "With --task=retrieval, whether the document with the id of a query is left out of "
    "the query's ranking, as for ArguAna, whose queries are documents of its corpus.",
)
HYBRID = flags.DEFINE_string(
    "hybrid",
    None,
    "With --task=retrieval, the fusion with the ranking by BM25: rrf, rrf(k=60) or "
    "weighted(alpha=0.5), where alpha is the weight of the vectors.",
)
SIMILARITY = flags.DEFINE_enum(
    "similarity",
    None,
    list(dict.fromkeys((*NAMES, *list_pair_similarities()))),
    "How vectors are compared by --task=sts and, with cosine and dot, by searches; "
    "several vectors per text by maxsim and its variants, and by --task=sts with "
    "bertscore and its variants. Default: as the model says, or by cosine.",
)
GRID = flags.DEFINE_bool(
    "grid", False, "Whether the model is scored at every depth and width."
)
# Tasks of longembed and mteb.
TASKS = flags.DEFINE_list(
    "tasks",
    list(longembed.TASKS),
    "The needle tasks of longembed, may be empty; or tasks of mteb.",
)
LENGTHS = flags.DEFINE_list(
    "lengths", list(longembed.LENGTHS), "The numbers of tokens of longembed's texts."
)
TEXT = flags.DEFINE_string(
    "text", "", "A file or folder of texts, in which longembed hides its needles."
)
# Results.
SAMPLES = flags.DEFINE_integer(
    "samples",
    0,
    "The number of bootstrap samples of queries, pairs or texts for the 95 % interval "
    "of a score; 0 for no interval.",
    lower_bound=0,
)
OUTPUT = cli.define_path(
    "output",
    None,
    "The folder of a table's files. Default: evals/ of the model's workdir, or the "
    "current folder.",
)
# Flags that are arguments of evaluators.
TASK_FLAGS = (
    *(DATA, SPLIT, LABEL, METRICS, ABSTENTION, IGNORE_IDENTICAL_IDS, SAMPLES),
    *(TASKS, LENGTHS, TEXT, HYBRID),
)
cli.group_flags("Task", TASK, DATA, SPLIT, LABEL, SIMILARITY)
cli.group_flags("Search", METRICS, ABSTENTION, IGNORE_IDENTICAL_IDS, VECTORS, HYBRID)
cli.group_flags("Tasks longembed and mteb", TASKS, LENGTHS, TEXT)
cli.group_flags("Tasks longembed and mteb", evaluate_mteb.BENCHMARK)
cli.group_flags("Task", embedders.JOIN, embedders.JOIN_CHUNK, embedders.CONTEXT)
cli.group_flags("Comparison", against.AGAINST, against.SCORES, against.RUN)
cli.group_flags("Output", GRID, evaluate_compress.COMPRESS, SAMPLES, OUTPUT)
for module in (against, embedders, evaluate_compress, evaluate_mteb):
    flags.adopt_module_key_flags(module)


def main():
    """Returns the scores; suites, longembed, --grid and chunkings also write files."""
    # Connect the processes before JAX is used.
    processes.initialize()
    # Flags that exclude each other.
    chunkings = options.parse_chunks()
    is_chunked = any(chunkings.values())
    if is_chunked and (GRID.value or TASK.value not in CHUNKED_TASKS):
        option = "--grid" if GRID.value else f"--task={TASK.value}"
        raise ValueError(f"--chunk={options.CHUNK.value} does not go with {option}")
    if GRID.value and TASK.value in (*NO_MAIN_SCORE, *SUITES):
        raise ValueError(f"--grid does not go with --task={TASK.value}")
    is_single = not GRID.value and len(chunkings) == 1
    if VECTORS.value and not (TASK.value == "retrieval" and is_single):
        raise ValueError(f"--vectors={VECTORS.value} goes with one --task=retrieval")
    has_items = TASK.value not in (*NO_ITEMS, *NO_MAIN_SCORE, *SUITES)
    against.check_flags(TASK.value, is_single and has_items)
    is_plain = not (is_chunked or against.AGAINST.value)
    evaluate_compress.check_compress(TASK.value, is_plain)
    has_vectors = has_items or TASK.value == "longembed"
    is_joined = is_single and has_vectors and not evaluate_compress.COMPRESS.value
    embedders.check_join(TASK.value, is_joined and not VECTORS.value)
    if evaluate_mteb.BENCHMARK.value and TASK.value != "mteb":
        raise ValueError(
            f"--benchmark={evaluate_mteb.BENCHMARK.value} goes with --task=mteb"
        )
    if TASK.value in SUITES:
        return _evaluate_several()
    # The task and the model; some tasks score the model itself.
    evaluator = _build_evaluator(SIMILARITY.value or "cosine")
    model = options.load_model(lm_head=isinstance(evaluator, ModelEvaluator))
    similarity = choose_similarity(model, TASK.value, SIMILARITY.value)
    if SIMILARITY.value is None and similarity != "cosine":
        evaluator = _choose_evaluator(similarity, options.MODEL.value)
    if isinstance(evaluator, ModelEvaluator):
        return _evaluate_model(evaluator, model)
    # Scores of transforms, of every size, of every chunking, or of a single embedder.
    if evaluate_compress.COMPRESS.value:
        kind = SIMILARITY.value or model.similarity
        results = evaluate_compress.score_compressed(
            evaluator, model, grid=GRID.value, similarity=kind
        )
        *results, plot = results
        return _write("compression", _title(model), *results, _with_metric(plot))
    if GRID.value:
        scores = embedders.score_grid(evaluator, model)
        # A model card shows the grid of the checkpoint that it is of
        record = {"data": Path(DATA.value or "").name, "step": model.step}
        record |= grid.to_record(scores)
        formats = grid.format_markdown, _with_metric(grid.plot_heat_map)
        return _write("grid", _title(model), scores, record, *formats)
    if len(chunkings) > 1:
        cells = embedders.compare_chunkings(evaluator, model, chunkings)
        record = compare_chunking.to_record(cells)
        plot = _with_metric(compare_chunking.plot_chunkings)
        formats = compare_chunking.format_markdown, plot
        return _write("chunks", _title(model), cells, record, *formats)
    (chunk,) = chunkings.values()
    embed = embedders.make_task_embedder(
        model, chunk, TASK.value, DATA.value, VECTORS.value
    )
    embed = embedders.join_models(embed, model, chunk, SIMILARITY.value or similarity)
    scores = evaluator(embed)
    comparisons = against.compare_models(scores, _choose_evaluator, chunk, TASK.value)
    # longembed also has a curve over lengths.
    if TASK.value == "longembed":
        cli.log(longembed.format_markdown(scores, _title(model)))
        max_length = options.document_length(model, chunk)
        plot = partial(longembed.plot_longembed, document_length=max_length)
        formats = longembed.format_markdown, plot
        return _write("longembed", _title(model), scores, scores, *formats)
    result = {"model": options.MODEL.value, "task": TASK.value, **scores}
    joined = {"joined": embedders.JOIN.value} if embedders.JOIN.value else {}
    return result | joined | comparisons


def _evaluate_several() -> dict:
    """Scores the tasks of a suite, or of mteb; writes a table and a figure."""
    # Of the tasks' flags, they have the data and the names.
    known = {"suite": ("data", "similarity"), "mteb": ("data", "tasks")}[TASK.value]
    for flag in (*TASK_FLAGS, SIMILARITY):
        if flags.FLAGS[flag.name].present and flag.name not in known:
            raise ValueError(
                f"--{flag.name}={flag.value} does not go with --task={TASK.value}"
            )
    if TASK.value == "mteb":
        # The default of --tasks is for longembed.
        names = TASKS.value if flags.FLAGS["tasks"].present else []
        folder = _find_folder() / "mteb"
        scores, record = evaluate_mteb.evaluate_mteb(names, DATA.value, folder)
    elif DATA.value is None:
        raise ValueError("--task=suite needs --data, a folder or a .json file")
    else:
        names = [options.MODEL.value, *against.AGAINST.value]
        scores, record = evaluate_suite.evaluate_suite(
            DATA.value, names, SIMILARITY.value
        )
    # The table also goes to the terminal.
    source = evaluate_mteb.BENCHMARK.value or Path(DATA.value or "").name
    name = Path(options.MODEL.value).name
    title = " ".join(filter(None, [f"{name}: {TASK.value}", source]))
    cli.log(f"\n{table.format_markdown(scores, title)}")
    formats = table.format_markdown, table.plot_suite
    return _write(TASK.value, title, scores, record, *formats)


def _evaluate_model(evaluator: ModelEvaluator, model: EmbeddingModel) -> dict:
    """Scores the model itself, not its embeddings, such as its perplexity."""
    options.check_plain(model, f"--task={TASK.value}")
    options.check_no_transform(f"--task={TASK.value}")
    sizes = options.size_options()
    # Depth and maximum length apply; nothing is pooled.
    for name in ("clip_dims", "dim", "pool"):
        if name in sizes:
            raise ValueError(f"--{name} does not go with --task={TASK.value}")
    params, cfg = model.params, model.config
    if "depth" in sizes:
        params, cfg = truncate_depth(params, cfg, sizes["depth"])
    max_length = sizes.get("max_length", model.max_length)
    mesh = options.make_mesh()
    scores = evaluator.evaluate(params, cfg, model.tokenizer, max_length, mesh)
    return {"model": options.MODEL.value, "task": TASK.value, **scores}


def _choose_evaluator(similarity: str, model_name: str):
    """The evaluator of --task, with --similarity or else that of a model."""
    if SIMILARITY.value:
        return _build_evaluator(SIMILARITY.value)
    return embedders.build_for_model(_build_evaluator, similarity, model_name)


def _build_evaluator(similarity: str):
    # The flags that are arguments of the task's evaluator.
    make_evaluator = EVALS[TASK.value]
    parameters = inspect.signature(make_evaluator).parameters
    arguments = {"similarity": similarity} if "similarity" in parameters else {}
    for flag in (*TASK_FLAGS, SIMILARITY):
        if flag.name not in parameters:
            if flags.FLAGS[flag.name].present:
                raise ValueError(
                    f"--{flag.name}={flag.value} does not go with --task={TASK.value}"
                )
        elif flag is LENGTHS:
            arguments["lengths"] = [_parse_length(length) for length in flag.value]
        elif flag is not SIMILARITY and flag.value is not None:
            arguments[flag.name] = flag.value
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ValueError(f"--task={TASK.value} needs --{name}")
    return make_evaluator(**arguments)


def _parse_length(length: str | int) -> int:
    try:
        return int(length)
    except ValueError:
        raise ValueError(f"--lengths: {length!r} is not a number of tokens") from None


def _find_folder() -> Path:
    """The folder of --output, or evals/ of a workdir, or the current folder."""
    if OUTPUT.value:
        return Path(OUTPUT.value)
    workdir = Path(options.MODEL.value).expanduser()
    return workdir / "evals" if (workdir / "model.json").exists() else Path()


def _with_metric(plot: Callable) -> Callable:
    """A plot function whose axis names the main score of --task."""
    return partial(plot, metric=name_main_score(TASK.value, METRICS.value or ()))


def _title(model: EmbeddingModel) -> str:
    step = "" if model.step is None else f", step {model.step}"
    return f"{Path(options.MODEL.value).name}: {TASK.value}{step}"


def _write(
    name: str, title: str, scores, record: dict, markdown: Callable, plot: Callable
) -> dict:
    """Writes scores as JSON, as a Markdown table and as a PNG; returns the JSON."""
    result = {"model": options.MODEL.value, "task": TASK.value, **record}
    # All processes have the scores.
    if not processes.is_first():
        return result
    page = markdown(scores, title)
    cli.write_page(
        _find_folder(), name, result, page, lambda path: plot(scores, title, path)
    )
    return result


if __name__ == "__main__":
    supervise()
    cli.run(main)
