"""Ablations: the runs that recipes, seeds and columns make, and their names."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from research.types import Evaluator

# Prefix of a recipe that is an existing model instead of a training run.
MODEL = "model="
# Prefix of a recipe that is a merging of other rows' models.
MERGE = "merge="
# Fields of a row that are options of the embedder.
EMBEDDING_FIELDS = (
    *("prompt", "prepend", "layers", "bidirectional", "pool"),
    "token_transform",
)


class AblationRow(NamedTuple):
    """A row of the table. "{field}" in any value is replaced by the column's field.

    Attributes:
        recipe: Recipe to train, or `model=NAME` for a model that is scored without
            training. A recipe that contains a field is trained for each value of it.
            Rows with the same recipe share its runs. `merge=METHOD`, such as
            `merge=average()`, merges the models of the rows in `members`.
        extend: Position methods for longer texts, such as "yarn(scale=8)"; without
            them, texts longer than the model's maximum are cut.
        chunk: Chunking of documents; see `parse_chunking`.
        start: Recipe that is trained first. "{start}" in `recipe` is replaced by its
            workdir, so that `model={start}` scores it without further training. Rows
            with the same start share its run.
        members: Rows whose models of the same seed are merged: "one | other".
        prompt: Prompt of the texts; here and below, "" is the model's own.
        prepend: Blocks of token prepending.
        layers: Layers that are pooled.
        bidirectional: Whether attention is bidirectional, "True" or "False".
        pool: Pooling.
        token_transform: Transform of the vectors of tokens, such as "muvera()".
        transform: Transform of stored vectors, such as "pca(96) | int8", fitted to the
            documents of each column, or to all its texts if it has none; "none" for
            vectors as they are.
    """

    recipe: str
    extend: str = ""
    chunk: str = ""
    start: str = ""
    members: str = ""
    prompt: str = ""
    prepend: str = ""
    layers: str = ""
    bidirectional: str = ""
    pool: str = ""
    token_transform: str = ""
    transform: str = ""


# {run: {evaluation: score}}; an error message replaces whatever failed.
Results = Mapping[str, Mapping[str, float | str] | str]


class Ablation(NamedTuple):
    """Recipes (rows) that are compared by evaluations (columns).

    Attributes:
        title: Title of the table and the plot.
        rows: {name: fields of an AblationRow, or only its recipe}.
        columns: {name: fields}. The fields "depth" and "dim" truncate the model,
            "max_length" its texts; "eval" names the evaluator (the first one if
            missing); columns with the same "panel", with which their names begin, share
            a plot. Further fields are values for the rows.
        seeds: Seeds; each recipe is trained once per seed.
        evals: Evaluators by their names.
        eval_settings: {name of an evaluator: all that its scores depend on but the
            model}, as JSON.
        paper: {row: published number for each column}.
        note: Explanation of the published numbers.
        overrides: Config values for every run, such as {"steps": 100}.
        reference: Row that the others are compared with; the first one if empty.
        shares_vectors: Whether the cells of a run whose texts are embedded alike share
            the vectors, which stay in memory: those of rows that differ in a transform,
            and of columns with the same texts.
    """

    title: str
    rows: Mapping[str, str | Mapping[str, str]]
    columns: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    evals: Mapping[str, Evaluator]
    paper: Mapping[str, Sequence[float]] = {}
    note: str = ""
    overrides: Mapping[str, Any] = {}
    eval_settings: Mapping[str, Any] = {}
    reference: str = ""
    shares_vectors: bool = False


class AblationRun(NamedTuple):
    """One training run, and the cells of the table that it is evaluated for.

    Attributes:
        name: Name of the run's folder, made from the first row that needs it, the
            fields in its recipe and the seed.
        config: The recipe.
        seed: Value of config.seed.
        cells: (row, column) of every cell that the run is evaluated for.
        start: Run whose workdir replaces "{start}" in `config`; None if there is none.
        members: Runs whose models are merged; () if it is trained.
    """

    name: str
    config: str
    seed: int
    cells: tuple[tuple[str, str], ...] = ()
    start: "AblationRun | None" = None
    members: "tuple[AblationRun, ...]" = ()


def choose_rows(rows: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The rows of these names, in the order of the table; all rows without a name.

    The members of a row that merges others are chosen, too.

    Raises:
        ValueError: There is no such row.
    """
    if unknown := [name for name in names if name not in rows]:
        raise ValueError(
            f"there is no row {unknown[0]!r}; the rows are {', '.join(map(repr, rows))}"
        )
    members = [member for name in names for member in split_members(rows[name])]
    chosen = {*names, *members}
    return {name: rows[name] for name in rows if name in chosen or not names}


def split_members(fields: str | Mapping[str, Any]) -> list[str]:
    """The rows that the fields of a row name as its members."""
    text = fields.get("members", "") if isinstance(fields, Mapping) else ""
    return [name.strip() for name in text.split("|") if name.strip()]


def fill_row(ablation: Ablation, row: str, column: str) -> AblationRow:
    """A row of the table with the fields of a column filled in."""
    fields = ablation.rows[row]
    template = AblationRow(fields) if isinstance(fields, str) else AblationRow(**fields)
    values = {**ablation.columns[column], "start": "{start}"}  # known when it is run
    return AblationRow(*(part.format(**values) for part in template))


def name_evaluation(ablation: Ablation, row: str, column: str) -> str:
    """Name of a cell's evaluation in its run; equal evaluations have equal names."""
    line = fill_row(ablation, row, column)._asdict()
    settings = [line[name] for name in ("extend", "chunk")]
    names = *EMBEDDING_FIELDS, "transform"
    settings += [f"{name}={line[name]}" for name in names if line[name]]
    return " ".join([column, *filter(None, settings)])


def plan_runs(ablation: Ablation) -> list[AblationRun]:
    """All distinct runs, seed by seed, so that an early stop leaves complete seeds.

    Rows with equal recipes, after their fields are filled in, share a run.

    Raises:
        ValueError: A row merges what is no other row, or is merged itself.
    """
    planned: dict[tuple[str, str, str, int], AblationRun] = {}
    starts: dict[tuple[str, int], AblationRun] = {}

    def plan_cell(row: str, column: str, seed: int) -> tuple[str, str, str, int]:
        """Plans the run of a cell, and those that it is made of; its key."""
        fields, values = ablation.rows[row], ablation.columns[column]
        line = fill_row(ablation, row, column)
        # The name contains the fields that the recipe depends on.
        recipe = fields if isinstance(fields, str) else fields["recipe"]
        keys = [key for key in re.findall(r"{(\w+)}", recipe) if key in values]
        used = [f"{key}{values[key]}" for key in keys]
        name = re.sub(r"[^\w.-]+", "_", "-".join([row, *used, f"seed{seed}"]))
        # Equal starts are one run, and so are equal recipes.
        start = None
        if line.start:
            start = AblationRun(f"{name}-start", line.start, seed)
            start = starts.setdefault((line.start, seed), start)
        members = tuple(
            planned[plan_cell(member, column, seed)]
            for member in _list_members(ablation, row, line)
        )
        run = AblationRun(name, line.recipe, seed, start=start, members=members)
        key = line.recipe, line.start, line.members, seed
        planned.setdefault(key, run)
        return key

    for seed in ablation.seeds:
        for row in ablation.rows:
            for column in ablation.columns:
                key = plan_cell(row, column, seed)
                cells = (*planned[key].cells, (row, column))
                planned[key] = planned[key]._replace(cells=cells)
    return list(planned.values())


def choose_share(
    runs: Sequence[AblationRun], index: int, count: int
) -> list[AblationRun]:
    """One of several shares of the runs, for as many hosts.

    Runs that start from the same run, or that are merged, are in the same share.

    Args:
        runs: Runs of `plan_runs`.
        index: Number of the share, from 0.
        count: Number of shares.
    """
    groups: list[set[str]] = []
    for run in runs:
        parts = [run.start] if run.start else run.members
        names = {run.name, *(part.name for part in parts)}
        joined = [group for group in groups if group & names]
        groups = [group for group in groups if group not in joined]
        groups.append(names.union(*joined))
    share = set().union(*groups[index::count])
    return [run for run in runs if run.name in share]


def _list_members(ablation: Ablation, row: str, line: AblationRow) -> list[str]:
    """The rows that a row merges; [] for a row that is trained."""
    # Members and the recipe that merges them go together
    members = split_members(line._asdict())
    if bool(members) != line.recipe.startswith(MERGE):
        raise ValueError(
            f"row {row!r}: members go with the recipe {MERGE}METHOD, and only with it"
        )
    for name in members:
        if name not in ablation.rows or split_members(ablation.rows[name]):
            raise ValueError(
                f"row {row!r} merges {name!r}, which is no row that is trained here"
            )
    return members


def collect_failures(
    results: Results,
) -> dict[str, str]:
    """Error messages of all failures: {"run" or "run: evaluation": message}."""
    # Runs that failed as a whole, then single evaluations.
    runs = {run: why for run, why in results.items() if isinstance(why, str)}
    evaluations = {
        f"{run}: {name}": why
        for run, cells in results.items()
        if run not in runs
        for name, why in cells.items()
        if isinstance(why, str)
    }
    return runs | evaluations
