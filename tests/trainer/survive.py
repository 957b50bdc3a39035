"""A small training that a test kills again and again: `python survive.py CORPUS OUT SETTING`, or by torchrun.

Several pairs of OUT and SETTING run one after the other. Every start goes on from the last whole checkpoint in OUT.
Where the run ends, `final.safetensors` holds all weights, the optimizer's state and the generator of torch;
`steps.txt` gets a line for each step that was taken, by any start.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

ROWS = 26
# name -> processes, whether a stream, arguments of the trainer
SETTINGS = {
    "map": (1, False, {"dataloader_num_workers": 2, "per_device_train_batch_size": 6}),
    "stream": (1, True, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3}),
    "map-unkeyed": (1, False, {"keyed_draws": False, "mini_batch_size": 2, "per_device_train_batch_size": 6}),
    "stream-unkeyed": (1, True, {"keyed_draws": False, "per_device_train_batch_size": 6}),
    "map-two": (2, False, {"mini_batch_size": 2, "per_device_train_batch_size": 3}),
    "stream-two": (2, True, {"dataloader_num_workers": 1, "per_device_train_batch_size": 3}),
}


def write_corpus(folder: Path) -> Path:
    """Photos and three files of JSON lines; one photo is no photo, so that something is left out in each epoch."""
    import tiny

    (folder / "photos").mkdir(parents=True)
    lines = []
    for row in tiny.make_rows(ROWS):
        path = folder / "photos" / f"{row['image_id']}.png"
        row["image"].save(path)
        if row["image_id"] == "photo4":
            path.write_text("not a photo")
        record = {"image": f"photos/{path.name}", "id": row["image_id"], "captions": row["captions"]}
        lines.append(json.dumps(record))
    for part in range(3):
        (folder / f"part{part}.jsonl").write_text("\n".join(lines[part::3]) + "\n")
    return folder


def run(out: Path, setting: str, corpus: Path) -> None:
    """Trains to the end, from wherever the last whole checkpoint is."""
    import tiny
    from safetensors.torch import save_file
    from transformers import TrainerCallback

    from ccrk import CCRkTrainer, CCRkTrainingArguments
    from ccrk.data.corpora import read_corpus, stream_corpus
    from ccrk.data.rows import join_corpora

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if args.process_index == 0:
                with (out / "steps.txt").open("a") as file:
                    file.write(f"{state.global_step}\n")

    _, stream, options = SETTINGS[setting]
    processor = tiny.make_processor()
    model = tiny.make_model(
        processor,
        model_args={"drop_path_rate": 0.3},
        text={"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2},
        projection_dropout=0.2,
    )
    args = CCRkTrainingArguments(
        str(out),
        max_steps=22,  # four epochs and a part: 26 rows are five batches of six
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        warmup_steps=3,
        logging_steps=3,
        save_steps=2,
        save_total_limit=3,
        augmentation="finetune",
        seed=5,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    if stream:
        dataset = stream_corpus(corpus, format="ccrk", seed=1, buffer_size=7)
    else:
        dataset = join_corpora(*(read_corpus(corpus / f"part{part}.jsonl") for part in range(3)))
    trainer = CCRkTrainer(
        model=model, args=args, train_dataset=dataset, processing_class=processor, callbacks=[Steps()]
    )
    trainer.train(resume_from_checkpoint="auto")
    total = trainer.all_skipped()
    if trainer.is_world_process_zero():
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for number, state in trainer.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
        tensors["generator"] = torch.get_rng_state()
        tensors["rate"] = torch.tensor(trainer.lr_scheduler.get_last_lr())
        tensors |= {f"skipped.{cause}": torch.tensor(count) for cause, count in total.items()}
        tensors["epoch"] = torch.tensor(float(trainer.state.epoch))
        save_file({name: value.clone().contiguous() for name, value in tensors.items()}, out / "final.tmp")
        os.replace(out / "final.tmp", out / "final.safetensors")


# --- what a test does with it ---------------------------------------------------------------------------------------


def command(corpus: Path, *runs: tuple[Path, str]) -> list[str]:
    """How trainings of settings are started; of those in one command all take the same number of processes."""
    (processes,) = {SETTINGS[setting][0] for _, setting in runs}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    script = [str(Path(__file__)), str(corpus), *(str(part) for pair in runs for part in pair)]
    return [sys.executable, "-P", *(launcher if processes > 1 else []), *script]


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL for a process and all below it: launcher, trainings, workers."""
    members = family(process.pid)
    for pid in members:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
    gone = time.monotonic() + 20  # until none can write any more
    while any(_alive(pid) for pid in members) and time.monotonic() < gone:
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def steps_taken(out: Path) -> list[int]:
    """Steps that were taken by all starts, in their order."""
    path = out / "steps.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def train_killed(out: Path, setting: str, corpus: Path, kills: int, seed: int) -> list[str]:
    """Starts a training `kills` times, and kills it each time; returns when that was.

    Moments are random: some time after a random number of steps, and in every second start while a checkpoint is
    being written, or has just got its name.
    """
    draw = random.Random(seed)
    moments = []
    out.mkdir(parents=True, exist_ok=True)
    for number in range(kills):
        kind = ("step", "writing")[number % 2]
        before = len(steps_taken(out))
        wanted, delay = before + draw.randint(2, 5), draw.uniform(0, 0.08)
        with (out / "log.txt").open("a") as log:
            process = subprocess.Popen(command(corpus, (out, setting)), stdout=log, stderr=log, env=environment())
        end = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < end:
            if len(steps_taken(out)) >= wanted and (kind == "step" or (out / "incomplete").exists()):
                time.sleep(delay / (1 if kind == "step" else 4))
                break
            time.sleep(0.0005)
        if process.poll() is not None:
            raise RuntimeError(f"the training ended before kill {number + 1}: {(out / 'log.txt').read_text()[-3000:]}")
        kill_all(process)
        left = sorted(path.name for path in out.glob("incomplete/*"))
        step = steps_taken(out)[-1]
        saved = sorted(int(path.name.split("-")[1]) for path in out.glob("checkpoint-*"))
        moments.append(f"{kind}: after step {step}, checkpoints {saved}, being written {left}")
    return moments


def finish(corpus: Path, *runs: tuple[Path, str]) -> None:
    """Trains to the end."""
    for out, _ in runs:
        out.mkdir(parents=True, exist_ok=True)
    options = {"capture_output": True, "text": True, "env": environment(), "timeout": 300}
    done = subprocess.run(command(corpus, *runs), **options)
    if done.returncode:
        raise RuntimeError(done.stderr[-4000:])


def environment() -> dict[str, str]:
    """One thread in each process."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for folder, name in zip(sys.argv[2::2], sys.argv[3::2], strict=True):
        run(Path(folder), name, Path(sys.argv[1]))
