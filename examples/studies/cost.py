"""What a step costs in each way of study 1, as ratios of processor time: from it come the steps of equal cost.

    python examples/studies/cost.py --data flickr8k/ --towers towers/

Short trainings of the two ways take turns on one thread, so that whatever else the machine does falls on both.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from plan import load_study, merged
from runs import Folders, train_and_measure
from transformers.utils import logging


def seconds(bed: str, settings: dict, steps: int, folders: Folders) -> float:
    """Processor time of a short training."""
    settings = merged(settings, {"bed": {"asked": 10}, "train": {"max_steps": steps}})
    return train_and_measure(bed, settings, 0, folders)["cpu_seconds"]["training"]


def main() -> None:
    """Prints the ratio of 1-to-K to one-to-one for each part that compares the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("flickr8k"), help="folder of train.jsonl and its photos")
    parser.add_argument("--towers", type=Path, default=Path("towers"), help="folder of the pretrained towers")
    parser.add_argument("--work", type=Path, default=Path("studies_output"), help="where features of photos are kept")
    parser.add_argument("--steps", type=int, default=40, help="of each short training (default: 40)")
    parser.add_argument("--turns", type=int, default=3, help="of each way (default: 3)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    folders = Folders(args.data, args.towers, args.work)
    for part in load_study("1").parts:
        if "processor time" not in part.name:
            continue
        first, second = (part.settings(cell) for cell in part.cells())
        pairs = [[seconds(part.bed, one, args.steps, folders) for one in (first, second)] for _ in range(args.turns)]
        ratios = [b / a for a, b in pairs[1:] or pairs]  # the first turn warms up
        print(f"{part.name}: a step of 1-to-K costs {statistics.median(ratios):.2f} of one of one-to-one", flush=True)


if __name__ == "__main__":
    main()
