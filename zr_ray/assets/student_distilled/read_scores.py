"""Score distribution of an image from the judge in this file's folder: plain transformers or plain vLLM, the same
question in both.

    python read_scores.py transformers image.png "a red cube" realism
    python read_scores.py vllm         image.png "a red cube" realism

Needs nothing of zr_ray; a copy lies in every student folder.
"""

import json
import os
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
FORMAT = json.loads((FOLDER / "scoring_format.json").read_text())
BINS = FORMAT.get("bins", [1 + k / 2 for k in range(9)])  # the score that each label means


def question(tokenizer, prompt, dimension):
    """Text up to the marker: the next token is the score."""
    asked = FORMAT["questions"][dimension].replace("{prompt}", prompt)
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}
    system = [{"role": "system", "content": [{"type": "text", "text": FORMAT["system"]}]}] if FORMAT["system"] else []
    text = tokenizer.apply_chat_template(system + [user], tokenize=False, add_generation_prompt=True)
    return text + FORMAT["direct_prefix"] + FORMAT["marker"]


def as_judged(path):
    """The image as the judge was trained on: upright, transparent pixels on white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def with_transformers(image, prompt, dimension):
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor, model = (
        AutoProcessor.from_pretrained(FOLDER),
        AutoModelForImageTextToText.from_pretrained(FOLDER, dtype="float32"),
    )
    inputs = processor(text=[question(processor.tokenizer, prompt, dimension)], images=[image], return_tensors="pt")
    labels = [processor.tokenizer.encode(label, add_special_tokens=False)[0] for label in FORMAT["labels"]]
    with torch.no_grad():
        return model(**inputs).logits[0, -1, labels].softmax(-1).tolist()


def with_vllm(image, prompt, dimension):
    import torch
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    labels = [tokenizer.encode(label, add_special_tokens=False)[0] for label in FORMAT["labels"]]
    llm = LLM(
        str(FOLDER), dtype="float32", enforce_eager=True, max_logprobs=len(labels), limit_mm_per_prompt={"image": 1}
    )
    asked = {"prompt": question(tokenizer, prompt, dimension), "multi_modal_data": {"image": image}}
    (output,) = llm.generate(
        [asked], SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=labels), use_tqdm=False
    )
    found = output.outputs[0].logprobs[0]
    return torch.tensor([found[label].logprob for label in labels]).softmax(-1).tolist()


if __name__ == "__main__":
    import sys

    engine, path, prompt, dimension = sys.argv[1:]  # transformers or vllm
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    q = {"transformers": with_transformers, "vllm": with_vllm}[engine](as_judged(path), prompt, dimension)
    print(json.dumps({"q": q, "mu": sum(s * p for s, p in zip(BINS, q, strict=True))}))
