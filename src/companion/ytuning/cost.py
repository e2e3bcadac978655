"""What tuning costs: trained parameters, time and peak memory of one step, at full size with random weights.

Cost does not depend on the weights' values, so the paper's sizes are measured without the paper's weights.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from companion.ytuning.baselines import HEADS, TUNED, AttentionPool, LabelTuning, Ladder, LinearProbe
from companion.ytuning.frozen import hidden_states
from companion.ytuning.model import YTuning, YTuningConfig

METHODS = ("y-tuning-cached", "y-tuning", *HEADS, *TUNED)


@dataclass(frozen=True)
class Shape:
    """Sizes of a public model: layers, width, heads, feed-forward, vocabulary, positions."""

    kind: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int = 512


SHAPES = {
    "deberta-v2-xxlarge": Shape("deberta-v2", 48, 1536, 24, 6144, 128100),
    "roberta-large": Shape("roberta", 24, 1024, 16, 4096, 50265, 514),
    "bart-large": Shape("bart", 12, 1024, 16, 4096, 50265, 1024),
    "minilm": Shape("bert", 6, 384, 12, 1536, 30522),
    "tiny": Shape("bert", 2, 32, 2, 64, 100),
}


def shape(name: str) -> Shape:
    """The shape of a model, by its name with or without owner. Raises ValueError for an unknown one."""
    short = name.rpartition("/")[2]
    if short not in SHAPES:
        raise ValueError(f"no shape is known for {name!r}; choose {', '.join(SHAPES)}")
    return SHAPES[short]


def build(name: str) -> nn.Module:
    """An encoder of that shape with random weights, on torch's current default device."""
    s = shape(name)
    if s.kind == "bert":
        from companion.ytuning.bert import Bert

        return Bert({"hidden_size": s.width, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1, "vocab_size":
                     s.vocabulary, "max_position_embeddings": s.positions, "type_vocab_size": 2, "num_attention_heads":
                     s.heads, "intermediate_size": s.feed_forward, "num_hidden_layers": s.layers})  # fmt: skip
    import transformers as hf

    if s.kind == "bart":
        config = hf.BartConfig(vocab_size=s.vocabulary, d_model=s.width, encoder_layers=s.layers, decoder_layers=1,
                               encoder_attention_heads=s.heads, encoder_ffn_dim=s.feed_forward,
                               max_position_embeddings=s.positions)  # fmt: skip
        return hf.BartModel(config).get_encoder()
    sizes = {"vocab_size": s.vocabulary, "hidden_size": s.width, "num_hidden_layers": s.layers, "num_attention_heads":
             s.heads, "intermediate_size": s.feed_forward, "max_position_embeddings": s.positions}  # fmt: skip
    if s.kind == "deberta-v2":
        # as in the published config.json of deberta-v2-xxlarge
        config = hf.DebertaV2Config(**sizes, type_vocab_size=0, relative_attention=True, position_buckets=256,
                                    max_relative_positions=-1, norm_rel_ebd="layer_norm", share_att_key=True,
                                    pos_att_type=["p2c", "c2p"], position_biased_input=False, conv_kernel_size=3,
                                    conv_act="gelu")  # fmt: skip
        return hf.DebertaV2Model(config)
    return hf.RobertaModel(hf.RobertaConfig(**sizes, type_vocab_size=1), add_pooling_layer=False)


def head(method: str, s: Shape, labels: int, **options: Any) -> nn.Module:
    """The trained part of a method that leaves the encoder alone, at the encoder's own width.

    `options` are fields of `YTuningConfig` for the Y-Tuning methods; a `width` brings its own heads and feed-forward.
    """
    if method in ("y-tuning", "y-tuning-cached"):
        if "width" not in options:
            options = {"width": s.width, "heads": s.heads, "feed_forward": s.feed_forward} | options
        return YTuning(YTuningConfig({"task": [str(k) for k in range(labels)]}, s.width, **options))
    if method.startswith("linear-"):
        return LinearProbe(s.width, labels, method.removeprefix("linear-"))
    if method == "attention-pool":
        return AttentionPool(s.width, labels, s.width, s.heads, s.feed_forward)
    if method == "label-tuning":
        return LabelTuning(s.width, labels)
    if method == "ladder":
        return Ladder(s.width, s.layers + 1, labels)
    raise ValueError(f"method is {method!r}; choose {', '.join(METHODS)}")


class _Meter:
    """Peak memory in MiB since `start`: CUDA allocations, else this process's resident set above its start."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    @staticmethod
    def _status(key: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) / 1024
        return 0.0

    def start(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far
            self.base = self._status("VmRSS")
        except OSError:
            self.base = None

    def read(self) -> float | None:
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 2**20
        return None if self.base is None else max(0.0, self._status("VmHWM") - self.base)


def measure(method: str, backbone: str, *, batch: int = 32, tokens: int = 128, labels: int = 2, steps: int = 5,
            warmup: int = 1, device: str | None = None, precision: str = "float32",
            options: Mapping[str, Any] | None = None) -> dict[str, Any]:  # fmt: skip
    """Train `method` for at least `steps` steps on random inputs [batch, tokens]; median step time and peak memory.

    On a GPU peak memory is all that torch allocated, weights included; on a CPU it is what the steps added to
    the process after the model was loaded. `y-tuning-cached` never builds the model: its inputs are features.
    `options` are fields of `YTuningConfig` for the Y-Tuning methods.

    Raises ValueError for an unknown method or shape.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose {', '.join(METHODS)}")
    s, place = shape(backbone), torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kind = getattr(torch, precision)
    torch.manual_seed(0)
    cached = method == "y-tuning-cached"
    total = count(backbone)
    with place:
        encoder = None if cached else build(backbone).to(kind)
        if method in TUNED:
            model = _Through(encoder, s.width, labels, method)
        else:
            model = head(method, s, labels, **options or {}).to(kind)
            if encoder is not None:
                encoder.eval().requires_grad_(False)
        ids = torch.randint(5, s.vocabulary, (batch, tokens))
        pad = torch.zeros(batch, tokens, dtype=torch.bool)
        target = torch.randint(labels, (batch,))
    trained = [p for p in model.parameters() if p.requires_grad]
    _settle(place)
    meter = _Meter(place)
    meter.start()
    # an fp16 cache on the CPU's side, as on disk; each step brings its batch over
    store = torch.zeros(batch, tokens, s.width, dtype=torch.float16) if cached else None
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        if method in TUNED:
            scores = model(ids, pad)
        elif cached:
            scores = model(store.to(place, kind), pad)
        else:
            with torch.no_grad():
                states = hidden_states(encoder, ids, pad)
                H = torch.cat(list(states), -1) if method == "ladder" else states[-1]
            scores = model(H, pad)
        loss = (
            model.loss(scores, target)
            if isinstance(model, YTuning)
            else F.cross_entropy(scores.float(), target)
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(warmup):
        step()
    times: list[float] = []
    # short steps are repeated until they fill a second
    while len(times) < steps or (sum(times) < 1 and len(times) < 10 * steps):
        times.append(_timed(step, place))
    middle = sorted(times)[len(times) // 2]
    own = sum(p.numel() for p in trained)
    return {"trainable": own, "total": total, "share": 100 * own / total, "step_ms": 1000 * middle,
            "examples_per_s": batch / middle, "peak_mib": meter.read(), "device": place.type,
            "precision": precision}  # fmt: skip


def _settle(place: torch.device) -> None:
    """A training step of a tiny head: the libraries that torch loads for its first step belong to no method."""
    with place:
        model = head("y-tuning", Shape("", 1, 64, 2, 256, 1), 2)
        optimizer = torch.optim.AdamW(model.parameters())
        scores = model(torch.zeros(8, 16, 64), torch.zeros(8, 16, dtype=torch.bool))
        model.loss(scores, torch.zeros(8, dtype=torch.long)).backward()
        optimizer.step()


def _timed(step: Callable[[], None], place: torch.device) -> float:
    """Seconds of `step`: the process's own time where it has one CPU thread (other load does not count), else wall."""
    alone = place.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    if place.type == "cuda":
        torch.cuda.synchronize()
    began = clock()
    step()
    if place.type == "cuda":
        torch.cuda.synchronize()
    return clock() - began


class _Through(nn.Module):
    """A method that back-propagates through the encoder, with a linear classifier on the mean."""

    def __init__(self, encoder: nn.Module, width: int, labels: int, method: str) -> None:
        super().__init__()
        from companion.ytuning.baselines import lora

        self.model = encoder.requires_grad_(method == "fine-tuning")
        self.prompt = None
        if method == "bitfit":
            for name, p in self.model.named_parameters():
                p.requires_grad_(name.endswith("bias"))
        elif method == "lora":
            self.model = lora(self.model, 8)
        elif method == "prompt-tuning":
            self.prompt = nn.Parameter(torch.randn(20, width) * 0.02)
        self.out = nn.Linear(width, labels).to(next(encoder.parameters()).dtype)

    def forward(self, ids: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        """[B, C]"""
        if self.prompt is None:
            return self.out(hidden_states(self.model, ids, pad)[-1].mean(1))
        words = (
            self.model.get_input_embeddings()(ids) if hasattr(self.model, "get_input_embeddings") else None
        )
        if words is None:
            return self.out(self.model(ids, pad, None, self.prompt)[-1].mean(1))
        x = torch.cat([self.prompt.expand(len(ids), -1, -1), words], 1)
        return self.out(self.model(inputs_embeds=x).last_hidden_state.mean(1))


def count(backbone: str) -> int:
    """Parameters of the encoder, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(backbone).parameters())


def forward_rate(backbone: str, *, batch: int = 32, tokens: int = 128, steps: int = 3, device: str | None = None,
                 precision: str = "float32") -> float:  # fmt: skip
    """Examples per second of the one-off feature pass: forward only, no graph."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with place, torch.inference_mode():
        model = build(backbone).to(getattr(torch, precision)).eval()
        ids = torch.randint(5, shape(backbone).vocabulary, (batch, tokens))
        pad = torch.zeros(batch, tokens, dtype=torch.bool)
        times = [
            _timed(lambda: hidden_states(model, ids, pad)[-1].sum().item(), place) for _ in range(steps + 1)
        ]
    return batch / sorted(times[1:])[steps // 2]


def _worker(queue: Any, what: str, backbone: str, threads: int, options: dict[str, Any]) -> None:
    torch.set_num_threads(threads)
    try:
        if what == "feature pass":
            options = {
                k: v for k, v in options.items() if k in ("batch", "tokens", "steps", "device", "precision")
            }
            queue.put(forward_rate(backbone, **options))
        else:
            queue.put(measure(what, backbone, **options))
    except (RuntimeError, ValueError, MemoryError) as error:
        queue.put(f"{type(error).__name__}: {str(error).splitlines()[0]}")


def apart(what: str, backbone: str, **options: Any) -> Any:
    """`measure(what, ...)`, or `forward_rate` for "feature pass", in a process of its own: its peak memory is its own.

    Raises RuntimeError with the worker's sentence where it failed, or was stopped for want of memory.
    """
    import multiprocessing
    import queue as waiting

    # fork spares the worker all imports; a process that has used the GPU must not be forked
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    answers = context.Queue()
    worker = context.Process(target=_worker, args=(answers, what, backbone, torch.get_num_threads(), options))
    worker.start()
    found = f"{what}: the process ended with nothing to say, probably for want of memory"
    while True:
        alive = worker.is_alive()
        try:
            found = answers.get(timeout=0.5)
            break
        except waiting.Empty:
            if not alive:
                break
    worker.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def compare(backbone: str, methods: tuple[str, ...] = ("y-tuning-cached", "y-tuning", "lora", "fine-tuning"), *,
            examples: int = 8551, **options: Any) -> dict[str, Any]:  # fmt: skip
    """All `methods` on one machine in one go, each in its own process, and the one-off feature pass.

    Gives `rows` (what `measure` gives, with seconds per epoch of `examples` and the epochs after which the feature
    pass has paid), `feature_pass_s`, and `ratios` to full fine-tuning where that is among the methods.
    """
    feature_pass = examples / apart("feature pass", backbone, **options)
    rows = {method: apart(method, backbone, **options) for method in methods}
    for found in rows.values():
        found["epoch_s"] = examples / found["examples_per_s"]
    ratios, cached, full = {}, rows.get("y-tuning-cached"), rows.get("fine-tuning")
    for method, found in rows.items():
        if cached and found is not cached and cached["epoch_s"] < found["epoch_s"]:
            found["break_even_epochs"] = break_even(feature_pass, cached["epoch_s"], found["epoch_s"])
        if full and found is not full:
            ratios[f"speed {method}"] = found["examples_per_s"] / full["examples_per_s"]
            if found["peak_mib"] is not None and full["peak_mib"]:
                ratios[f"memory {method}"] = found["peak_mib"] / full["peak_mib"]
    return {"rows": rows, "feature_pass_s": feature_pass, "ratios": ratios}


def counted(
    method: str, backbone: str, *, batch: int = 32, tokens: int = 128, labels: int = 2
) -> dict[str, float]:
    """What one training step takes, counted and not measured: the model is built on torch's "meta" device.

    `gflop`: floating-point operations of the matrix products, forward and backward. `kept_gib`: tensors that autograd
    keeps for the backward pass, in float32, attention weights written out. `memory_gib`: these, all weights held
    (4 bytes each), gradients and AdamW's two moments (12 bytes per trained parameter); short-lived buffers, which a
    real step also needs, are not in it. Nothing is allocated, so any size can be counted on any machine.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose {', '.join(METHODS)}")
    s, cached = shape(backbone), method == "y-tuning-cached"
    with torch.device("meta"):
        encoder = None if cached else build(backbone)
        if hasattr(encoder, "set_attn_implementation"):
            encoder.set_attn_implementation("eager")
        if method in TUNED:
            model = _Through(encoder, s.width, labels, method)
        else:
            model = head(method, s, labels)
            if encoder is not None:
                encoder.eval().requires_grad_(False)
        ids = torch.zeros(batch, tokens, dtype=torch.long)
        # no mask where it can be left out: transformers looks at its values, and "meta" has none
        pad = torch.zeros(batch, tokens, dtype=torch.bool) if s.kind in ("bert", "deberta-v2") else None
        H = torch.zeros(batch, tokens, s.width)
        target = torch.zeros(batch, dtype=torch.long)
    held = [p for m in (encoder, model) if m is not None for p in m.parameters()]
    held = list({id(p): p for p in held}.values())
    trained = [p for p in held if p.requires_grad]
    weights = {p.untyped_storage()._cdata for p in held}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return x

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x),
    ):
        if method in TUNED:
            scores = model(ids, pad)
        else:
            if not cached:
                with torch.no_grad():
                    states = hidden_states(encoder, ids, pad)
                    H = torch.cat(list(states), -1) if method == "ladder" else states[-1]
            scores = model(H, pad)
        loss = model.loss(scores, target) if isinstance(model, YTuning) else F.cross_entropy(scores, target)
        loss.backward()
    own, kept_bytes = sum(p.numel() for p in trained), sum(x.nbytes() for x in kept.values())
    all_bytes = 4 * sum(p.numel() for p in held) + 12 * own + kept_bytes
    return {"trainable": own, "share": 100 * own / count(backbone), "gflop": counter.get_total_flops() / 1e9,
            "kept_gib": kept_bytes / 2**30, "memory_gib": all_bytes / 2**30}  # fmt: skip


def break_even(feature_pass: float, cached_epoch: float, other_epoch: float) -> float:
    """Epochs after which the one-off feature pass has paid for itself. All in the same unit of time.

    Raises ValueError where a cached epoch is not cheaper: then it never pays.
    """
    if cached_epoch >= other_epoch:
        raise ValueError(f"a cached epoch ({cached_epoch:g}) is not cheaper than the other ({other_epoch:g})")
    return feature_pass / (other_epoch - cached_epoch)


def cache_bytes(examples: int, tokens: int, backbone: str) -> int:
    """Size of an fp16 cache: examples x tokens x width x 2 bytes."""
    return examples * tokens * shape(backbone).width * 2


def dry_run(parameters: dict[str, Any]) -> dict[str, Any]:
    """One step of the cell's method at its full size, with random weights and inputs; a Y-Tuning head has the cell's form.

    Where this machine's memory is too small the model is only counted, and the report says so. Tables that compare
    all methods of a model name none; they get the step of Y-Tuning without a cache.
    """
    method, backbone = parameters.get("method", "y-tuning"), parameters["backbone"]
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; choose {', '.join(METHODS)}")
    batch, tokens = int(parameters.get("batch", 32)), int(parameters.get("tokens", 128))
    total = count(backbone)
    # fine-tuning holds weights, gradients and two moments; activations come on top
    gib = total * (16 if method == "fine-tuning" else 4) / 2**30
    if torch.cuda.is_available():
        free = torch.cuda.mem_get_info()[0] / 2**30
    else:
        import psutil

        free = psutil.virtual_memory().available / 2**30
        batch = min(batch, 2)
    if method != "y-tuning-cached" and gib * 1.2 > free:
        return {"parameters": total, "step": f"not taken: needs about {gib:.0f} GiB, {free:.0f} are free"}
    form = {field.name for field in fields(YTuningConfig)} - {"tasks", "width_in", "label_init"}
    options = {k: v for k, v in parameters.items() if k in form} if method.startswith("y-tuning") else None
    found = measure(method, backbone, batch=batch, tokens=tokens, steps=1, warmup=0, options=options)
    return {"parameters": total, "trainable": found["trainable"], "share_percent": round(found["share"], 3),
            "batch": batch, "step_s": round(found["step_ms"] / 1000, 3),
            "peak_mib": found["peak_mib"] and round(found["peak_mib"])}  # fmt: skip
