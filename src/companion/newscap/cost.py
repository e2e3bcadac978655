"""What a training step and a caption cost at full size, with random weights and random inputs of the right shape."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from companion import records, training
from companion.newscap.model import RuleBart, RulePrefixConfig, random_bart

# facebook/bart-base and facebook/bart-large (config.json of each); the rest is BartConfig's default
SIZES = {
    "bart-base": {"vocab_size": 50265, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6,
                  "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072,
                  "decoder_ffn_dim": 3072},
    "bart-large": {"vocab_size": 50265, "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
                   "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096,
                   "decoder_ffn_dim": 4096},
}  # fmt: skip
CLIP_TOKENS, CLIP_WIDTH = 50, 768  # ViT-B/32: 49 patches and the class token


def captioner(parameters: Mapping[str, Any]) -> RuleBart:
    """The full-size captioner of a cell with random weights."""
    size = str(parameters.get("bart", "bart-base")).split("/")[-1]
    if size not in SIZES:
        raise ValueError(f"bart is {size!r}; the dry run knows {' and '.join(SIZES)}")
    config = RulePrefixConfig(layers=parameters["layers"] if parameters["rule"] == "prefix" else "none",
                              mode=parameters["mode"], mid=parameters.get("mid", 512), image_width=CLIP_WIDTH,
                              image_tokens=CLIP_TOKENS)  # fmt: skip
    return RuleBart(random_bart(**SIZES[size]), config)


def random_batch(rows: int, article: int, caption: int, rule: int = 24) -> dict[str, torch.Tensor]:
    """Inputs of the shape of real ones: article and caption tokens, a rule of `rule` tokens, CLIP's vectors."""
    g = training.generator("newscap", "dry run")
    return {"input_ids": torch.randint(5, 50000, (rows, article), generator=g),
            "attention_mask": torch.ones(rows, article, dtype=torch.long),
            "labels": torch.randint(5, 50000, (rows, caption), generator=g),
            "rule_ids": torch.randint(5, 50000, (rows, rule), generator=g),
            "rule_slots": torch.randint(0, 4, (rows, rule), generator=g),
            "rule_mask": torch.ones(rows, rule, dtype=torch.long),
            "image": torch.randn(rows, CLIP_TOKENS, CLIP_WIDTH, generator=g)}  # fmt: skip


def dry_run(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Build the model of a full cell, take two optimiser steps, write captions; report the second step.

    Without a GPU a step reads 1 item of 128 article tokens (and says so) instead of the cell's batch.
    """
    if "bart" not in parameters:
        raise ValueError(
            "this cell belongs to the news world and is small; the dry run is for the full scale"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    rows, article = (parameters["batch"], parameters["max_article"]) if on_gpu else (1, 128)
    article = min(article, 1024 - CLIP_TOKENS)
    model = captioner(parameters).to(device)
    # the rule's network exists only where layers take it
    own = sum(p.numel() for n, p in model.named_parameters() if n.startswith("rule."))
    batch = {k: v.to(device) for k, v in random_batch(rows, article, 24).items()}
    if parameters["rule"] != "prefix":
        batch = {k: v for k, v in batch.items() if not k.startswith("rule_")}
        own = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=parameters["lr"])
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    model.eval()
    began = time.perf_counter()
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    model.generate(**inputs, num_beams=parameters["beams"], max_new_tokens=20, min_new_tokens=20)
    writing = time.perf_counter() - began
    trainable, total = training.trainable(model)
    return {"parameters": total, "trainable": trainable, "rule prefix": own, "items per step": rows,
            "article tokens": article, "step seconds": round(seconds, 3),
            "captions per second": round(rows / writing, 2), **records.peak_memory()}  # fmt: skip
