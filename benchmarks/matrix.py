"""The matrix modality x family of objectives, from ``results/*.csv``; `readme.py` prints it.

A cell is the best measured row of its family at the budget of the line: chosen among what was
measured by its test score, so read it as what was reached, not as a prediction. A cell without a
row is blank.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import shlex
from collections.abc import Iterator

from common import WIDTH, read, widths, with_full

from mmdd.compose import compose

FAMILIES = {"gradient": "gradient", "trajectory": "trajectory", "distribution": "distribution"}
BLANK = "–"  # noqa: RUF001


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the matrix.

    Attributes
    ----------
    table: results file.
    data, budget: values of its columns ``data`` and `budget_column`.
    score: name of the measure in the columns' names, where they have one.
    flag: how a budget is given on the command line.
    only: part of a method's name in the table that a row must have.
    net: what its column ``encoder`` must say, where that tells lines apart.
    """

    modality: str
    table: str
    data: str
    budget: int
    budget_column: str = "budget"
    score: str = ""
    flag: str = "--per-class"
    digits: int = 1
    lower: bool = False
    told: str = ""
    only: str = ""
    net: str = ""

    def rows(self) -> Iterator[dict[str, str]]:
        """Rows of the table at this budget under the plain setting."""
        rows = read(self.table)
        for row in with_full(rows) if self.table == "modalities" else rows:
            if row.get("label") and self.table == "graphs":
                continue  # another setting
            called = row.get("method") or ""
            if "not distilled" in called:
                continue
            if self.only not in called or self.net not in ("", row.get("encoder")):
                continue
            here = row["data"] == self.data and row[self.budget_column] == str(self.budget)
            if here and row.get(self.columns("synthetic", row)[0]):
                yield row

    def columns(self, name: str, row: dict[str, str]) -> tuple[str, str]:
        """Columns of mean and standard deviation of the set called `name`."""
        if self.score:
            mean = self.score if name == "synthetic" else f"{name}_{self.score}"
            return mean, f"{mean}_std"
        bare = name == "synthetic" and "mean" in row
        return ("mean", "std") if bare else (f"{name}_mean", f"{name}_std")

    def value(self, row: dict[str, str]) -> float:
        """Score of the synthetic set, the higher the better."""
        return (-1 if self.lower else 1) * float(row[self.columns("synthetic", row)[0]])

    def shown(self, row: dict[str, str], name: str) -> str:
        """``mean ± std``, or a blank."""
        mean, std = (row.get(column) for column in self.columns(name, row))
        if not mean:
            return BLANK
        return f"{float(mean):.{self.digits}f}" + (
            f" ± {float(std):.{self.digits}f}" if std else ""
        )


LINES = (
    Line("images", "accuracy", "fashion_mnist", 10, "per_class", told="Fashion-MNIST"),
    Line("graphs", "graphs", "pyg:Planetoid/Cora", 70, "items", flag="--items", told="Cora"),
    Line(
        "text (tokens, TextCNN)",
        "modalities",
        "text/sst2",
        10,
        told="SST-2",
        only="embeddings",
        net="textcnn",
    ),
    Line(
        "text (tokens, GRU)",
        "modalities",
        "text/sst2",
        10,
        told="SST-2",
        only="embeddings",
        net="gru",
    ),
    Line(
        "text (`inputs_embeds` of a small BERT)",
        "modalities",
        "text/sst2",
        10,
        told="SST-2",
        only="transformers",
    ),
    Line("text (vectors)", "modalities", "text/sst2_minilm", 10, told="SST-2, MiniLM"),
    Line("audio", "modalities", "audio/fsdd", 10, told="FSDD"),
    Line("time series", "modalities", "timeseries/ucihar_subset", 10, told="UCI-HAR"),
    Line(
        "forecasts",
        "modalities",
        "timeseries/etth1",
        384,
        flag="--items",
        digits=3,
        lower=True,
        told="ETTh1, MSE",
    ),
    Line("video", "modalities", "video/grid_digit", 10, told="GRID digits"),
    Line(
        "pairs",
        "pairs",
        "pairs/flickr8k_1k",
        100,
        "items",
        score="R@10",
        flag="--items",
        told="Flickr8k-1k, R@10",
    ),
)


def family(method: str) -> str:
    """The kind of a method's first objective."""
    kind: str = compose(method=method.partition(",")[0]).terms[0].kind
    return kind


def best(line: Line) -> dict[str, dict[str, str]]:
    """The best row of every family that has one."""
    found: dict[str, dict[str, str]] = {}
    for row in line.rows():
        kind = family(row.get("method") or "dm")
        if kind not in found or line.value(row) > line.value(found[kind]):
            found[kind] = row
    return found


def narrow(row: dict[str, str]) -> str:
    """Words for nets that are narrower than the paper's, in the table of papers' nets."""
    if "distil_seconds" not in row or "label" not in row:
        return ""
    made, judge = widths(row["options"].split())
    if made == WIDTH:
        return ""
    return f" (width {made})" if made == judge else f" (made at width {made})"


def command(line: Line, row: dict[str, str]) -> str:
    """What repeats a row."""
    ours = ("evaluate.learners", "evaluate.full_minutes", "evaluate.full_epochs")
    options = [word for word in _words(row.get("options", "")) if not word.startswith(ours)]
    data = line.data if line.data.startswith("pyg:") else f"DATA/{line.data.split('/')[-1]}"
    root = ["--root DIR"] if line.data.startswith("pyg:") else []
    words = [
        "mmdd distill",
        data,
        *root,
        f"--method {(row.get('method') or 'dm').partition(',')[0]}",
        f"{line.flag} {line.budget}",
    ]
    told = " ".join([*words, *map(shlex.quote, options)])
    before = earlier(row)
    return f"{command(line, before)} --out build/{before['label']}\n{told}" if before else told


def earlier(row: dict[str, str]) -> dict[str, str] | None:
    """The row of ``accuracy.csv`` whose set this row's goes on from."""
    words = (word.partition("=") for word in row.get("options", "").split())
    label = next((v for k, _, v in words if k == "synthetic.initialise" and "/" in v), "")
    key = {"data": row.get("data"), "per_class": row.get("per_class")}
    key |= {"label": label.removeprefix("build/")}
    rows = read("accuracy") if label else []
    return next((r for r in rows if all(r[k] == v for k, v in key.items())), None)


def _words(options: str) -> list[str]:
    """``a=1 b={'c': 2}`` to words of the command line: ``a=1``, ``b={"c":2}``."""
    words: list[str] = []
    for word in options.split():
        if words and _open(words[-1]):
            words[-1] += word
        else:
            words.append(word)
    return [_as_json(word) for word in words]


def _open(word: str) -> bool:
    """True where a bracket of `word` is not closed."""
    return sum(word.count(sign) for sign in "[{") > sum(word.count(sign) for sign in "]}")


def _as_json(word: str) -> str:
    """`word` with a list or a dict of Python written as JSON, which is YAML too."""
    key, _, value = word.partition("=")
    if value == "None":
        return f"{key}=null"
    if not value.startswith(("[", "{")):
        return word
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return word  # a list of bare words
    return f"{key}={json.dumps(found, separators=(',', ':'))}"


def matrix() -> str:
    """The table in Markdown, and below it the commands."""
    lines = [
        "| modality | data, budget | " + " | ".join(FAMILIES.values()) + " | random | full data |",
        "|---|---|---|---|---|---|---|",
    ]
    commands = []
    for line in LINES:
        found = best(line)
        cells = []
        for kind in FAMILIES:
            row = found.get(kind)
            cells.append(
                BLANK
                if row is None
                else f"`{row.get('method') or 'dm'}`{narrow(row)} {line.shown(row, 'synthetic')}"
            )
            if row is not None:
                commands.append(command(line, row))
        leading = max(found.values(), key=line.value, default={})
        beside = [line.shown(leading, name) for name in ("random", "full")]
        budget = f"{line.told}, {line.budget}" + (" per class" if "class" in line.flag else "")
        lines.append(f"| {line.modality} | {budget} | {' | '.join([*cells, *beside])} |")
    details = "\n".join(commands)
    return "\n".join(
        [
            *lines,
            "",
            "Best measured row of each family (chosen by its test score among the rows of"
            " `benchmarks/results/`), mean ± std of fresh learners; accuracy in % where no other"
            " measure is named; random and full data are those beside the best cell of a line, as"
            " nets and protocols differ between cells. A blank was not measured.",
            "",
            "<details><summary>The command behind every cell</summary>",
            "",
            f"```\n{details}\n```",
            "",
            "`build/bert_student` is the small BERT that `python benchmarks/modalities.py --only"
            " text/sst2` makes before its first row.",
            "",
            "</details>",
        ]
    )


if __name__ == "__main__":
    print(matrix())
