"""Command that diagnoses a model's embeddings, each report as a table, JSON and PNG.

python -m launch.diagnose --model=M --corpus=texts.txt|pydocs [--output=folder]
python -m launch.diagnose --model=M --corpus=C --reports="geometry(texts=500)"
"""

import inspect
import re
import textwrap
from pathlib import Path

from absl import flags

from launch import flags as options
from launch import main as cli
from launch.evaluate_kinds import check_dense
from research.analysis.diagnostics.inputs import DiagnosticInputs, name_data
from research.analysis.diagnostics.reports import REPORTS, Report
from research.config_sections import bind_call, build_call, parse_calls
from research.data.corpus import read_corpus
from research.eval.evaluators import EVALS, NO_MAIN_SCORE
from research.eval.tables import markdown_page
from research.types import Evaluator

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
    "corpus",
    None,
    "The texts: a .txt file with one in each line, a .jsonl file, a BEIR folder or "
    "pydocs.",
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
    for i, call in enumerate(calls):
        bind_call(table, call, None)
        if call.name in [other.name for other in calls[:i]]:
            raise ValueError(
                f"--reports has {call.name} twice, whose files have the same names"
            )
    evaluators = {} if TASKS.value is None else build_tasks(TASKS.value)
    model = options.load_model()
    options.check_plain(model, "launch.diagnose")
    options.check_no_transform("launch.diagnose")
    check_dense(model, "launch.diagnose")
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


def build_tasks(text: str) -> dict[str, Evaluator]:
    """{"sts stsb": evaluator} of the calls in --tasks, named by task and data.

    Raises:
        FileNotFoundError, ValueError: A call is wrong, or two tasks have one name.
    """
    evaluators: dict[str, Evaluator] = {}
    for call in parse_calls(text):
        if call.name in NO_MAIN_SCORE:
            raise ValueError(f"--tasks: {call.name} has no main score of embeddings")
        evaluator = build_call(EVALS, call)
        data = name_data(str(call.kwargs.get("data", "")))
        name = f"{call.name} {data}".strip()
        # Two tasks on the same data differ in another argument.
        if name in evaluators:
            values = (f"{k}={v}" for k, v in call.kwargs.items() if k != "data")
            name = " ".join([name, *values])
        if name in evaluators:
            raise ValueError(
                f"--tasks has two tasks {name!r}: give files of other names, or the "
                "folder and another split"
            )
        evaluators[name] = evaluator
    return evaluators


def _write(name: str, report: Report, record) -> None:
    """Writes a report's table, record and picture, and shows the table."""
    folder = Path(OUTPUT.value)
    title = f"{report.heading}: {Path(options.MODEL.value.split(':')[-1]).name}"
    if source := record.get("data", name_data(CORPUS.value or "")):
        title += f" on {source}"
    header, *rows = report.make_rows(record)
    page = markdown_page(title, header, rows)
    cli.write_page(
        folder, name, record, page, lambda path: report.plot(record, title, path)
    )
    cli.log(f"{page}\nwrote {folder / name}.json, .md and .png")


def describe_reports() -> str:
    """The reports for the help page: their calls with all options, and what they do."""
    lines = ["Reports and their options, with the defaults:"]
    for name, report in REPORTS.items():
        doc = inspect.getdoc(report.measure)
        parameters = inspect.signature(report.measure).parameters.values()
        options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        # An option without a default must be given.
        defaults = [
            repr(p.default) if p.default is not p.empty else "..." for p in options
        ]
        pairs = zip(options, defaults, strict=True)
        listed = ", ".join(f"{option.name}={value}" for option, value in pairs)
        lines += ["", f"{name}({listed})" if listed else name]
        lines.append(textwrap.indent(doc.split("\n")[0], "  "))
        for option in options:
            # Its entry in the docstring, with the lines that continue it
            entry = re.search(
                rf"^    {option.name}: .*(\n {{8}}.*)*", doc, re.MULTILINE
            )
            words = " ".join(entry[0].split())
            indents = {"initial_indent": " " * 4, "subsequent_indent": " " * 6}
            lines.append(textwrap.fill(words, 88, **indents))
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, f"{__doc__}\n{describe_reports()}")
