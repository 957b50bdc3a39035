"""Indexes a folder in a process of its own, so that it can be killed: `kill_index.py MODEL FOLDER URI STATES LOG`.

Every write is acknowledged by a line in LOG once `upsert` has returned: what stands there must never be lost.
"""

from __future__ import annotations

import os
import sys

import torch

MODEL, FOLDER, URI, STATES, LOG = sys.argv[1:]

torch.set_num_threads(1)
from ccrk.pipelines import gallery_update  # noqa: E402
from ccrk.pipelines.index_run import IndexOptions, run_index  # noqa: E402
from ccrk.pipelines.lance_index import LanceIndex  # noqa: E402

gallery_update.WRITE_ROWS = 8
upsert = LanceIndex.upsert


def upsert_and_tell(index, ids, *args):
    upsert(index, ids, *args)
    with open(LOG, "a") as log:
        log.write("".join(f"{i}\n" for i in ids))
        log.flush()
        os.fsync(log.fileno())


LanceIndex.upsert = upsert_and_tell
print("ready", flush=True)
run_index(IndexOptions(FOLDER, MODEL, URI, batch_size=4, states=STATES, progress=False))
print("done", flush=True)
