"""What a training was, in files beside the model: a summary, a plot of its curves, and its log."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

logger = logging.getLogger(__name__)

SUMMARY, CURVES, LOG = "training_summary.md", "training_curves.png", "training_log.jsonl"
RECALL = re.compile(r"eval_(?:(?P<set>.+?)_)?(?P<figure>[it]r@\d+)_(?P<tag>.+)")
TOTAL = re.compile(r"eval_(?:(?P<set>.+?)_)?(?P<figure>rsum|mrv|skipped_images)")
TOTALS = {"rsum": "sum of mean recalls", "mrv": "MRV (lower is better)", "skipped_images": "images left out"}
NO_MATPLOTLIB = 'There is no plot: matplotlib is not installed (`pip install "ccrk[train]"` brings it).'

History = list[dict[str, Any]]


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that at any time there is the old one or the new one, whole.

    Raises:
        OSError: if it cannot be written; nothing is left of the attempt.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def log_lines(history: History) -> str:
    """The log as JSON Lines; numbers that are not finite become null, which JSON can hold."""

    def clean(value):
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return "".join(json.dumps({key: clean(value) for key, value in entry.items()}) + "\n" for entry in history)


def best_evaluation(history: History, metric: str | None, greater: bool | None) -> tuple[int, float] | None:
    """Step and value of the best evaluation by a metric, the first of equal ones; None if there is none."""
    if metric is None:
        return None
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    found = [(entry["step"], entry[name]) for entry in history if name in entry and math.isfinite(entry[name])]
    if not found:
        return None
    return min(found, key=lambda pair: -pair[1] if greater in (True, None) else pair[1])


def evaluation_tables(history: History, step: int) -> str:
    """Recall by language in percent, and the figures over all languages, of the evaluations at a step."""
    recalls: dict[str, dict[str, dict[str, float]]] = {}
    totals: dict[str, dict[str, float]] = {}
    for entry in history:
        for key, value in entry.items() if entry["step"] == step else ():
            if match := RECALL.fullmatch(key):
                of_set = recalls.setdefault(match["set"] or "", {})
                of_set.setdefault(match["tag"], {})[match["figure"]] = value
            elif match := TOTAL.fullmatch(key):
                totals.setdefault(match["set"] or "", {})[match["figure"]] = value
    lines: list[str] = []
    for name, by_language in recalls.items():
        columns = list(next(iter(by_language.values())))
        tags = sorted(by_language, key=lambda tag: (tag in ("mean", "worst"), tag))
        lines += [f"{name}:", ""] if name else []
        lines += ["| language | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
        for tag in tags:
            cells = (f"{100 * by_language[tag].get(column, math.nan):.1f}" for column in columns)
            lines.append(f"| {tag} | " + " | ".join(cells) + " |")
        words = [f"{TOTALS[key]} {value:.4g}" for key, value in totals.get(name, {}).items()]
        lines += ["", "Recall in percent" + "".join(f"; {word}" for word in words) + ".", ""]
    return "\n".join(lines)


def plot_history(history: History, best_step: int | None = None) -> bytes:
    """A PNG of losses, learning rate, temperature, recalls and MRV over the steps; panels without data are left out.

    Args:
        history: entries of the log, each with its `step`.
        best_step: marked by a line.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(key for entry in history for key in entry))
    means = [name for name in names if re.fullmatch(r"eval_.*@\d+_(mean|worst)", name)]
    panels = [
        ("losses", [name for name in names if name == "loss" or name.startswith("loss_")]),
        ("learning rate", [name for name in names if name == "learning_rate"]),
        ("temperature", [name for name in names if name == "temperature"]),
        ("text to image", [name for name in means if "ir@" in name]),
        ("image to text", [name for name in means if "tr@" in name]),
        ("MRV, lower is better", [name for name in names if re.fullmatch(r"eval_(.+_)?mrv", name)]),
    ]
    panels = [(title, keys) for title, keys in panels if keys] or [("nothing was logged", [])]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 3.2 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, (title, keys) in enumerate(panels):
        axes = figure.add_subplot(rows, min(2, len(panels)), place + 1)
        for key in keys:
            points = [(entry["step"], entry[key]) for entry in history if key in entry]
            pair = sorted({name.removesuffix("_worst").removesuffix("_mean") for name in keys})
            # mean and worst of a figure share their colour
            style = {"color": f"C{pair.index(key.removesuffix('_worst').removesuffix('_mean'))}"}
            style |= {"linestyle": "--" if key.endswith("_worst") else "-", "marker": "." if len(points) < 40 else ""}
            axes.plot(*zip(*points, strict=True), label=key, linewidth=1.2, **style)
        if best_step is not None:
            axes.axvline(best_step, color="grey", linestyle=":", label=f"best, step {best_step}")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if keys:
            axes.legend(fontsize="x-small", framealpha=0.6)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def objectives(config) -> str:
    """What a model is trained for, with weights, from its configuration."""
    parts = []
    if getattr(config, "contrastive_weight", 0):
        parts.append(f"contrastive `{config.contrastive_variant}` (weight {config.contrastive_weight:g})")
    for name, words in (("matching_weight", "image-text matching"), ("mlm_weight", "masked language")):
        if getattr(config, name, 0):
            parts.append(f"{words} (weight {getattr(config, name):g})")
    return ", ".join(parts) or "none"


def describe_data(dataset) -> tuple[str, dict[str, int]]:
    """A line about a data set, and cause -> number of what it left out, from what it says of itself."""
    while hasattr(dataset, "dataset"):  # cached or otherwise wrapped rows
        dataset = dataset.dataset
    if hasattr(dataset, "describe"):
        text = str(dataset.describe())
    else:
        text = f"{len(dataset)} rows" if hasattr(dataset, "__len__") else type(dataset).__name__
    skipped = getattr(dataset, "skipped", None)
    return text, dict(skipped) if isinstance(skipped, Mapping) else {}


def _peak_rss_mib() -> float:
    """Highest resident memory of this process; 0 where the system does not say."""
    try:
        # on Linux not by getrusage, which may tell the peak of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        if match := re.search(r"VmHWM:\s+(\d+) kB", status):
            return int(match[1]) / 2**10
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    return sum(os.times()[:4])


class TrainingSummaryCallback(TrainerCallback, ExportableState):
    """Writes `training_summary.md`, `training_curves.png` and `training_log.jsonl` into `output_dir` at the end.

    Everything comes from the trainer's log, which checkpoints hold, so a resumed run is summed up whole; time, too,
    is added up over its parts. Process 0 alone writes. What cannot be written is a warning, never an error: it must
    not cost the model that has just been trained.

    Args:
        data: a line about the training data; by default what the data set's `describe()` says, or its length.
        skipped: cause -> number of records left out; by default the data set's `skipped`. It is read at the end, so
            that it may count during the training.
    """

    def __init__(self, data: str | None = None, skipped: Mapping[str, int] | None = None):
        self.data = data
        self.skipped = skipped
        self.spent = {"wall_s": 0.0, "cpu_s": 0.0, "peak_rss_mib": 0.0}
        self._began: tuple[float, float] | None = None

    def _spent_now(self) -> dict[str, float]:
        if self._began is None:
            return dict(self.spent)
        return {
            "wall_s": self.spent["wall_s"] + time.monotonic() - self._began[0],
            "cpu_s": self.spent["cpu_s"] + _cpu_seconds() - self._began[1],
            "peak_rss_mib": max(self.spent["peak_rss_mib"], _peak_rss_mib()),
        }

    def state(self) -> dict:
        """What checkpoints keep: the cost so far."""
        skipped = None if self.skipped is None else {str(cause): int(n) for cause, n in self.skipped.items()}
        return {"args": {"data": self.data, "skipped": skipped}, "attributes": {"spent": self._spent_now()}}

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clocks; a resumed run goes on from the cost that its checkpoint tells."""
        self._began, self.spent = None, dict.fromkeys(self.spent, 0.0)
        kept = state.stateful_callbacks.get(type(self).__name__)
        if state.global_step and isinstance(kept, dict):
            self.spent |= kept.get("attributes", {}).get("spent", {})
        # a checkpoint from before this callback was there lacks its entry, and saving the next one needs it
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        self._began = time.monotonic(), _cpu_seconds()

    def on_train_end(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        """Writes the three files."""
        spent = self.spent = self._spent_now()
        self._began = None
        if not state.is_world_process_zero:
            return
        best = best_evaluation(state.log_history, args.metric_for_best_model, args.greater_is_better)
        folder = Path(args.output_dir)
        self._try(folder / LOG, lambda: log_lines(state.log_history).encode())
        picture = self._try(folder / CURVES, lambda: plot_history(state.log_history, best and best[0]))
        self._try(
            folder / SUMMARY,
            lambda: self._text(args, state, model, train_dataloader, spent, best, picture).encode(),
        )

    @staticmethod
    def _try(path: Path, make: Callable[[], bytes]) -> str:
        """Writes a file; returns what is to be said of it if that fails."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, make())
        except Exception as error:  # whatever it is, the trained model comes first
            if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "matplotlib":
                logger.warning("'%s' was not written: matplotlib is not installed", path)
                return NO_MATPLOTLIB
            logger.warning("'%s' was not written: %s: %s", path, type(error).__name__, error)
            return f"There is no plot: {type(error).__name__}: {error}"
        return ""

    def _text(self, args, state, model, train_dataloader, spent, best, picture: str) -> str:
        told, skipped = describe_data(getattr(train_dataloader, "dataset", ()))
        skipped = skipped if self.skipped is None else self.skipped
        rows = [
            *_model_rows(model),
            ("data", self.data or told),
            ("left out", ", ".join(f"{n} x {cause}" for cause, n in sorted(skipped.items())) or "nothing counted"),
            *_run_rows(args, state),
            ("time", _time(args, spent)),
            ("peak resident memory", f"{spent['peak_rss_mib']:.0f} MiB" if spent["peak_rss_mib"] else "not known"),
            ("best checkpoint", _best(args, state, best)),
        ]
        if torch.cuda.is_available():
            rows.insert(-1, ("peak device memory", f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"))
        lines = ["# Training summary", "", "| | |", "| --- | --- |"]
        lines += [f"| {name} | {str(value).replace('|', '/')} |" for name, value in rows]
        lines += _evaluations(state.log_history, best)
        lines += ["", "## Curves", "", picture or f"![losses, rates and figures over the steps]({CURVES})"]
        return "\n".join([*lines, "", f"Every logged number: `{LOG}`.", ""])


def _model_rows(model) -> Iterable[tuple[str, str]]:
    if model is None:
        return
    total, trained = 0, 0
    for parameter in model.parameters():
        total += parameter.numel()
        trained += parameter.numel() * parameter.requires_grad
    yield "model", f"{type(model).__name__}, {total:,} parameters, {trained:,} of them trained"
    yield "objectives", objectives(model.config)


def _run_rows(args, state) -> Iterable[tuple[str, str]]:
    early = f" of {state.max_steps}, stopped before the end" if state.global_step < state.max_steps else ""
    yield "steps", f"{state.global_step}{early} ({state.epoch:.3g} epochs)"
    batch = f"{args.per_device_train_batch_size} images"
    for number, word in ((args.world_size, "processes"), (args.gradient_accumulation_steps, "accumulated")):
        batch += f" x {number} {word}" if number > 1 else ""
    yield "batch", batch
    yield "learning rate", f"{args.learning_rate:g}, seed {args.seed}"
    yield "precision", "bfloat16 autocast" if args.bf16 else "float16 autocast" if args.fp16 else "float32"


def _time(args, spent: dict[str, float]) -> str:
    own = f" (process 0 of {args.world_size})" if args.world_size > 1 else ""
    return f"{spent['wall_s']:.1f} s wall, {spent['cpu_s']:.1f} s processor{own}, evaluations included"


def _best(args, state, best: tuple[int, float] | None) -> str:
    if args.metric_for_best_model is None:
        return "no metric was named to choose one by"
    name = args.metric_for_best_model
    if best is None:
        return f"`{name}` was never evaluated"
    order = "lower" if args.greater_is_better is False else "higher"
    text = f"step {best[0]} by `{name}` = {best[1]:.6g} ({order} is better)"
    if state.best_model_checkpoint is None:
        return text + "; no checkpoint was kept"
    loaded = ", loaded at the end" if args.load_best_model_at_end else ""
    return f"`{Path(state.best_model_checkpoint).name}`: {text}{loaded}"


def _evaluations(history: History, best: tuple[int, float] | None) -> list[str]:
    steps = [entry["step"] for entry in history if any(RECALL.fullmatch(key) for key in entry)]
    if not steps:
        return ["", "There was no evaluation."]
    shown = {"Best evaluation": best[0]} if best is not None else {}
    if best is not None and best[0] == steps[-1]:
        shown = {"Best evaluation, which is the last": best[0]}
    else:
        shown["Last evaluation"] = steps[-1]
    lines = []
    for title, step in shown.items():
        lines += ["", f"## {title} (step {step})", "", evaluation_tables(history, step).rstrip()]
    return lines
