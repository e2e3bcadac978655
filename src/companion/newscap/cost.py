"""What a training step and a caption cost at full size, with random weights and random inputs of the right shape."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from statistics import median
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
CLIP_WIDTH, RULE_TOKENS, CAPTION_TOKENS = 768, 24, 24
WAYS = ("none", "prefix", "text", "decoder")
# the parameters that cost depends on: cells that share them (other sets, other rules of the same length) cost the same
SIZED = ("bart", "layers", "mode", "mid", "mapper", "image_tokens", "rule", "train_bart", "batch", "max_article", "lr",
         "beams")  # fmt: skip


def captioner(parameters: Mapping[str, Any]) -> RuleBart:
    """The full-size captioner of a cell with random weights. Raises ValueError for a size that is not known."""
    size = str(parameters.get("bart", "bart-base")).split("/")[-1]
    if size not in SIZES:
        raise ValueError(f"bart is {size!r}; the dry run knows {' and '.join(SIZES)}")
    return RuleBart(random_bart(**SIZES[size]), configuration(parameters, CLIP_WIDTH))


def configuration(parameters: Mapping[str, Any], width: int) -> RulePrefixConfig:
    """How rule and image enter, of a cell's parameters; `width`: of the image vectors."""
    way = parameters["rule"]
    if way not in WAYS:
        raise ValueError(f"rule is {way!r}; choose {', '.join(WAYS)}")
    return RulePrefixConfig(layers=parameters["layers"] if way in ("prefix", "decoder") else "none",
                            mode=parameters["mode"], mid=parameters.get("mid", 512), image_width=width,
                            where="decoder" if way == "decoder" else "encoder", mapper=parameters["mapper"],
                            image_tokens=parameters["image_tokens"])  # fmt: skip


def random_batch(rows: int, article: int, way: str = "prefix") -> dict[str, torch.Tensor]:
    """Inputs of the shape of real ones: article and caption tokens, a rule of 24 tokens, CLIP's vector.

    Where the rule is text, its tokens stand before the article; without a rule there are none.
    """
    g = training.generator("newscap", "dry run")

    def tokens(n: int) -> torch.Tensor:
        return torch.randint(5, 50000, (rows, n), generator=g)

    article += RULE_TOKENS if way == "text" else 0
    batch = {"input_ids": tokens(article), "attention_mask": torch.ones(rows, article, dtype=torch.long),
             "labels": tokens(CAPTION_TOKENS), "image": torch.randn(rows, 1, CLIP_WIDTH, generator=g)}  # fmt: skip
    if way in ("prefix", "decoder"):
        batch |= {"rule_ids": tokens(RULE_TOKENS), "rule_slots": torch.randint(0, 4, (rows, RULE_TOKENS), generator=g),
                  "rule_mask": torch.ones(rows, RULE_TOKENS, dtype=torch.long)}  # fmt: skip
    return batch


def dry_run(
    parameters: Mapping[str, Any], rows: int = 0, article: int = 0, repeats: int = 1
) -> dict[str, Any]:
    """Build the model of a full cell, take an optimiser step and then `repeats` timed ones, write captions as often.

    `rows`, `article`: items per step and article tokens; 0 takes the cell's on a GPU, and 1 item of 128 tokens
    without one. Times are medians, with the least and the most where there are several. Seconds are processor seconds on a CPU (on one thread they do not depend on what else runs), and
    seconds of the clock on a GPU. Cells that differ only in what costs nothing are measured once per process.

    Raises ValueError for a cell of the news world, which is small, and for sizes that are not known.
    """
    if "bart" not in parameters:
        raise ValueError(
            "this cell belongs to the news world and is small; the dry run is for the full scale"
        )
    return dict(
        _measured(tuple((k, parameters[k]) for k in SIZED if k in parameters), rows, article, repeats)
    )


@lru_cache(maxsize=64)
def _measured(sized: tuple[tuple[str, Any], ...], rows: int, article: int, repeats: int) -> dict[str, Any]:
    parameters = dict(sized)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu, way = device.type == "cuda", str(parameters["rule"])
    rows = rows or (parameters["batch"] if on_gpu else 1)
    article = article or (parameters["max_article"] if on_gpu else 128)
    clock = time.perf_counter if on_gpu else time.process_time
    model = captioner(parameters).to(device)
    model.train_only("all" if parameters.get("train_bart", True) else "prefix")
    if way not in ("prefix", "decoder"):  # the rule's network is built in any case
        model.rule.requires_grad_(False)
    size = {part: sum(p.numel() for n, p in model.named_parameters() if n.startswith(part))
            for part in ("bart.", "visual", "rule.")}  # fmt: skip
    batch = {k: v.to(device) for k, v in random_batch(rows, article, way).items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=parameters["lr"])
    steps = []
    for _ in range(1 + repeats):
        began = clock()
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if on_gpu:
            torch.cuda.synchronize()
        steps.append(clock() - began)
    memory = records.peak_memory()
    model.eval()
    inputs, speeds = {k: v for k, v in batch.items() if k != "labels"}, []
    for _ in range(repeats):
        began = clock()
        model.generate(**inputs, num_beams=parameters["beams"], max_new_tokens=20, min_new_tokens=20)
        speeds.append(rows / (clock() - began))
    spread = {} if repeats == 1 else {f"{name}, least and most": [round(min(x), 3), round(max(x), 3)] for name, x in (
        ("step seconds", steps[1:]), ("captions per second", speeds))}  # fmt: skip
    return {"bart": size["bart."], "image mapper": size["visual"],
            "rule prefix": size["rule."] if way in ("prefix", "decoder") else 0,
            "trainable": training.trainable(model)[0], "items per step": rows, "article tokens": article,
            "step seconds": round(median(steps[1:]), 3), "captions per second": round(median(speeds), 3), **spread,
            **memory}  # fmt: skip
