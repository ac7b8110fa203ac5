"""What training on one's own images gained, in plain words, for people who have not read the paper."""

from __future__ import annotations

import math

import pandas as pd

from vptsp_core.runs import Run

FEW_CLASSES = 20  # held out; below, other classes could well show something else
UNCLEAR = "cannot be told"  # a difference whose interval holds 0


def counted(number: int, thing: str) -> str:
    """``1 class``, ``2 classes``, ``1,234 images``."""
    return f"{number:,} {thing}{'' if number == 1 else 'es' if thing.endswith('s') else 's'}"


def summary(frozen: Run, trained: Run, gain: pd.DataFrame, classes: int) -> str:
    """The comparison of `own_images.compare`; ``classes``: how many were tested on."""
    queries = len((trained.queries or {}).get("R@1", ()))
    verdicts = {str(metric): str(verdict) for metric, verdict in gain["verdict"].items()}
    epochs = trained.config.epochs
    lines = [f"{counted(queries, 'query image')} of {counted(classes, 'class')} that were not trained on:"]
    lines.append(f"{'':8}{'frozen':>8}{'trained':>9}  difference [95 % interval]")
    for metric, row in gain.iterrows():
        interval = f"{row['difference']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"
        lines.append(f"{metric:8}{row['frozen']:8.1f}{row['trained']:9.1f}  {interval}: {row['verdict']}")
    lines.append(_start_in_words(verdicts, epochs) if trained.metrics["epoch"] == 0 else _in_words(verdicts))
    if unclear := [metric for metric, verdict in verdicts.items() if verdict == UNCLEAR]:
        bounds = [f"{metric} may be up to {abs(gain['low'][metric]):.1f} points lower or up to "
                  f"{gain['high'][metric]:.1f} points higher" for metric in unclear]  # fmt: skip
        lines.append(f"Better or worse by {' and '.join(unclear)} cannot be told from so few images "
                     f"({queries:,}): {', '.join(bounds)}. More tested images would tell.")  # fmt: skip
    if set(verdicts.values()) != {"better"}:
        lines += [_advice(trained), f"The frozen backbone lies in {frozen.path} and is used in the same way."]
    if trained.config.selection == "released" and epochs:
        lines.append("The epoch was chosen on these very queries, so that the trained numbers are optimistic.")
    if classes < FEW_CLASSES:
        lines.append("The interval is for other images of these classes; other classes may differ by more.")
    if epochs:
        seconds = math.ceil(trained.record["seconds"])
        lines.append(f"Trained in {seconds // 60} min {seconds % 60} s on {trained.record['device']}; "
                     f"epoch {trained.metrics['epoch']:.0f} of {epochs}.")  # fmt: skip
    lines += [f"The model lies in {trained.path}. To use it:", "  from vptsp_core import load",
              f'  embeddings = load("{trained.path}").embed(["image.jpg"])']  # fmt: skip
    return "\n".join(lines)


def _start_in_words(verdicts: dict[str, str], epochs: int) -> str:
    found = ", ".join(f"{verdict} by {metric}" for metric, verdict in verdicts.items() if verdict != UNCLEAR)
    start = "No epoch was better than the start, which was made of your images without training: it is kept."
    if not epochs:
        start = "Nothing was trained (epochs=0): the model is the start, made of your images without training."
    mend = ": use the frozen backbone" if set(verdicts.values()) <= {"worse", UNCLEAR} else ""
    return start + (f" Beside the frozen backbone it is {found}{mend}." if found else "")


def _in_words(verdicts: dict[str, str]) -> str:
    by = {verdict: " and ".join(metric for metric, each in verdicts.items() if each == verdict)
          for verdict in verdicts.values()}  # fmt: skip
    if "better" in by and "worse" in by:
        return f"Training helped by {by['better']} and harmed by {by['worse']}: choose by the one that you need."
    if "better" in by:
        only = f" by {by['better']}" if UNCLEAR in by else ""
        return f"Training helped: the trained model finds better than the frozen backbone{only}."
    if "worse" in by:
        only = f" by {by['worse']}" if UNCLEAR in by else ""
        return f"Training made it WORSE{only}: use the frozen backbone."
    return "Training made no difference that is certain."


def _advice(trained: Run) -> str:
    """What may help. More epochs are no mend where the model was better before the last one."""
    epoch, epochs = round(trained.metrics["epoch"]), trained.config.epochs
    if not epochs:
        return "To train, give it epochs (--set epochs=N)."
    if trained.config.selection == "last" or epoch == epochs:
        return "More epochs (--set epochs=N), a lower rate (--set lr=...) or more classes may help."
    if epoch == 0:
        return "A lower rate (--set lr=...) or more classes may help."
    which = "held-out" if trained.config.selection == "validation" else "tested"
    return (f"The {which} classes were best after epoch {epoch} of {epochs}, so that more epochs would not help; a "
            "lower rate (--set lr=...) or more classes may.")  # fmt: skip
