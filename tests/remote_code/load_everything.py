"""Loads a saved model by every Auto class in a process of its own: `load_everything.py MODE FOLDER WORK`.

In MODE "remote" the package cannot be imported; in "package" it is, and nothing is trusted. FOLDER is the model, WORK
holds `photos/`, `broken/` (a checkpoint that lacks a weight) and `captions.json`; what is seen is written to
WORK/MODE.json and WORK/MODE.safetensors, and in "remote" what is loaded is saved again to WORK/again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MODE, FOLDER, WORK = sys.argv[1], sys.argv[2], Path(sys.argv[3])
REMOTE = MODE.startswith("remote")
if REMOTE:
    sys.modules["ccrk"] = None  # `import ccrk` raises ImportError from here on

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from transformers import pipeline  # noqa: E402

torch.set_num_threads(1)
try:
    import ccrk  # noqa: F401

    assert not REMOTE
except ImportError:
    assert REMOTE

TRUST = {"trust_remote_code": True} if REMOTE else {}
AUTO = ("AutoConfig", "AutoModel", "AutoModelForPreTraining", "AutoProcessor", "AutoImageProcessor", "AutoTokenizer")


def error_of(function, *args, **kwargs) -> str:
    """The message of the error that a call ends in."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    """Loads, runs, writes down."""
    loaded = {name: getattr(transformers, name).from_pretrained(FOLDER, **TRUST) for name in AUTO}
    model, pretraining, processor = (loaded[n] for n in ("AutoModel", "AutoModelForPreTraining", "AutoProcessor"))
    captions = json.loads((WORK / "captions.json").read_text())
    photos = sorted((WORK / "photos").iterdir())
    batch = processor(images=[str(photo) for photo in photos], text=captions, return_tensors="pt")
    alone = loaded["AutoImageProcessor"]([str(photo) for photo in photos], return_tensors="pt")
    tokens = loaded["AutoTokenizer"](captions, padding=True, return_tensors="pt")
    with torch.no_grad():
        output, second = model(**batch), pretraining(**batch)
        tensors = {
            "image_embeds": output.image_embeds,
            "text_embeds": output.text_embeds,
            "pretraining_logits": second.logits_per_image,
            "match": model.match(**batch),
            "mlm": pretraining.mlm_head(second.text_hidden_states),
            "pixel_values": alone["pixel_values"],
            "input_ids": tokens["input_ids"],
        }
    again = transformers.AutoModelForPreTraining.from_pretrained(FOLDER, **TRUST).state_dict()
    sentences = SentenceTransformer(FOLDER, device="cpu", **TRUST)
    tensors["sentence_image"] = sentences.encode([str(photo) for photo in photos], convert_to_tensor=True)
    tensors["sentence_text"] = sentences.encode(captions, convert_to_tensor=True)
    search = pipeline("ccr-retrieval", model=FOLDER, gallery=str(WORK / "photos"), device="cpu", **TRUST)
    parts = {**loaded, "pipeline": search, "sentences": sentences[0].model}
    facts = {
        "modules": {name: type(part).__module__ for name, part in parts.items()},
        "weights_equal": all(torch.equal(again[name], weight) for name, weight in pretraining.state_dict().items()),
        "search": search(captions, top_k=4, rerank=3),
        "untrusted_sentences": error_of(SentenceTransformer, FOLDER, device="cpu"),
        "broken": error_of(transformers.AutoModel.from_pretrained, str(WORK / "broken"), **TRUST),
        "broken_pretraining": error_of(
            transformers.AutoModelForPreTraining.from_pretrained, str(WORK / "broken"), **TRUST
        ),
        "untrusted": error_of(pipeline, "ccr-retrieval", model=FOLDER, trust_remote_code=False, device="cpu"),
        "trusted": error_of(pipeline, "ccr-retrieval", model=FOLDER, trust_remote_code=True, device="cpu"),
        "uri": error_of(search, "a dog", gallery="lance://photos"),
    }
    if MODE == "remote":
        search.model = pretraining  # the whole checkpoint, not the retriever alone
        search.save_pretrained(WORK / "again")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, WORK / f"{MODE}.safetensors")
    (WORK / f"{MODE}.json").write_text(json.dumps(facts))


main()
