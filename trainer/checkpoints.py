"""Checkpoints that can be trusted: which one is whole, how one comes to be, and what to do when the disk is full."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
FILES = "files.json"  # names and sizes of all other files of a checkpoint
SKIPPED = "skipped.json"
INCOMPLETE = "incomplete"  # folder in which checkpoints are written, and into which those that go are moved
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "pytorch_model_fsdp_0")
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EPERM)


def damage(folder: str | Path) -> list[str]:
    """What a checkpoint lacks: an empty list for one that is whole.

    Checkpoints of [`CCRkTrainer`] list their files; of others the state and the weights have to be there.
    """
    folder, found = Path(folder), []
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or "global_step" not in state:
            found.append(f"{STATE} holds no state")
    except (OSError, ValueError):
        found.append(f"{STATE} is missing or cut off")
    try:
        sizes = json.loads((folder / FILES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not any((folder / name).exists() for name in WEIGHTS):
            found.append("there are no weights")
        return found
    except (OSError, ValueError):
        return [*found, f"{FILES} is cut off"]
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != size:
            found.append(f"{name} has {path.stat().st_size} bytes instead of {size}")
    return found


def is_complete(folder: str | Path) -> bool:
    """Whether a checkpoint was written to its end, and nothing of it was lost since."""
    return not damage(folder)


def checkpoints_in(output_dir: str | Path) -> list[tuple[int, Path]]:
    """Step and folder of each checkpoint by its name, whole or not."""
    found = []
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
        if step and folder.is_dir():
            found.append((int(step[1]), folder))
    return sorted(found)


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The checkpoint of the most steps in a folder that is whole, or None.

    A process that was killed while saving may leave an incomplete one behind, which is passed over.
    """
    whole = (folder for _, folder in reversed(checkpoints_in(output_dir)) if is_complete(folder))
    return next(whole, None)


def finish(partial: Path, final: Path) -> None:
    """Gives a checkpoint that has been written its name: it appears as a whole, or not at all.

    Raises:
        OSError: if the disk does not take it.
    """
    sizes = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        _sync(path)
        sizes[path.relative_to(partial).as_posix()] = path.stat().st_size
    (partial / FILES).write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    _sync(partial / FILES)
    _sync(partial)
    discard(final)
    os.replace(partial, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    """Waits until a file is on the disk, so that it outlasts a power failure too, as far as the file system can."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


def discard(folder: Path) -> None:
    """Removes a checkpoint. It loses its name first, so that one half removed is never taken for a whole one."""
    if not folder.exists():
        return
    grave = folder.parent / INCOMPLETE
    grave.mkdir(exist_ok=True)
    moved = grave / f"{folder.name}-removed"
    shutil.rmtree(moved, ignore_errors=True)
    os.replace(folder, moved)
    shutil.rmtree(moved, ignore_errors=True)


def rotate(output_dir: Path, limit: int | None, protected: list[Path]) -> None:
    """Removes the oldest checkpoints until `limit` are left. Incomplete ones do not count and are left alone.

    Args:
        output_dir: their folder.
        limit: how many whole ones to keep; all without it.
        protected: those to keep in any case: the one just written, and the best.
    """
    if limit is None or limit <= 0:
        return
    whole = [folder for _, folder in checkpoints_in(output_dir) if is_complete(folder)]
    # by time: a checkpoint of more steps may be left from an earlier run
    whole.sort(key=lambda folder: (folder / STATE).stat().st_mtime_ns)
    names = {folder.name for folder in protected}
    free = [folder for folder in whole if folder.name not in names]
    surplus = len(whole) - max(limit, len(whole) - len(free))
    for folder in free[: max(0, surplus)]:
        discard(folder)


def is_disk_error(error: BaseException, folder: str | Path) -> bool:
    """Whether a failure to save is the disk's: full, over quota, or broken.

    Writers in other languages hand on no error number, so their messages and the free space have to tell.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return True
        message = r"no space left|disk quota|file too large|file write failed|unexpected pos|inline_container"
        if re.search(message, str(error), re.I):
            return True
        error = error.__cause__ or error.__context__
    free = free_space(folder)
    return free is not None and free < 2**20


def free_space(folder: str | Path) -> int | None:
    """Bytes that are free where a folder is or will be; None where it cannot be told."""
    folder = Path(folder).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def told(error: BaseException, folder: str | Path) -> str:
    """A disk's error with the free space beside it."""
    free = free_space(folder)
    return f"{error}" if free is None else f"{error}; {free / 1e6:,.1f} MB are free there"


class SafeCheckpoints:
    """Checkpoints of a `transformers.Trainer` that appear as a whole; a mixin that stands before it.

    A checkpoint is written into the folder `incomplete`, and renamed when all processes have written their part. What
    the disk has no room for is removed again, the training goes on, and all processes agree about it. Only whole
    checkpoints are gone on from, rotated, or loaded as the best.
    """

    _writing = False  # whether the Trainer is to take `incomplete` for its output folder

    def _get_output_dir(self, trial):
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, INCOMPLETE) if self._writing else folder

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self._writing:  # a push reads the folder in the background, so it waits until that has its name
            super()._push_from_checkpoint(checkpoint_folder)

    def checkpoint_to_resume(self, asked) -> str | None:
        """The folder that `train(resume_from_checkpoint=asked)` goes on from; all processes call it.

        Raises:
            ValueError: if there is no whole checkpoint and one must be there.
        """
        if asked is None or asked is False:
            return None
        if asked is True or asked == "auto":
            found = [last_complete_checkpoint(self.args.output_dir)]
            if self.exchange.world_size > 1:
                dist.broadcast_object_list(found, src=0)  # one process looks, lest two see different ones
            if found[0] is None and asked is True:
                raise ValueError(f"No valid checkpoint in '{self.args.output_dir}' to go on from: {self._broken()}")
            return None if found[0] is None else str(found[0])
        faults = damage(asked)
        # files that someone took away to save space are not needed, if it is this checkpoint that was asked for
        fatal = [fault for fault in faults if not fault.endswith(" is missing") or fault.split()[0] in WEIGHTS]
        if fatal:
            last = last_complete_checkpoint(Path(asked).parent)
            raise ValueError(
                f"the checkpoint '{asked}' is not whole: {'; '.join(fatal)}. "
                + (f"The last that is whole beside it is '{last}'" if last else "There is no whole one beside it")
            )
        if faults:
            logger.warning(f"the checkpoint '{asked}' lacks something ({'; '.join(faults)}): the run goes on without")
        return str(asked)

    def _broken(self) -> str:
        faults = [f"{path.name}: {', '.join(damage(path))}" for _, path in checkpoints_in(self.args.output_dir)]
        none = "there is none (resume_from_checkpoint='auto' begins a new run then)"
        return "none was written to its end (" + "; ".join(faults[-3:]) + ")" if faults else none

    def _save_checkpoint(self, model, trial) -> None:
        """Saves a checkpoint; one that the disk has no room for is removed, and the training goes on."""
        run = Path(self._get_output_dir(trial=trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        partial, final = run / INCOMPLETE / name, run / name
        skipped, best = self.all_skipped(), self._best_checkpoint(run, final)
        if self.args.should_save:
            shutil.rmtree(run / INCOMPLETE, ignore_errors=True)  # what a killed run has left
        if self.exchange.world_size > 1:
            dist.barrier()
        failure = self._attempt(partial, lambda: self._write(model, trial))
        if failure is None:
            failure = self._attempt(partial, lambda: self._finish(partial, final, skipped.to_dict(), best))
        if self.args.should_save:
            if failure is None:
                rotate(run, self.args.save_total_limit, [final, *([Path(best)] if best else [])])
            shutil.rmtree(run / INCOMPLETE, ignore_errors=True)
        if failure is not None:
            last = last_complete_checkpoint(run)
            logger.error(
                f"checkpoint {name} could not be saved in '{run}' ({failure}); the training goes on, and "
                + (f"{last.name} is the last that is whole" if last else "there is no other checkpoint yet")
            )
            return
        self.state.best_model_checkpoint = best
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _best_checkpoint(self, run: Path, final: Path) -> str | None:
        """The best checkpoint once `final` is there; one that is not whole is none."""
        step = self.state.best_global_step
        if not step:
            return self.state.best_model_checkpoint
        best = run / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        return str(best) if best == final or is_complete(best) else self.state.best_model_checkpoint

    def _write(self, model, trial) -> None:
        """What transformers writes, into `incomplete`."""
        best, self.state.best_global_step = self.state.best_global_step, None  # else processes wait for each other
        self._writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._writing, self.state.best_global_step = False, best

    def _finish(self, partial: Path, final: Path, skipped: dict, best: str | None) -> None:
        if not self.args.should_save:
            return
        (partial / SKIPPED).write_text(json.dumps(skipped), encoding="utf-8")
        before, self.state.best_model_checkpoint = self.state.best_model_checkpoint, best
        try:
            self.state.save_to_json(str(partial / STATE))  # once more: only now it is known which one is best
        finally:
            self.state.best_model_checkpoint = before
        finish(partial, final)

    def _attempt(self, folder: Path, action: Callable[[], None]) -> str | None:
        """Does something in all processes; what went wrong with a disk in any of them, or None.

        Raises:
            Exception: in all processes, if something else went wrong in one.
        """
        error = None
        try:
            action()
        except Exception as caught:
            error = caught
        found = [None if error is None else (told(error, folder), is_disk_error(error, folder))]
        if self.exchange.world_size > 1:
            own, found = found[0], [None] * self.exchange.world_size
            dist.all_gather_object(found, own)
        failed = [entry for entry in found if entry is not None]
        if not failed:
            return None
        if all(of_disk for _, of_disk in failed):
            return failed[0][0]
        raise error if error is not None else RuntimeError(f"another process could not save: {failed[0][0]}")

    def _load_best_model(self) -> None:
        """Loads the best checkpoint, if it is whole; else the weights stay those of the last step."""
        faults = damage(self.state.best_model_checkpoint)
        fatal = [fault for fault in faults if not fault.endswith(" is missing") or fault.split()[0] in WEIGHTS]
        if fatal:
            logger.error(
                f"the best checkpoint '{self.state.best_model_checkpoint}' is not whole ({'; '.join(fatal)}): the "
                "model keeps the weights of the last step"
            )
            self.state.best_model_checkpoint = None
            return
        super()._load_best_model()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the model, its configuration and its processor.

        Raises:
            OSError: if the disk is full; with the checkpoint that the work can be taken up from.
        """
        if self._writing:
            return super().save_model(output_dir, _internal_call)
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        try:
            return super().save_model(output_dir, _internal_call)
        except Exception as error:
            if not is_disk_error(error, folder):
                raise
            last = last_complete_checkpoint(self.args.output_dir)
            raise OSError(
                getattr(error, "errno", None) or errno.ENOSPC,
                f"the model could not be saved in '{folder}' ({told(error, folder)}). "
                + (f"The checkpoint '{last}' is whole. " if last else "")
                + "Free some space, or name a folder on another disk: trainer.save_model('...')",
            ) from error
