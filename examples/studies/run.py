"""Runs a study, or goes on with it, and writes its table and plot.

    python examples/studies/run.py 1 --data flickr8k/ --towers towers/
    python examples/studies/run.py all --jobs 2 --data flickr8k/ --towers towers/
    python examples/studies/run.py 1 --seeds 5 6 --data flickr8k/ --towers towers/
    python examples/studies/run.py all --read

Runs that are in the study's `results.jsonl`, or in that of another study, are not run again; so a study that was
interrupted goes on, and more seeds add to it. `--read` trains nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from plan import HERE, Study, load_study, study_names


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="number or name of a study, or 'all'")
    parser.add_argument("--seeds", type=int, nargs="+", help="in the place of those that the study names")
    parser.add_argument("--part", help="only the part of this name")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, each on one thread (default: 1)")
    parser.add_argument("--data", type=Path, default=Path("flickr8k"), help="folder of train.jsonl and its photos")
    parser.add_argument("--towers", type=Path, default=Path("towers"), help="folder of the pretrained towers")
    parser.add_argument("--work", type=Path, default=Path("studies_output"), help="where features of photos are kept")
    parser.add_argument("--read", action="store_true", help="train nothing; write table and plot of what is there")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    return parser.parse_args(words)


def missing(study: Study, args: argparse.Namespace) -> list[tuple[str, dict, int, str]]:
    """Bed, settings, seed and label of every run that has no result yet, seeds first; others' runs are taken over."""
    from runs import Results, key_of

    if args.part is not None and args.part not in {part.name for part in study.parts}:
        names = ", ".join(f"'{part.name}'" for part in study.parts)
        raise ValueError(f"{study.name} has no part '{args.part}'; it has {names}")
    own, wanted = Results(study.folder / "results.jsonl"), []
    there = own.read()
    others = {key: r for name in study_names() for key, r in Results(HERE / name / "results.jsonl").read().items()}
    parts = [part for part in study.parts if args.part in (None, part.name)]
    seeds = sorted({seed for part in parts for seed in (args.seeds or part.seeds)})
    for seed in seeds:  # seeds first: a study that is cut short has every cell
        for part in parts:
            for cell in part.cells() if seed in (args.seeds or part.seeds) else ():
                settings = part.settings(cell)
                key = key_of(part.bed, settings, seed)
                if key in there:
                    continue
                if key in others and not args.dry_run:
                    own.add(others[key])
                else:
                    wanted.append((part.bed, settings, seed, key, f"{part.name}: {', '.join(cell)}, seed {seed}"))
                there[key] = {}
    return wanted


def _end_with_parent() -> None:
    """A worker whose parent was killed would work on for nobody, and take the cores from the run that goes on."""

    def watch() -> None:
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(bed: str, settings: dict, seed: int, folders) -> dict:
    import torch
    from runs import train_and_measure
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    return train_and_measure(bed, settings, seed, folders)


def prepare(folders) -> None:
    """Features of all photos, before several processes want them."""
    from photos import PhotoSettings
    from runs import photo_bed

    bed = photo_bed(folders)
    bed.cache(bed.model(PhotoSettings()))


def run_missing(study: Study, args: argparse.Namespace) -> int:
    """Runs what is missing, `--jobs` at once; returns how many runs failed."""
    from runs import Folders, Results
    from tqdm.auto import tqdm

    wanted, results = missing(study, args), Results(study.folder / "results.jsonl")
    print(f"{study.name}: {len(wanted)} runs to do", flush=True)
    if args.dry_run:
        print("\n".join(f"  {label}" for *_, label in wanted))
        return 0
    folders, failed = Folders(args.data, args.towers, args.work), 0
    if any(bed == "photos" for bed, *_ in wanted):
        prepare(folders)
    os.environ |= {"OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context, initializer=_end_with_parent) as pool:
        jobs = {pool.submit(_run, bed, settings, seed, folders): label for bed, settings, seed, _, label in wanted}
        for job in tqdm(as_completed(jobs), total=len(jobs), desc=study.name):
            try:
                record = job.result()
            except Exception as error:  # the others are worth having
                failed += 1
                tqdm.write(f"{jobs[job]} failed: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            results.add(record)
            seconds = record["cpu_seconds"]["all"]
            tqdm.write(f"{time.strftime('%H:%M:%S')} {jobs[job]}: {seconds:.0f} seconds of processor time")
    return failed


def main(words: list[str] | None = None) -> int:
    """Runs the studies that are asked for."""
    args = arguments(words)
    names, failed = study_names() if args.study == "all" else [args.study], 0
    for name in names:
        try:
            study = load_study(name)
            failed += 0 if args.read else run_missing(study, args)
        except (ValueError, OSError) as error:
            print(f"run.py: {error}", file=sys.stderr)
            return 2
        if not args.dry_run:
            from read import write

            write(study)
    if not args.dry_run:
        from read import write

        write(load_study("9"))  # it reads the results of all others
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
