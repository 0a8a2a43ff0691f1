"""Write the tables of README.md from ``results/*.csv``: ``python benchmarks/readme.py``."""

from __future__ import annotations

from pathlib import Path

from common import WIDTH, read, widths, with_full
from matrix import earlier, matrix

README = Path(__file__).parents[1] / "README.md"
SOON = "(no row yet)"


def between(text: str, name: str, content: str) -> str:
    """Replace what stands between the two markers called `name`."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = text.split(start, 1)
    return f"{before}{start}\n{content}\n{end}{rest.split(end, 1)[1]}"


def cell(row: dict[str, str], name: str, digits: int = 1) -> str:
    """``mean ± std``, or a dash."""
    mean, std = row.get(f"{name}_mean"), row.get(f"{name}_std")
    if not mean or not std:
        return "–"  # noqa: RUF001
    return f"{float(mean):.{digits}f} ± {float(std):.{digits}f}"


def accuracy() -> str:
    """One line per measured recipe."""
    rows = read("accuracy")
    if not rows:
        return SOON
    lines = [
        "| data | per class | method | synthetic | random | herding | full data | protocol |"
        " distilled in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["data"], int(row["per_class"]), row["label"])):
        scores = " | ".join(cell(row, name) for name in ("synthetic", "random", "herding", "full"))
        used = int(row.get("threads") or row["cores"])
        cores = "1 core" if used == 1 else f"{used} cores"
        cost = f"{int(row['distil_seconds']) / 60:.0f} min, {row['steps']} steps, {cores}"
        words = dict(word.partition("=")[::2] for word in row["options"].split())
        made, judge = widths(row["options"].split())
        method = f"`{row.get('method') or 'dm'}`"
        if shape := words.get("synthetic.representation"):
            method += f", {shape}"
        if made != judge:
            method += f", made at width {made}"
        elif made != WIDTH:
            method += f", width {made}"
        if begun := earlier(row):
            method += f", from `{begun['method']}`"
        rate = words.get("evaluate.lr")
        epochs = row["protocol"] + (f" at {rate}" if rate else "")
        lines.append(
            f"| {row['data']} | {row['per_class']} | {method} | {scores} | {epochs} | {cost} |"
        )
    first = rows[0]
    lines += [
        "",
        f"Test accuracy in %, {first['learners']} fresh learners, last epoch of the last iterate;"
        " a ConvNet of width 128 where no other is named. Sets that are made at another width are"
        " judged at 128 as well (`learner.width=32 evaluate.learner.width=128`). Rows are as far as"
        " the minutes went, on two kinds of CPU (the file says which), not the published schedules."
        " The nets that `dance`, `mtt` and `datm` follow are recorded before, once, in minutes that"
        " are not counted here; a set that goes on from another"
        " (`from`) counts the time of both. All columns of a"
        " row share the protocol, but full data, which is trained by a recipe fit for it; herding"
        " may have chosen in a net of width 128 for a set made at 32 (column `baselines` of the"
        " file)."
        " `python benchmarks/accuracy.py` repeats and extends"
        " the table"
        " ([`accuracy.csv`](benchmarks/results/accuracy.csv)).",
    ]
    return "\n".join(lines)


def graphs() -> str:
    """One line per method and budget."""
    rows = read("graphs")
    if not rows:
        return SOON
    names = ("random", "herding", "k-center", "aggregate", "full")
    lines = [
        "| data | items | method | synthetic | " + " | ".join(names) + " | condensed in |",
        "|---" * (len(names) + 5) + "|",
    ]
    # baselines are measured once per budget and cached: any row of the budget may show them
    for row in rows:
        scores = " | ".join(cell(row, name) for name in names)
        data = row["data"].rpartition("/")[2] + (f" ({row['label']})" if row["label"] else "")
        made = f"{float(row['mean']):.1f} ± {float(row['std']):.1f}"
        time = f"{float(row['condense_seconds']):.0f} s"
        lines.append(
            f"| {data} | {row['items']} | `{row['method']}` | {made} | {scores} | {time} |"
        )
        if row.get("auc_mean") and "Heterophilous" in row["data"]:
            # most nodes are of one class, so that accuracies say nothing
            areas = " | ".join(cell(row, f"{name}_auc") for name in names)
            made = f"{float(row['auc_mean']):.1f} ± {float(row['auc_std']):.1f}"
            lines.append(
                f"| {data}, ROC-AUC | {row['items']} | `{row['method']}` | {made} | {areas} | |"
            )
    first = rows[0]
    lines += [
        "",
        f"Test accuracy in %, {first['seeds']} condensed sets x {first['learners']} fresh learners"
        " (GEOM: 1 x 5; whole graphs: 3 to 5 hold-outs x 2 or 3),"
        " the state that validation prefers; `items` are synthetic nodes, or graphs per class for"
        " MUTAG and PROTEINS. `python benchmarks/graphs.py` repeats and extends the table"
        " ([`graphs.csv`](benchmarks/results/graphs.csv)).",
    ]
    return "\n".join(lines)


def architectures() -> str:
    """One line per condensed set, one column per net that trains on it."""
    rows = read("graph_architectures")
    if not rows:
        return SOON
    nets = [name.removesuffix("_mean") for name in rows[0] if name.endswith("_mean")]
    lines = [
        "| data | items | method | " + " | ".join(nets) + " | average |",
        "|---" * (len(nets) + 4) + "|",
    ]
    for row in rows:
        scores = " | ".join(cell(row, net) for net in nets)
        lines.append(
            f"| {row['data']} | {row['items']} | `{row['method']}` | {scores} | {row['average']} |"
        )
    lines += [
        "",
        f"Other nets trained on the same condensed set: {rows[0]['learners']} learners each"
        " (`python benchmarks/graph_architectures.py`).",
    ]
    return "\n".join(lines)


def modalities() -> str:
    """One line per data set and budget."""
    rows = with_full(read("modalities"))
    if not rows:
        return SOON
    lines = [
        "| data | budget | method, net | synthetic | random | herding | other | full data |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        digits = 1 if row["metric"] == "accuracy" else 3
        scores = {name: cell(row, name, digits) for name in ("synthetic", "random", "herding")}
        others = ("k-center", "aggregate", "last-value", "seasonal-naive")
        more = [f"{n} {float(row[f'{n}_mean']):.{digits}f}" for n in others if row.get(f"{n}_mean")]
        lines.append(
            f"| {row['data']} | {row['budget']} | `{row['method']}`, {row['encoder']} |"
            f" {' | '.join(scores.values())} | {', '.join(more) or '–'} |"  # noqa: RUF001
            f" {cell(row, 'full', digits)} |"
        )
    lines += [
        "",
        "Test accuracy in %, for ETTh1 mean squared error on normalised values (lower is better);"
        f" {rows[0]['learners']} fresh learners. Budgets are items per class, for ETTh1 time steps."
        " Options were chosen on validation (`benchmarks/results/choices.csv`) but for DM on"
        " Synthetic Control, `condtsc`, `dsa` on FSDD, `dm` and `dc` on ETTh1, attention labels,"
        " and GRID's plain frames, static-dynamic form, `idc` and `mtt`,"
        " which have those of a neighbour or a default."
        " A row without a full-data score of its own has that of another with the same net."
        " UCI-HAR's `dsa`, `datm` and `dance` were chosen on a validation part that shares"
        " recordings with training and misled (`benchmarks/NOTES.md`)."
        " `python benchmarks/modalities.py` repeats and extends the table"
        " ([`modalities.csv`](benchmarks/results/modalities.csv)).",
    ]
    return "\n".join(lines)


def pairs() -> str:
    """One line per method and budget."""
    rows = read("pairs")
    if not rows:
        return SOON
    lines = [
        "| pairs | method | R@10 | random | herding | k-center | full |"
        " TR@1 / 5 / 10 | IR@1 / 5 / 10 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (int(row["items"]), row["method"], row["label"])):
        label = f" ({row['label']})" if row["label"] else ""
        scores = [
            f"{float(row[name]):.1f} ± {float(row[f'{name}_std']):.1f}"
            for name in ("R@10", "random_R@10", "herding_R@10", "k-center_R@10", "full_R@10")
        ]
        ways = [
            " / ".join(f"{float(row[f'{way}@{k}']):.1f}" for k in (1, 5, 10))
            for way in ("TR", "IR")
        ]
        lines.append(f"| {row['items']} | `{row['method']}`{label} | {' | '.join(scores + ways)} |")
    first = rows[0]
    lines += [
        "",
        f"Flickr8k-1k, test recall in %, both ways and (R@10) their mean, in a gallery of"
        f" {first['gallery_images']} images and {first['gallery_texts']} captions; {first['seeds']}"
        f" distilled sets x {first['learners']} fresh learners. Towers: frozen features of the"
        " training split (no pre-trained weights), trained projections."
        " `python benchmarks/pairs.py` repeats and extends the table"
        " ([`pairs.csv`](benchmarks/results/pairs.csv)).",
    ]
    return "\n".join(lines)


def speed() -> str:
    """The latest row of the step benchmark."""
    rows = read("dm_step")
    if not rows:
        return SOON
    row = rows[-1]
    return (
        f"A DM step ({row['data']}, 10 per class, width {row['width']}, 256 real images per class,"
        f" DSA) takes {float(row['seconds_per_step']):.2f} s on {row['cores']} cores of"
        f" {row['machine'].split(' family')[0]},"
        f" **{row['ratio_median']} times** as fast as a plainly written float32 loop over classes"
        f" timed in turn with it{memory(row)}"
        f" (`benchmarks/dm_step.py`; the arithmetic limit is {row['limit_bfloat16_s']} s)."
        + gradient_speed()
    )


def gradient_speed() -> str:
    """The latest row of each method of the gradient step's benchmark."""
    latest = {row["method"]: row for row in read("gradient_step")}
    return "".join(
        f" A {name.upper()} step takes {float(row['seconds_per_step']):.1f} s on {row['cores']}"
        f" cores of {row['machine'].split(' family')[0]}, **{row['ratio_median']} times** as fast"
        f" as the plain loop{memory(row)} (`benchmarks/gradient_step.py`)."
        for name, row in latest.items()
    )


def memory(row: dict[str, str]) -> str:
    """Words for what happens to freed memory, which decides the plain loop's time."""
    told = {
        "kept": ", both with freed memory kept as runs of this package do",
        "handed back": ", both handing freed memory back as PyTorch does by itself",
    }
    return told.get(row.get("memory") or "", "")


def curves() -> str:
    """Scores against steps, ours beside the plain loop."""
    rows = read("curves")
    found = {(r["method"], r["per_class"], int(r["steps"]), r["who"]): r for r in rows}
    steps = sorted({key[2] for key in found})
    head = ["per class", "method", *(f"{count:,} steps" for count in steps)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for per_class, method in sorted({(int(key[1]), key[0]) for key in found}):
        cells = [str(per_class), f"`{method}`"]
        for count in steps:
            sides = [found.get((method, str(per_class), count, who)) for who in ("ours", "plain")]
            cells.append(" / ".join(spread(row) for row in sides) if any(sides) else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(row: dict[str, str] | None) -> str:
    """``mean ± std`` of a row of its own, or a dash."""
    return "–" if row is None else f"{float(row['mean']):.1f} ± {float(row['std']):.1f}"  # noqa: RUF001


def protocols() -> str:
    """What the quick protocol costs."""
    lines = ["| data | per class | row | `dc` | `quick` |", "|---|---|---|---|---|"]
    for row in read("accuracy"):
        for name in ("synthetic", "random", "herding"):
            if row.get(f"quick_{name}_mean"):
                lines.append(
                    f"| {row['data']} | {row['per_class']} | {name} |"
                    f" {float(row[f'{name}_mean']):.1f} | {float(row[f'quick_{name}_mean']):.1f} |"
                )
    return "\n".join(lines) if len(lines) > 2 else SOON


def main() -> None:
    text = README.read_text(encoding="utf8")
    tables = {
        "results": accuracy,
        "curves": curves,
        "speed": speed,
        "protocols": protocols,
        "graphs": graphs,
        "modalities": modalities,
        "architectures": architectures,
        "pairs": pairs,
        "matrix": matrix,
    }
    for name, made in tables.items():
        text = between(text, name, made())
    README.write_text(text, encoding="utf8")


if __name__ == "__main__":
    main()
