"""What training on one's own images gained, in plain words, for people who have not read the paper."""

from __future__ import annotations

import math

import pandas as pd

from vptsp_core.runs.folder import Run

FEW_CLASSES = 20  # held out; below, other classes could well show something else
FEW_QUERIES = 30  # below, the bounds that drawing them anew gives mean little, and none are told
UNCLEAR = "cannot be told"  # a difference whose interval holds 0, or that rests on few queries
EQUAL = "equal"  # on every query
EXPLAINED = (
    "R@1: of 100 query images, how many have a picture of their own class as nearest neighbour.",
    "MAP@R: how far up all pictures of a query's class are ranked; 100 if they all come first.",
)


def counted(number: int, thing: str) -> str:
    """``1 class``, ``2 classes``, ``1,234 images``, ``3 queries``."""
    several = f"{thing}es" if thing.endswith("s") else f"{thing[:-1]}ies" if thing.endswith("ry") else f"{thing}s"
    return f"{number:,} {thing if number == 1 else several}"


def summary(frozen: Run, trained: Run, gain: pd.DataFrame, classes: int) -> str:
    """The comparison of `deploy.own_images.compare`; ``classes``: how many were tested on."""
    queries = len((trained.queries or {}).get("R@1", ()))
    verdicts = {str(metric): str(verdict) for metric, verdict in gain["verdict"].items()}
    epochs, start = trained.config.epochs, trained.config.start != "released"
    lines = [f"{counted(queries, 'query image')} of {counted(classes, 'class')} that were not trained on:"]
    lines.append(f"{'':8}{'frozen':>8}{'trained':>9}  difference [95 % interval]")
    for metric, row in gain.iterrows():
        lines.append(f"{metric:8}{row['frozen']:8.1f}{row['trained']:9.1f}  {_difference(row)}")
    lines += [*EXPLAINED, f"Frozen: the {'pretrained ' * (trained.config.weights != 'random')}backbone as it came."]
    lines.append(
        _start_in_words(verdicts, epochs) if trained.metrics["epoch"] == 0 else _in_words(verdicts, start)
    )  # fmt: skip
    lines += _uncertain(gain[gain["verdict"] == UNCLEAR])
    full = [metric for metric in verdicts if gain["frozen"][metric] >= 100]
    if full:
        names = " and ".join(full)
        lines.append(f"The frozen backbone has 100 already: nothing can be gained by {names} on these images.")
    if set(verdicts.values()) != {"better"}:
        lines += [_advice(trained)] if len(full) < len(verdicts) else []
        lines.append(f"The frozen backbone lies in {frozen.path} and is used in the same way.")
    if trained.config.selection == "released" and epochs:
        lines.append("The epoch was chosen on these very queries, so that the trained numbers are optimistic.")
    bounded = (gain["verdict"] != EQUAL) & (gain["queries"] >= FEW_QUERIES)
    if classes < FEW_CLASSES and bounded.any():
        lines.append("The interval is for other images of these classes; other classes may differ by more.")
    if epochs:
        seconds = math.ceil(trained.record["seconds"])
        lines.append(f"Trained in {seconds // 60} min {seconds % 60} s on {trained.record['device']}; "
                     f"epoch {trained.metrics['epoch']:.0f} of {epochs}.")  # fmt: skip
    lines += [f"The model lies in {trained.path}. To use it:", "  from vptsp_core import load",
              f'  embeddings = load("{trained.path}").embed(["image.jpg"])']  # fmt: skip
    return "\n".join(lines)


def _points(value: float) -> str:
    """``+1.2``; with more digits where one would make 0 of what is not."""
    digits = 1
    while value and float(f"{value:.{digits}f}") == 0:
        digits += 1
    return f"{value:+.{digits}f}"


def _difference(row: pd.Series) -> str:
    if row["verdict"] == EQUAL:
        return f"{_points(0)}: equal on all {counted(row['queries'], 'query')}"
    if row["queries"] < FEW_QUERIES:
        return f"{_points(row['difference'])}: too few queries to tell"
    bounds = f"[{_points(row['low'])}, {_points(row['high'])}]"
    return f"{_points(row['difference'])} {bounds}: {row['verdict']}"


def _uncertain(unclear: pd.DataFrame) -> list[str]:
    """On measures by which it cannot be told; each with its bounds, unless its queries are too few for any."""
    lines, more = [], "More tested images would tell."
    few = unclear["queries"] < FEW_QUERIES
    if few.any():
        names, count = " and ".join(unclear.index[few]), counted(unclear["queries"][few].min(), "query")
        lines.append(f"Better or worse by {names} cannot be told: {count} are too few, at least {FEW_QUERIES} are "
                     f"needed. {more}")  # fmt: skip
    if not few.all():
        bounds = [_bounds(str(metric), row["low"], row["high"]) for metric, row in unclear[~few].iterrows()]
        names, fewest = " and ".join(unclear.index[~few]), unclear["queries"][~few].min()
        lines.append(f"Better or worse by {names} cannot be told from so few images ({fewest:,}): {', '.join(bounds)}. "
                     f"{more}")  # fmt: skip
    return lines


def _bounds(metric: str, low: float, high: float) -> str:
    lower = f"up to {_points(low)[1:]} points lower" if low < 0 else "equal"
    higher = f"up to {_points(high)[1:]} points higher" if high > 0 else "equal"
    return f"{metric} may be {lower} or {higher}"


def _start_in_words(verdicts: dict[str, str], epochs: int) -> str:
    found = ", ".join(f"{verdict} by {metric}" for metric, verdict in verdicts.items() if verdict != UNCLEAR)
    start = "No epoch was better than the start, which was made of your images without training: it is kept."
    if not epochs:
        start = "Nothing was trained (epochs=0): the model is the start, made of your images without training."
    mend = ": use the frozen backbone" if "better" not in verdicts.values() else ""
    return start + (f" Beside the frozen backbone it is {found}{mend}." if found else "")


def _in_words(verdicts: dict[str, str], start: bool) -> str:
    """start: whether it began from what was made of the images, in which case not all is the training's."""
    by = {verdict: " and ".join(metric for metric, each in verdicts.items() if each == verdict)
          for verdict in verdicts.values()}  # fmt: skip
    what = "The trained model, start included," if start else "Training"
    if "better" in by and "worse" in by:
        does = "is better by {} and worse by {}" if start else "helped by {} and harmed by {}"
        return f"{what} {does.format(by['better'], by['worse'])}: choose by the one that you need."
    if "better" in by:
        only = f" by {by['better']}" if len(by) > 1 else ""
        helped = f"{what} finds" if start else f"{what} helped: the trained model finds"
        return f"{helped} better than the frozen backbone{only}."
    if "worse" in by:
        only = f" by {by['worse']}" if len(by) > 1 else ""
        return f"{what} {'finds' if start else 'made it'} WORSE{only}: use the frozen backbone."
    if set(by) == {EQUAL}:
        return f"{what} made no difference on any query."
    return f"{what} made no difference that is certain."


def _advice(trained: Run) -> str:
    """What may help. More epochs are not advised where the model was better before the last one."""
    epoch, epochs = round(trained.metrics["epoch"]), trained.config.epochs
    if not epochs:
        return "To train, give it epochs (--set epochs=N)."
    if trained.config.selection == "last" or epoch == epochs:
        return "More epochs (--set epochs=N), a lower learning rate (--set lr=...) or more classes may help."
    if epoch == 0:
        return "A lower learning rate (--set lr=...) or more classes may help."
    which = "held-out" if trained.config.selection == "validation" else "tested"
    return (f"The {which} classes were best after epoch {epoch} of {epochs}, and more epochs may not help; a lower "
            "learning rate (--set lr=...) or more classes may.")  # fmt: skip
