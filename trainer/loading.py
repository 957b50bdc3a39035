"""How the trainer reads data sets of all kinds: indexed or streamed, of `datasets` or of one's own."""

from __future__ import annotations

from collections import Counter

from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils import worker as worker_state


class EpochLoader(DataLoader):
    """A DataLoader whose batch sampler is told the epoch, as the Trainer of transformers tells its loaders."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that is read next."""
        self.batch_sampler.set_epoch(epoch)


class IterableRecords:
    """Rows of any iterable data set as `BatchStream` reads them."""

    def __init__(self, dataset):
        self.dataset = dataset

    def records(self, epoch: int):
        """The rows of an epoch: all of them in every worker, which take their batches from what they have read."""
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)
        rows = iter(self.dataset)
        while True:
            # data sets that see that they are in a worker deal out their rows, and each worker would have some only
            worker, worker_state._worker_info = worker_state._worker_info, None
            try:
                row = next(rows, None)
            finally:
                worker_state._worker_info = worker
            if row is None:
                return
            yield row


def is_stream(dataset) -> bool:
    """Whether a data set can only be read from its beginning."""
    return isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__")


def undecoded(dataset):
    """A data set with its photos left as bytes or paths where it would decode them, as those of `datasets` do.

    A broken photo is then no error of the reader's.
    """
    features = getattr(dataset, "features", None)
    for column, feature in dict(features).items() if hasattr(features, "items") else ():
        if type(feature).__name__ == "Image" and feature.decode and hasattr(dataset, "cast_column"):
            dataset = dataset.cast_column(column, type(feature)(decode=False))
    return dataset


def language_counts(dataset) -> dict[str, int]:
    """Captions in each language.

    Raises:
        ValueError: for a stream, which cannot be counted beforehand.
    """
    if dataset is None or is_stream(dataset):
        raise ValueError("language_sampling='balanced' counts captions first, which a stream does not allow")
    column = dataset["captions"] if hasattr(dataset, "column_names") else (row["captions"] for row in dataset)
    return Counter(caption["language"] for captions in column for caption in captions or [])
