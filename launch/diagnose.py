"""Command that diagnoses a model's embeddings, each report as a table, JSON and PNG.

python -m launch.diagnose --model=M --corpus=texts.txt|pydocs [--output=folder]
python -m launch.diagnose --model=M --corpus=C --reports="geometry(texts=500)"

length_collapse: cosines of pairs of documents that are cut to each length, with and
  without TempScale.
positional_bias: how much insertions and removals at the start, the middle and the end
  of a document change its embedding.
sentence_importance: how much each sentence of a document contributes to its embedding,
  by its position.
low_pass: how much attention averages the tokens of a text, by depth and length.
sticky_tokens: tokens whose insertion pulls sentences together.
mexa: how well every depth aligns other languages with a pivot.
limit: recall on LIMIT by the number of dimensions, and the bound of any embedding.
redundancy: how many dimensions the tasks of --tasks need.
geometry: anisotropy, IsoScore, intrinsic dimension, effective rank and uniformity of
  the embeddings at every depth.
layers: entropy, curvature and invariance of every layer (Layer by Layer), and with
  --tasks how they go with the scores there.
outliers: dimensions with large means in all tokens' states, and what changes if they
  are clipped (--clip_dims).
token_states: anisotropy, intrinsic dimension and effective rank of the states of tokens
  at every depth, and the rank of masked ones.
"""

from pathlib import Path

from absl import flags

from launch import flags as options
from launch import main as cli
from research.analysis.diagnostics.inputs import DiagnosticInputs, name_data
from research.analysis.diagnostics.reports import REPORTS, Report
from research.atomic_write import atomic_write, to_json
from research.config_sections import bind_call, build_call, parse_calls
from research.data.corpus import read_corpus
from research.eval.evaluators import EVALS
from research.eval.tables import markdown_page
from research.types import Evaluator, ModelEvaluator

# The reports of a run without --reports, which need nothing but a corpus.
DEFAULT_REPORTS = (
    "length_collapse | positional_bias | geometry | token_states | outliers"
)
REPORTS_FLAG = flags.DEFINE_string(
    "reports",
    DEFAULT_REPORTS,
    "The reports, with their options: geometry(texts=500) | length_collapse.",
)
CORPUS = flags.DEFINE_string(
    "corpus", None, "The texts: a .txt or .jsonl file, a BEIR folder, or pydocs."
)
TASKS = flags.DEFINE_string(
    "tasks",
    None,
    "The tasks of reports that score some, with their arguments as in a config: "
    "sts(data='stsb/test.jsonl.gz') | retrieval(data='squad').",
)
OUTPUT = cli.define_path(
    "output", "", "The folder of the files. Default: the current one."
)
SEED = cli.define_seed("The seed of the choice of texts.")
cli.group_flags("Reports", REPORTS_FLAG)
cli.group_flags("Texts and tasks", CORPUS, TASKS, SEED)
cli.group_flags("Output", OUTPUT)


def main():
    """Writes each report when it is finished, and returns the main numbers."""
    # A mistake in the reports is found before the model is loaded.
    table = {name: report.measure for name, report in REPORTS.items()}
    calls = parse_calls(REPORTS_FLAG.value)
    for call in calls:
        bind_call(table, call, None)
    evaluators = {} if TASKS.value is None else _build_evaluators(TASKS.value)
    model = options.load_model()
    options.check_plain(model, "launch.diagnose")
    texts = [] if CORPUS.value is None else read_corpus(CORPUS.value)[1]
    texts = tuple(dict.fromkeys(texts))  # equal texts would look like a collapse
    sizes = options.size_options()
    inputs = DiagnosticInputs(model, texts, SEED.value, sizes, evaluators)
    # Each report is written before the next one is measured.
    summaries = {}
    for call in calls:
        record = build_call(table, call, inputs)
        _write(call.name, REPORTS[call.name], record)
        summaries[call.name] = record["summary"]
    return {
        "model": options.MODEL.value,
        "corpus": CORPUS.value,
        "output": str(Path(OUTPUT.value)),
        **summaries,
    }


def _build_evaluators(text: str) -> dict[str, Evaluator]:
    """{"sts stsb": evaluator} of the calls in --tasks, named by task and data."""
    evaluators = {}
    for call in parse_calls(text):
        evaluator = build_call(EVALS, call)
        if isinstance(evaluator, ModelEvaluator):
            raise ValueError(f"--tasks: {call.name} scores no embeddings")
        data = name_data(str(call.kwargs.get("data", "")))
        evaluators[f"{call.name} {data}".strip()] = evaluator
    return evaluators


def _write(name: str, report: Report, record) -> None:
    """Writes a report's table, record and picture, and shows the table."""
    folder = Path(OUTPUT.value)
    title = f"{report.heading}: {Path(options.MODEL.value.split(':')[-1]).name}"
    if source := record.get("data", name_data(CORPUS.value or "")):
        title += f" on {source}"
    header, *rows = report.make_rows(record)
    page = markdown_page(title, header, rows)
    with (
        atomic_write(folder / f"{name}.json") as data,
        atomic_write(folder / f"{name}.md") as table,
        atomic_write(folder / f"{name}.png") as picture,
    ):
        data.write_text(to_json(record, indent=2) + "\n")
        table.write_text(page)
        report.plot(record, title, picture)
    cli.log(f"{page}\nwrote {folder / name}.json, .md and .png")


if __name__ == "__main__":
    cli.run(main)
