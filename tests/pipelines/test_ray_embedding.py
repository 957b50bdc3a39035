"""A cluster of two nodes on this machine: the same shards as one process makes, and a worker killed in mid-run."""

from __future__ import annotations

import os
import signal

import pytest

from ccrk.pipelines.embed_run import EmbedOptions, run_embed
from ccrk.pipelines.embedding import EmbeddingJob, SliceEmbedder, embed_corpus, embed_local
from ccrk.pipelines.gallery_sources import gallery_items
from ccrk.pipelines.loading import load_pipeline
from ccrk.pipelines.ray_embedding import embed_ray

TEXTS, SIZE = 1500, 15


@pytest.fixture(scope="module")
def saved(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(captions, tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.txt"
    words = " ".join(captions).split()
    lines = [" ".join(words[(i * 7 + j) % len(words)] for j in range(1 + i % 13)) + f" {i}" for i in range(TEXTS)]
    file.write_text("\n".join([*lines, "\x01"]), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def embed(saved, texts, tmp_path):
    # loaded as workers load it: weights that lie elsewhere in memory are multiplied in another order
    items, pipe = gallery_items(texts), load_pipeline(str(saved), threads=1, device="cpu")

    def run(to: str, way, size: int = SIZE):
        job = EmbeddingJob(str(tmp_path / to), items.modality, dict(items.columns))
        embedder = SliceEmbedder(job, pipe)
        return embed_corpus(items, job, embedder.fingerprint, size, lambda parts: way(parts, job, embedder))

    return run


@pytest.mark.slow
def test_two_nodes_and_a_killed_worker(cluster, embed, saved, tmp_path):
    reports, killed = [], []

    def done(report):
        reports.append(report)
        if len(reports) == 5:
            killed.append(int(report.process.split(":")[1]))
            os.kill(killed[0], signal.SIGKILL)

    def on_cluster(parts, job, embedder):
        return embed_ray(parts, job, str(saved), embedder.fingerprint, done)

    corpus, of_cluster = embed("cluster", on_cluster)
    assert len(of_cluster) == 101 and corpus.rows == TEXTS and len(corpus.skipped) == 1
    processes = {report.process for report in of_cluster}
    assert len({process.split(":")[0] for process in processes}) == 2  # both nodes took part
    assert len(processes) >= 3  # and one went on in the place of the killed one
    alone, _ = embed("alone", lambda parts, job, embedder: embed_local(parts, embedder, lambda report: None))
    assert corpus == alone
    for name in corpus.shards:  # to the bit
        ours, theirs = ((tmp_path / folder / f"{name}.parquet").read_bytes() for folder in ("cluster", "alone"))
        assert ours == theirs
    _, again = embed("alone", on_cluster)
    assert not any(report.computed for report in again)


@pytest.mark.slow
def test_workers_that_find_another_model_are_refused(cluster, embed, build_model, processor, tmp_path):
    build_model(seed=5).save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")

    def on_cluster(parts, job, embedder):
        other = str(tmp_path / "other")
        return embed_ray(parts, job, other, embedder.fingerprint, lambda report: None, workers=1)

    with pytest.raises(Exception, match="cannot be compared"):
        embed("refused", on_cluster, size=1000)
    assert not list((tmp_path / "refused").glob("*.parquet"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 2}, "add --ray"),
        ({"ray": "local", "compile": True}, "--compile is for one process"),
        ({"shard_size": 0}, "--shard-size is 0"),
        ({"threads": -1}, "--threads is -1"),
    ],
)
def test_options_that_cannot_be(texts, saved, tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        run_embed(EmbedOptions(str(texts), str(saved), str(tmp_path / "shards"), progress=False, **wrong))
