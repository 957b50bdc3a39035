"""`ccrk serve` under load: many clients at once, with batches and without.

    python benchmarks/serving.py
    python benchmarks/serving.py --photos PHOTOS --queries queries.txt --model MODEL
    python benchmarks/serving.py --photos PHOTOS --queries queries.txt --image-tower I --text-tower T

Indexes a folder of photos, then for each variant starts `ccrk serve` as a process of its own and lets clients in this
one ask over loopback for a while: eight of ten requests search by a text of the file (a line each), one by a photo,
one for more like an item. Printed for each variant: requests a second, median and 99th percentile of the time to an
answer, answers that were no success, CPU time of the service for a request, and its memory (MiB, after a warm-up and
each quarter of the time).

Clients and service share the processor. With towers in the place of a model the heads are random: the answers then
mean nothing, and cost what those of a trained model of this size cost. Without options 200 photos are drawn and the
model is the tiny one of the tests, which shows that all works and what the service costs beside its model.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2
import torch

spec = importlib.util.spec_from_file_location("tiny", Path(__file__).parents[1] / "tests" / "pipelines" / "tiny.py")
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)

VARIANTS = {"batches of up to 32": [], "no batches": ["--max-batch", "1"]}
WARM_UP = 5.0  # seconds
SAMPLE_EVERY = 2.0  # seconds
CCRK = [sys.executable, "-P", "-m", "ccrk.cli.main"]


def build_model(folder: Path, image: str, text: str) -> Path:
    """Saves a model of pretrained towers with random heads."""
    from ccrk import CCRkImageProcessor, CCRkModel, CCRkProcessor

    torch.manual_seed(0)
    model = CCRkModel.from_towers(image=image, text=text, projection_dim=256)
    from transformers import AutoTokenizer

    processor = CCRkProcessor(CCRkImageProcessor.from_tower(image), AutoTokenizer.from_pretrained(text))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def draw(folder: Path) -> Path:
    """Writes photos of coloured blocks."""
    folder.mkdir(exist_ok=True)
    for number, photo in enumerate(tiny.build_photos(12) * 17):
        photo.resize((320, 240)).save(folder / f"{number:03d}.jpg")
    return folder


def build_tiny_model(folder: Path) -> Path:
    """Saves the model of the tests."""
    processor = tiny.build_processor()
    tiny.build_model(len(processor.tokenizer)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


class Service:
    """`ccrk serve` in a process of its own."""

    def __init__(self, model: str, gallery: str, words: list[str], threads: int, log: Path):
        self.log = log.open("w")
        command = [*CCRK, "serve", model, gallery, "--port", "0", "--threads", str(threads), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log, env=environment)
        while not (found := re.search(r"running on (http://[\d.:]+)", log.read_text())):
            if self.process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.2)
        self.url = found[1]

    def memory(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024

    def cpu(self) -> float:
        """CPU seconds taken so far; other work on the machine hardly moves them."""
        parts = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        """Ends it and waits for that."""
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


async def ask(client, generator, queries: list[str], photos: list[Path], ids: list[str]) -> tuple[str, bool]:
    """One request: its kind, and whether it succeeded."""
    draw = generator.random()
    if draw < 0.8:
        kind, answer = "text", await client.post("/search", json={"queries": generator.choice(queries), "k": 10})
    elif draw < 0.9:
        files = {"image": generator.choice(photos).read_bytes()}
        kind, answer = "photo", await client.post("/search/image", files=files, data={"k": "10"})
    else:
        kind, answer = "similar", await client.get(f"/similar/{generator.choice(ids)}")
    return kind, answer.status_code == 200


async def load(service: Service, args, queries: list[str], photos: list[Path], ids: list[str]) -> dict:
    """Lets all clients ask for the given time."""
    times: dict[str, list[float]] = {}
    memory: list[float] = []
    cpu: list[float] = []
    errors, begin = 0, time.perf_counter()
    start, end = begin + WARM_UP, begin + WARM_UP + args.seconds

    async def client_of(number: int) -> None:
        nonlocal errors
        generator = random.Random(number)
        async with httpx2.AsyncClient(base_url=service.url, timeout=60) as client:
            while (sent := time.perf_counter()) < end:
                kind, well = await ask(client, generator, queries, photos, ids)
                now = time.perf_counter()
                if sent >= start and now <= end:
                    times.setdefault(kind, []).append(now - sent)
                    errors += not well

    async def watch() -> None:
        await asyncio.sleep(WARM_UP)
        while time.perf_counter() < end:
            memory.append(service.memory())
            cpu.append(service.cpu())
            await asyncio.sleep(min(SAMPLE_EVERY, max(0.0, end - time.perf_counter())))
        cpu.append(service.cpu())

    await asyncio.gather(watch(), *(client_of(number) for number in range(args.clients)))
    everything = sorted(value for part in times.values() for value in part)
    result = {"requests": len(everything), "per_second": round(len(everything) / args.seconds, 1), "errors": errors}
    result["cpu_ms_per_request"] = round(1e3 * (cpu[-1] - cpu[0]) / len(everything), 1)
    for kind, values in {"all": everything, **times}.items():
        values = sorted(values)
        result[f"p50_ms_{kind}"] = round(1e3 * values[len(values) // 2], 1)
        result[f"p99_ms_{kind}"] = round(1e3 * values[int(len(values) * 0.99)], 1)
    quarters = [memory[part * (len(memory) - 1) // 4] for part in range(5)]
    return result | {"memory_mib": [round(value) for value in quarters], "memory_most_mib": round(max(memory))}


def batch_size(url: str) -> float:
    """Queries in a pass, on average."""
    text = httpx2.get(f"{url}/metrics").text
    total, count = (float(re.search(rf"ccrk_batch_queries_{name} (\S+)", text)[1]) for name in ("sum", "count"))
    return round(total / count, 2)


def main() -> int:
    """Runs all variants and prints a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", type=Path, help="folder of photos; the gallery")
    parser.add_argument("--queries", type=Path, help="text file, a query a line")
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--image-tower", help="in the place of a model: a timm model")
    parser.add_argument("--text-tower", help="in the place of a model: an encoder")
    parser.add_argument("--work", type=Path, help="folder for model and index, so that a second run finds them there")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--threads", type=int, default=1, help="of the service's model")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    args = parser.parse_args()
    queries = tiny.CAPTIONS
    if args.queries is not None:
        queries = [line for line in args.queries.read_text(encoding="utf-8").splitlines() if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        place = (args.work or Path(folder)).absolute()
        place.mkdir(parents=True, exist_ok=True)
        if args.image_tower and args.text_tower:
            model = str(build_model(place / "model", args.image_tower, args.text_tower))
        else:
            model = args.model or str(build_tiny_model(place / "model"))
        args.photos = args.photos or draw(place / "photos")
        gallery = f"lance://{place}/photos.lance"
        threads = ["--threads", str(args.threads)]
        subprocess.run([*CCRK, "index", str(args.photos), "--model", model, "--to", gallery, *threads], check=True)
        from ccrk.pipelines.indexes import open_index

        ids = [row["id"] for row in open_index(gallery).scan()]
        photos = [args.photos / name for name in ids]
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, ",
            end="",
        )
        print(f"{len(ids)} photos, {len(queries)} queries, {args.clients} clients, {args.seconds:g} s")
        for name in args.variants:
            service = Service(model, gallery, VARIANTS[name], args.threads, place / "log")
            try:
                result = asyncio.run(load(service, args, queries, photos, ids))
                print(json.dumps({"variant": name, **result, "batch": batch_size(service.url)}), flush=True)
            finally:
                service.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
