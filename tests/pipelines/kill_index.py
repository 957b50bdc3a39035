"""Indexes a folder again and again in processes that can be killed: `kill_index.py MODEL FOLDER`.

For each line `URI<tab>STATES<tab>LOG` on stdin a child is forked, which costs no import of torch. It says "ready" when
it begins, and "done" at its end; then follows "exit" and how it ended. Every write is acknowledged by a line in LOG
once `upsert` has returned: what stands there must never be lost.
"""

from __future__ import annotations

import os
import sys
import traceback

import torch

torch.set_num_threads(1)
import ccrk.modeling_ccrk  # noqa: E402, F401
from ccrk.pipelines import gallery_update  # noqa: E402
from ccrk.pipelines.index_run import IndexOptions, run_index  # noqa: E402

MODEL, FOLDER = sys.argv[1:]
gallery_update.WRITE_ROWS = 8


def tell(words: str) -> None:
    os.write(1, f"{words}\n".encode())


def index(uri: str, states: str, log: str) -> None:
    from ccrk.pipelines.lance_index import LanceIndex  # its library starts threads, which do not survive a fork

    upsert = LanceIndex.upsert

    def upsert_and_tell(self, ids, *args):
        upsert(self, ids, *args)
        with open(log, "a") as file:
            file.write("".join(f"{i}\n" for i in ids))
            file.flush()
            os.fsync(file.fileno())

    LanceIndex.upsert = upsert_and_tell
    tell(f"ready {os.getpid()}")
    run_index(IndexOptions(FOLDER, MODEL, uri, batch_size=4, states=states, progress=False))
    tell("done")


for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            index(*line.rstrip("\n").split("\t"))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    tell(f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")
