"""The model card of a training: written beside the weights, of what was measured on them."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from huggingface_hub import CommitOperationAdd, HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

import ccrk
from ccrk.hub_cards.cards import model_card, read_runs, weights_in
from ccrk.hub_cards.collecting import Entry, collect
from ccrk.hub_cards.model_card import CardOptions, adapter_class
from ccrk.hub_cards.publishing import PublishOptions, is_own_text, make_plan
from ccrk.hub_cards.runs import EVALUATION, TRAINING_RUN
from ccrk.trainer.run_facts import training_facts
from ccrk.trainer.summary import write_atomically

if TYPE_CHECKING:
    from transformers import Trainer as _Mixed  # what the mixin is mixed into
else:
    _Mixed = object

logger = logging.getLogger(__name__)


def versions_of_run() -> dict[str, str]:
    """What an evaluation's settings say of the packages."""
    return {"ccrk": ccrk.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def write_json(path: Path, content: Any) -> None:
    """Writes a run file, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def write_card(folder: str | os.PathLike, options: CardOptions, runs: Sequence[str | os.PathLike]) -> bool:
    """Writes the card of the model in a folder; what goes wrong is a warning, for the model is worth more than it.

    Args:
        folder: with the weights.
        options: of the card.
        runs: run files of these weights.

    Returns:
        Whether there is a card now.
    """
    if is_own_text(Path(folder)):
        logger.warning("'%s' was written by hand and stays; `ccrk publish --new-card` makes one of the runs", folder)
        return False
    try:
        model_card(options, read_runs(runs), weights_in(folder)).write(folder)
    except Exception as error:  # whatever it is: the model is there, and a card can be made later
        logger.warning(
            "there is no model card in '%s' (%s: %s); the model is complete, and `ccrk publish` makes a card of its "
            "run files",
            folder,
            type(error).__name__,
            error,
        )
        return False
    return True


class CardWriting(_Mixed):
    """What a [`CCRkTrainer`] knows of its weights' figures, and the card that it makes of them; a mixin.

    An evaluation counts for a card only if it was of the weights that the model has then: those of the last step, or
    of the best one where that was loaded.
    """

    push_in_progress: Any

    def _remember(self, report: Mapping[str, Any], name: str) -> None:
        """Keeps a report of `evaluate_retrieval` under the step and the name of the evaluation set."""
        self._reports[self._weights_step(), name] = report

    def _weights_step(self) -> int:
        return self.state.global_step if self._loaded_step is None else self._loaded_step

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.state.best_model_checkpoint is not None and self.state.best_global_step:
            self._loaded_step = self.state.best_global_step

    def reports_of_weights(self) -> list[dict[str, Any]]:
        """Reports of the weights as they are, with the settings that they were measured with."""
        settings = {
            "ties": "pessimistic",
            "rerank": self.args.eval_rerank,
            "bf16": bool(self.args.bf16 or self.args.bf16_full_eval),
            "step": self._weights_step(),
            **versions_of_run(),
        }
        here = {name: report for (step, name), report in self._reports.items() if step == self._weights_step()}
        several = len(here) > 1
        return [
            {"part": name or None if several or name else None, **report, "settings": settings}
            for name, report in here.items()
        ]

    def create_model_card(
        self,
        language: str | Sequence[str] | None = None,
        license: str | None = None,
        tags: str | Sequence[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: Any = None,
        dataset_tags: Any = None,
        dataset: str | Sequence[str] | None = None,
        dataset_args: Any = None,
    ) -> None:
        """Writes `training_run.json`, `evaluation.json` and the card of them into the output folder.

        `evaluation.json` is written where these weights were evaluated by `evaluate`; without that the card says that
        nothing was measured. What goes wrong is a warning.

        Args:
            language: tags for the metadata; by default those trained on or measured.
            license: identifier of the Hub.
            tags: further tags.
            model_name: heading of the card; the folder's name by default.
            finetuned_from: what the model was made from; by default what it was loaded from.
            tasks: unused; part of the interface.
            dataset_tags: Hub ids of the training data.
            dataset: unused; part of the interface.
            dataset_args: unused; part of the interface.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        options = CardOptions(
            name=model_name or folder.resolve().name,
            repo=self.hub_model_id if getattr(self, "hub_model_id", None) else self.args.hub_model_id,
            license=license,
            base_model=[finetuned_from] if finetuned_from else [],
            datasets=_list(dataset_tags),
            languages=_list(language),
            tags=_list(tags),
            adapter=adapter_class(folder),
        )
        try:
            runs = self._write_runs(folder)
        except Exception as error:  # as in `write_card`
            logger.warning("the run files of '%s' were not written: %s: %s", folder, type(error).__name__, error)
            return
        write_card(folder, options, runs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """Saves the model, writes its card, and puts what belongs to it on the Hub, in one commit.

        As `Trainer.push_to_hub`, but checkpoints, the arguments as a pickle, run files with captions, and paths of
        this machine stay here; see docs/publishing.md. The pipeline is added, so that the repository loads without
        the package.

        Args:
            commit_message: of the commit.
            blocking: wait until it is there.
            token: in the place of the one that is logged in.
            revision: branch; `args.hub_revision` by default.
            private: of a repository that is made.
            **kwargs: of `create_model_card`.

        Returns:
            What the Hub says of the commit, or its future; None in all processes but the first.

        Raises:
            OSError: if the Hub refuses.
            ValueError: if there is something that must not be published, naming it.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        kwargs.setdefault("model_name", self.hub_model_id.split("/")[-1])
        self.create_model_card(**kwargs)
        self._finish_current_push()
        options = PublishOptions(self.args.output_dir, self.hub_model_id)
        plan = make_plan(options, ccrk.CCRkRetrievalPipeline.files_beside)
        revision = revision if revision is not None else self.args.hub_revision
        return self._commit(plan.entries, commit_message or plan.message, token, revision, blocking)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Saves as `Trainer` does, and the pipeline's file: a checkpoint can be searched with, wherever it goes."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if self.args.should_save and (folder / "config.json").is_file():  # adapters have none
            for name, content in ccrk.CCRkRetrievalPipeline.files_beside(folder).items():
                (folder / name).write_bytes(content)

    def _commit(self, entries, message: str, token: str | None, revision: str | None, blocking: bool):
        if revision is not None:
            HfApi(token=token).create_branch(self.hub_model_id, branch=revision, exist_ok=True)
        operations = [CommitOperationAdd(entry.path, entry.source) for entry in entries]
        options: dict[str, Any] = {"commit_message": message, "revision": revision, "run_as_future": not blocking}
        return HfApi(token=token).create_commit(self.hub_model_id, operations, **options)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Puts the model of a checkpoint on the Hub, without the state of the training and without waiting.

        The strategies that ask for the checkpoints themselves (`checkpoint`, `all_checkpoints`) do what they do in
        transformers, which sends the whole output folder.
        """
        if self.args.hub_strategy != HubStrategy.EVERY_SAVE:
            super()._push_from_checkpoint(checkpoint_folder)
            return
        if self._writing or not self.is_world_process_zero():
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        entries = []
        for entry in collect(Path(checkpoint_folder), "model").entries.values():
            # sent from the output folder, for the checkpoint may be rotated away before it is there
            copy = Path(self.args.output_dir) / entry.path
            copy.write_bytes(entry.source) if isinstance(entry.source, bytes) else shutil.copy(entry.source, copy)
            entries.append(Entry(entry.path, copy))
        message = f"Training in progress, step {self.state.global_step}"
        job = self._commit(entries, message, self.args.hub_token, self.args.hub_revision, blocking=False)
        if running:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])

    def _write_runs(self, folder: Path) -> list[Path]:
        write_json(folder / TRAINING_RUN, training_facts(self))
        runs, reports = [folder / TRAINING_RUN], self.reports_of_weights()
        if reports:
            write_json(folder / EVALUATION, reports)
            runs.append(folder / EVALUATION)
        return runs


def _list(given: str | Sequence[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())
