"""What of the pages `make test-docs` does not execute, and why. The one place where that is said."""

from __future__ import annotations

# (what the command line begins with or contains, as a regular expression; the reason)
COMMANDS = [
    (r"^pip install", "installs into the environment of the tests; the wheel is installed by tests/test_packaging.py"),
    (r"^make ", "a target of the Makefile; tests/docs/test_docs.py sees that it exists"),
    (r"^(\w+=\S+ )*pytest ", "tests themselves, run by `make test` and `make test-slow`"),
    (r"^(OMP_NUM_THREADS=1 )?python tests/", "tests themselves, run by `make test` and `make test-slow`"),
    (r"^python benchmarks/", "measures for minutes to hours; `make bench` runs them"),
    (r"^python examples/studies/", "trains for minutes to hours; tests/examples runs small ones"),
    (r"^ccrk demo", "7 minutes of processor time; tests/cli/test_demo.py runs a smaller one"),
    (r"^ccrk serve", "runs until it is ended; tests/serving/test_process.py starts and ends it"),
    (r"^curl ", "asks the running service; tests/serving/test_api.py asks all of its routes"),
    (r"^export CCRK_TOKEN", "sets what the service is started with; tests/serving/test_process.py does"),
    (r"^ccrk publish (?!.*--dry-run)", "asks the Hub; tests/hub/test_publish.py publishes to one on this machine"),
    (r"^git |^cd |^source |^hf ", "a tool of others; nothing of ours is in it"),
    (r"ccrk_3m\.th", "a checkpoint of 2 GB on the Hub; tests/modeling/test_conversion_ccrk.py converts a small one"),
    (
        r"--benchmark |multi30k|dataset_coco",
        "data sets that are not in the checkout; tests/data reads samples",
    ),
    (r"part\.jsonl|^ccrk evaluate OUT|compare_precision", "photos of Flickr8k, which are not in the checkout; hours"),
    (r"--ray|/cluster/", "a cluster; tests/pipelines/test_ray_embedding.py starts one on this machine"),
    (r"--where ", "columns of other galleries; tests/pipelines/test_search_command.py filters"),
    (r"--recipe small-gpu", "towers of the paper's size from the Hub; tests/trainer/test_recipes.py plans it"),
]

WITH_A_HUB = "executed against a Hub on this machine by tests/hub/test_hub_page.py"

# (page, a part of the block, the reason)
BLOCKS = [
    (
        "docs/elsewhere.md",
        "XFlickr30kCo",
        "data of mteb on the Hub; tests/evaluation/test_mteb_model.py runs both",
    ),
    ("docs/benchmark-sets.md", "load_benchmark(", "data sets that are not in the checkout; tests/evaluation has them"),
    (
        "docs/surviving.md",
        "resume_from_checkpoint",
        "a line of the script in README.md; tests/trainer has it",
    ),
]
