"""Packaging of ccrk: the top-level folders of the checkout become one import package.

`modeling_ccrk/` is `ccrk` itself and every other room is a subpackage of it, so that no generic name (`trainer`,
`metrics`, `data`, ...) is ever importable on its own. A new room is one line in `ROOMS`.
"""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

# import name -> folder of the checkout
ROOMS = {
    "ccrk": "modeling_ccrk",
    "ccrk.cli": "cli",
    "ccrk.data": "data",
    "ccrk.evaluation": "evaluation",
    "ccrk.hub_cards": "hub_cards",
    "ccrk.metrics": "metrics",
    "ccrk.metrics.ccr_recall": "metrics/ccr_recall",
    "ccrk.metrics.mrv": "metrics/mrv",
    "ccrk.pipelines": "pipelines",
    "ccrk.serving": "serving",
    "ccrk.trainer": "trainer",
}

# Floors are the versions that the tests ran with (`make test-min` installs exactly these). There is a ceiling only
# where the next major version is known, or by its history likely, to break us.
CORE = [
    "torch>=2.14.1",
    "torchvision>=0.29.1",  # an older torch with this torchvision fails on import, so the two move together
    "transformers>=5.24.0,<6",
    "timm>=1.0.31",
    "safetensors>=0.8.0",
    "huggingface_hub>=2.4.0,<3",
    "numpy>=2.4.6",
    "pillow>=12.3.0",  # gradio, which the extra `serve` brings, takes no 13 yet
    # the XLM-R tokenizer is built from its sentencepiece file, and that takes both
    "sentencepiece>=0.2.3",
    "protobuf>=7.36.2",
    "tqdm>=4.70.1",
    "jinja2>=3.1.6",  # fills the templates of cards; torch brings it, too
]
DATASETS = "datasets>=5.2.0"
RAY = "ray[data]>=2.60.0"
EXTRAS = {
    # matplotlib draws the curves of a training, tensorboard shows them while it runs
    "train": ["accelerate>=1.15.0", DATASETS, "matplotlib>=3.11.2", "peft>=0.21.2", "tensorboard>=2.21.0"],
    "evaluate": ["evaluate>=0.4.6,<0.5", DATASETS, "scipy>=1.17.1"],
    # gradio makes the page; python-multipart reads photos that are sent
    "serve": [
        "fastapi>=0.165.0",
        "gradio>=6.31.0,<7",
        "prometheus-client>=0.26.0",
        "python-multipart>=0.0.34",
        "uvicorn>=0.54.0",
    ],
    # indexes on disk and on a server; Milvus Lite is Milvus in a file, and brings faiss
    "lance": ["filelock>=4.3.1", "lancedb>=0.40.0", "pyarrow>=26.0.1"],
    "milvus": ["milvus-lite>=3.2.2", "pymilvus>=3.0.2"],
    # encoders as ONNX files: exported by transformers, run by onnxruntime
    "onnx": ["onnx>=1.23.2", "onnxruntime>=1.32.0", "onnxscript>=0.7.2"],
    # a cluster; not part of "all": whoever has none would install a scheduler for nothing
    "ray": [RAY],
    # faiss-cpu is what search is compared with, milvus a whole server that tests start; pytrec-eval-terrier computes
    # figures from the TREC files that we write, to compare with ours; httpx2, schemathesis and playwright are clients
    # of the service: by hand, from its OpenAPI, and in a browser
    "dev": [
        "build>=1.3.0",
        "faiss-cpu>=1.15.1",
        "httpx2>=2.16.2",
        "import-linter>=2.17",
        "milvus>=2.3.5; platform_system == 'Linux'",
        "playwright>=1.65.2",
        "pytest>=9.2.0",
        "pytrec-eval-terrier>=0.5.11",
        RAY,
        "ruff>=0.17.6",
        "schemathesis>=4.32.5",
        "setuptools>=77",
    ],
}
# everything a user can switch on; the tools of the developers stay apart
USED = ("train", "evaluate", "lance", "milvus", "onnx", "serve")
EXTRAS["all"] = sorted({one for extra in USED for one in EXTRAS[extra]})


def version() -> str:
    """Return `__version__` of `modeling_ccrk/__init__.py`, read as text: importing it would need torch."""
    source = (ROOT / "modeling_ccrk" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if found is None:
        raise ValueError('modeling_ccrk/__init__.py has no line of the form __version__ = "1.2.3"')
    return found[1]


setup(
    name="ccrk",
    version=version(),
    description="Cross-lingual cross-modal retrieval with 1-to-K contrastive learning, native to Hugging Face",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=list(ROOMS),
    package_dir=ROOMS,
    package_data={
        "ccrk": ["py.typed"],
        "ccrk.trainer": ["recipes/*.yaml"],
        "": ["README.md", "requirements.txt", "templates/*"],
    },
    include_package_data=False,
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ccrk = ccrk.cli.main:main"]},
    keywords=["retrieval", "cross-lingual", "cross-modal", "contrastive", "transformers", "pytorch"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
