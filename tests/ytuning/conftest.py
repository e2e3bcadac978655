"""A frozen model small enough to build in every test."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from companion.ytuning.bert import Bert
from companion.ytuning.frozen import FrozenEncoder

WORDS = [
    "[PAD]",
    "[CLS]",
    "[SEP]",
    "[UNK]",
    "the",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "happy",
    "sad",
    "very",
    "not",
    "a",
    "b",
    "c",
    "d",
    "e",
]


def tiny_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({w: k for k, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return tokenizer


def tiny_config(layers: int = 2) -> dict:
    return {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": layers, "num_attention_heads": 2,
            "intermediate_size": 32, "vocab_size": len(WORDS), "max_position_embeddings": 32, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "hidden_act": "gelu"}  # fmt: skip


@pytest.fixture
def make_encoder():
    def make(seed: int = 0, depth: int = 2, **options) -> FrozenEncoder:
        torch.manual_seed(seed)
        return FrozenEncoder("tiny", **{"max_length": 12, "module": Bert(tiny_config(depth)),
                                        "tokenizer": tiny_tokenizer(), "device": "cpu", **options})  # fmt: skip

    return make


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()
