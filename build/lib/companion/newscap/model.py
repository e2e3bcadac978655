"""Rule prefixes in BART's encoder: the rule becomes keys and values that article tokens attend to.

Shapes: B batch, T input tokens (image vectors and article), p rule tokens, d width of BART, H heads,
e = d / H, L the chosen encoder layers. The rule enters so::

    x_i = W_tok[r_i] + W_slot[slot_i] + W_pos[i]                                        rule tokens    [B, p, d]
    [P_K^l ; P_V^l] = MLP(x)  for l in L,  MLP: Linear(d, mid), Tanh, Linear(mid, 2 |L| d)            [B, p, d] each
    layer l in L:  K = [P_K^l ; W_k h],  V = [P_V^l ; W_v h],  Q = W_q h
                   softmax(Q K^T / sqrt(e) + [mask of the rule ; mask of the input]) V
    all other layers: unchanged

The paper says that the rule goes by prefix-tuning into the last three encoder layers; the form of the rule's
encoder is not in any text that could be read and follows Li and Liang (2021), section 4.3 (their released code
has the same network for sample-dependent "control codes").
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bart.modeling_bart import (
    BartAttention,
    BartConfig,
    BartForConditionalGeneration,
    eager_attention_forward,
)

MODES = ("mlp_kv", "proj_hidden")
PLACES = ("encoder", "decoder", "cross")
MAPPERS = ("vectors", "clipcap")


@dataclass(frozen=True)
class RulePrefixConfig:
    """How a rule enters BART.

    `layers`: "last3", "first2", "all", "none" or a list such as "0,2" of encoder layers, counted from 0.
    `mode`: "mlp_kv" (the network makes keys and values, prefix-tuning's way) or "proj_hidden" (it makes hidden
    states that go through the layer's own key and value projections). `where`: "encoder"; or, as comparisons of
    ours, "decoder" (prefixes of the decoder's self-attention, `layers` then counts decoder layers) or "cross" (the
    rule's vectors stand among the states that the decoder's cross-attention reads).
    `source`: "rule", or "constant" for a learned prefix of `max_length` vectors that sees no rule.
    `mapper`: "vectors" maps each of `image_tokens` image vectors to one input position; "clipcap" maps one vector
    per image to `image_tokens` positions (Mokady et al., 2021; VACNIC's size is 20).
    """

    layers: str = "last3"  # 𝓛
    mode: str = "mlp_kv"
    mid: int = 512  # inner width of the MLP
    max_length: int = 48  # p, longest rule in tokens
    slots: int = 4  # padding/markers, verb, role name, entity
    dropout: float = 0.0
    where: str = "encoder"
    source: str = "rule"
    image_width: int = 0  # width of image vectors; 0 for none
    image_tokens: int = 0
    mapper: str = "vectors"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"prefix mode is {self.mode!r}; choose {' or '.join(MODES)}")
        if self.where not in PLACES:
            raise ValueError(f"prefix place is {self.where!r}; choose {' or '.join(PLACES)}")
        if self.source not in ("rule", "constant"):
            raise ValueError(f"prefix source is {self.source!r}; choose rule or constant")
        if self.mapper not in MAPPERS:
            raise ValueError(f"image mapper is {self.mapper!r}; choose {' or '.join(MAPPERS)}")


def chosen_layers(spec: str, count: int) -> tuple[int, ...]:
    """Indices of the encoder layers named by `spec` in an encoder of `count` layers.

    Raises ValueError for a layer that is not there.
    """
    text = spec.strip().lower()
    if text == "none":
        return ()
    if text == "all":
        return tuple(range(count))
    for word in ("last", "first"):
        if text.startswith(word) and text[len(word) :].isdigit():
            k = int(text[len(word) :])
            if not 1 <= k <= count:
                raise ValueError(
                    f"layers is {spec!r} but the encoder has {count} layers; choose 1 to {count} of them"
                )
            return tuple(range(count - k, count)) if word == "last" else tuple(range(k))
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise ValueError(
            f"layers is {spec!r}; write last3, first2, all, none or numbers such as 0,2"
        ) from None
    if found[0] < 0 or found[-1] >= count:
        raise ValueError(f"layers is {spec!r} but the encoder has layers 0 to {count - 1}")
    return found


# --- attention with a prefix -------------------------------------------------------------------------


@dataclass
class Prefix:
    """Keys, values `[B, p, d]` and mask `[B, p]` (True where a rule token is) for one layer.

    With `hidden` set, `key` holds hidden states and `value` is not used: the layer projects them itself.
    """

    key: Tensor
    value: Tensor
    mask: Tensor
    hidden: bool = False


class RuleAttention(BartAttention):
    """BART's self-attention that also looks at a prefix, handed to it as the keyword `rule_prefix`.

    It owns the same parameters under the same names as `BartAttention`, so checkpoints stay plain BART ones. In the
    encoder it keeps no state between calls: beams, threads and gradient checkpointing need no care. In the decoder,
    `generate` passes no keyword of ours on, so `RuleBart.generate` leaves the prefix in `held` meanwhile.
    """

    held: dict[int, Prefix] | None = None

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None,
                rule_prefix: dict[int, Prefix] | None = None, past_key_values: Any = None,
                **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """hidden_states [B, T, d] -> ([B, T, d], attention weights [B, H, T, p + S] or None); S: T and what is cached."""
        prefix = (rule_prefix or self.held or {}).get(self.layer_idx)
        if prefix is None:
            return super().forward(hidden_states, attention_mask=attention_mask, past_key_values=past_key_values,
                                   **kwargs)  # fmt: skip
        kind = self.config._attn_implementation
        if kind not in ("eager", "sdpa"):
            raise ValueError(f"attention is {kind!r}; rule prefixes work with eager and sdpa")
        B, T, _ = hidden_states.shape

        def heads(x: Tensor) -> Tensor:  # [B, n, d] -> [B, H, n, e]
            return x.view(len(x), -1, self.num_heads, self.head_dim).transpose(1, 2)

        q, k, v = (heads(f(hidden_states)) for f in (self.q_proj, self.k_proj, self.v_proj))
        if past_key_values is not None:  # decoding word by word: the prefix stays out of the cache
            k, v = past_key_values.self_attention_cache.update(k, v, self.layer_idx)
        pk, pv = (
            (self.k_proj(prefix.key), self.v_proj(prefix.key))
            if prefix.hidden
            else (prefix.key, prefix.value)
        )
        beams = B // len(pk)  # beams of an item stand next to each other and share its prefix
        pk, pv, seen = (x.repeat_interleave(beams, 0) for x in (pk, pv, prefix.mask))
        mask = self._mask(seen, attention_mask, q, k.shape[2])
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
        out, weights = attend(self, q, torch.cat([heads(pk), k], 2), torch.cat([heads(pv), v], 2), mask,
                              dropout=self.dropout if self.training else 0.0, scaling=self.scaling, **kwargs)  # fmt: skip
        return self.out_proj(out.reshape(B, T, -1).contiguous()), weights

    def _mask(self, prefix: Tensor, article: Tensor | None, q: Tensor, keys: int) -> Tensor:
        """The mask over p + S keys in the form that the attention in use wants: added (eager) or boolean (sdpa)."""
        B, T = q.shape[0], q.shape[2]
        rule = prefix[:, None, None, :].expand(B, 1, T, prefix.shape[1])
        if article is None:
            seen = torch.ones(T, keys, dtype=torch.bool, device=q.device)
            seen = (seen.tril(keys - T) if self.is_causal else seen).expand(B, 1, T, keys)
        else:
            seen = article.expand(B, 1, T, keys)
        if seen.dtype == torch.bool and self.config._attn_implementation == "sdpa":
            return torch.cat([rule, seen], -1)
        low = torch.finfo(q.dtype).min

        def added(mask: Tensor) -> Tensor:
            if mask.dtype != torch.bool:
                return mask.to(q.dtype)
            return torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, low)

        return torch.cat([added(rule), added(seen)], -1)


def inject(bart: BartForConditionalGeneration, layers: Sequence[int], where: str = "encoder") -> None:
    """Let the named layers of `bart`'s encoder (or decoder) take prefixes. Parameters and checkpoints stay as they are."""
    stack = bart.model.encoder if where == "encoder" else bart.model.decoder
    for k in layers:
        attention = stack.layers[k].self_attn
        # the class changes, the object stays: no parameter is renamed, tied or copied
        attention.__class__ = RuleAttention
        attention.layer_idx = k


# --- the rule's encoder ------------------------------------------------------------------------------


class RuleEncoder(nn.Module):
    """Rule tokens -> a `Prefix` per layer. The token table is BART's own and is passed in, not owned."""

    def __init__(self, config: RulePrefixConfig, width: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.config, self.layers = config, tuple(layers)
        self.slot = nn.Embedding(config.slots, width)
        self.position = nn.Embedding(config.max_length, width)
        pieces = 1 if config.where == "cross" else len(self.layers) * (2 if config.mode == "mlp_kv" else 1)
        # the token table's scale is BART's affair; BART normalises its own embeddings too
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.mid), nn.Tanh(), nn.Linear(config.mid, max(pieces, 1) * width)
        )
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.slot, self.position):
            nn.init.normal_(table.weight, std=0.02)
        if config.source == "constant":
            self.table = nn.Parameter(torch.randn(config.max_length, width) * 0.02)

    def states(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """Embedded rule tokens x. tokens: [B, p, d], slots: [B, p] -> [B, p, d]."""
        n = tokens.shape[1]
        if n > self.config.max_length:
            raise ValueError(f"the rule has {n} tokens; this model takes up to {self.config.max_length}")
        where = torch.arange(n, device=tokens.device)
        return self.norm(tokens + self.slot(slots) + self.position(where))

    def forward(self, tokens: Tensor, slots: Tensor, mask: Tensor) -> tuple[dict[int, Prefix], Tensor]:
        """tokens: [B, p, d], slots, mask: [B, p] -> (layer -> Prefix, what the MLP says [B, p, pieces · d])."""
        if self.config.source == "constant":
            B = len(tokens)
            x = self.table.expand(B, -1, -1)
            mask = torch.ones(B, x.shape[1], dtype=torch.bool, device=tokens.device)
        else:
            x, mask = self.states(tokens, slots), mask.bool()
        out = self.dropout(self.mlp(x))
        if self.config.where == "cross":
            return {}, out
        found = {}
        if self.config.mode == "mlp_kv":
            pieces = out.chunk(2 * len(self.layers), -1) if self.layers else ()
            for j, layer in enumerate(self.layers):
                found[layer] = Prefix(pieces[2 * j], pieces[2 * j + 1], mask)
        else:
            # the embedded rule itself passes, the MLP corrects it per layer
            for layer, piece in zip(self.layers, out.chunk(max(len(self.layers), 1), -1), strict=False):
                state = x + piece
                found[layer] = Prefix(state, state, mask, hidden=True)
        return found, out


# --- the captioner -----------------------------------------------------------------------------------


class ClipCap(nn.Module):
    """One image vector [B, 1, w] -> n input positions [B, n, d]: Linear(w, wn/2), Tanh, Linear(wn/2, wn), and
    Linear(w, d) where BART is wider or narrower than the image vector (spec 2.8; VACNIC's mapper)."""

    def __init__(self, width: int, tokens: int, out: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.mlp = nn.Sequential(
            nn.Linear(width, width * tokens // 2), nn.Tanh(), nn.Linear(width * tokens // 2, width * tokens)
        )
        self.out = nn.Linear(width, out) if out != width else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        if image.shape[1] != 1:
            raise ValueError(f"this captioner takes one vector per image; {image.shape[1]} were given")
        return self.out(self.mlp(image[:, 0]).view(len(image), self.tokens, -1))


class RuleBart(nn.Module):
    """BART that writes a caption from image vectors, an article and a rule.

    Args:
        bart: any `BartForConditionalGeneration`; it is changed in place (`inject`), its parameters are not.
        config: how rules and images enter.
    """

    def __init__(self, bart: BartForConditionalGeneration, config: RulePrefixConfig) -> None:
        super().__init__()
        self.bart, self.config = bart, config
        width = bart.config.d_model
        count = len(bart.model.encoder.layers)
        if config.where == "decoder":
            count = len(bart.model.decoder.layers)
        self.layers = chosen_layers(config.layers, count) if config.where != "cross" else ()
        inject(bart, self.layers, config.where)
        self.rule = RuleEncoder(config, width, self.layers)
        self.visual = None
        if config.image_width:
            self.visual = ClipCap(config.image_width, config.image_tokens, width) if config.mapper == "clipcap" else (
                nn.Sequential(nn.Linear(config.image_width, width), nn.Tanh(), nn.Linear(width, width)))  # fmt: skip
            self.visual_position = nn.Parameter(torch.randn(config.image_tokens, width) * 0.02)

    def encode(self, input_ids: Tensor, attention_mask: Tensor, rule_ids: Tensor | None = None,
               rule_slots: Tensor | None = None, rule_mask: Tensor | None = None,
               image: Tensor | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The encoder's states and the mask over them.

        input_ids, attention_mask: [B, T]; rule_ids, rule_slots, rule_mask: [B, p] or None for no rule;
        image: [B, n, image_width] or None -> ([B, n + T, d], [B, n + T]).

        Raises ValueError for more positions than BART has, and for an image where none is expected.
        """
        return self._encode(input_ids, attention_mask, rule_ids, rule_slots, rule_mask, image)[:2]

    def _encode(self, input_ids: Tensor, attention_mask: Tensor, rule_ids: Tensor | None = None,
                rule_slots: Tensor | None = None, rule_mask: Tensor | None = None,
                image: Tensor | None = None) -> tuple[Tensor, Tensor, dict[int, Prefix]]:  # fmt: skip
        """`encode`, and the prefixes that the decoder takes (none unless `where="decoder"`)."""
        encoder, where = self.bart.model.encoder, self.config.where
        embedded = encoder.embed_tokens(input_ids)
        if image is not None:
            if self.visual is None:
                raise ValueError("image vectors were given but the configuration has image_width = 0")
            seen = self.visual(image.to(embedded.dtype)) + self.visual_position.to(embedded.dtype)
            embedded = torch.cat([seen, embedded], 1)
            attention_mask = torch.cat([attention_mask.new_ones(seen.shape[:2]), attention_mask], 1)
        longest = self.bart.config.max_position_embeddings
        if embedded.shape[1] > longest:
            raise ValueError(f"article and image make {embedded.shape[1]} positions; this BART takes {longest}; "
                             "cut the article (truncation=True in the tokenizer)")  # fmt: skip
        prefixes, out = {}, None
        if rule_ids is not None or self.config.source == "constant":
            if rule_ids is None:
                rule_ids = input_ids[:, :1]
                rule_slots, rule_mask = torch.zeros_like(rule_ids), torch.ones_like(rule_ids)
            prefixes, out = self.rule(encoder.embed_tokens(rule_ids), rule_slots, rule_mask)
        states = encoder(inputs_embeds=embedded, attention_mask=attention_mask,
                         rule_prefix=prefixes if where == "encoder" else None).last_hidden_state  # fmt: skip
        if out is not None and where == "cross":
            states = torch.cat([out.to(states.dtype), states], 1)
            extra = rule_mask if out.shape[1] == rule_mask.shape[1] else out.new_ones(out.shape[:2])
            attention_mask = torch.cat([extra.to(attention_mask.dtype), attention_mask], 1)
        return states, attention_mask, prefixes if where == "decoder" else {}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None,
                decoder_input_ids: Tensor | None = None, **inputs: Tensor | None) -> Seq2SeqLMOutput:  # fmt: skip
        """Caption loss (when `labels` [B, Y] are given, -100 is ignored) and logits [B, Y, V]."""
        states, mask, prefixes = self._encode(input_ids, attention_mask, **inputs)
        more = {"rule_prefix": prefixes} if prefixes else {}
        return self.bart(encoder_outputs=BaseModelOutput(states), attention_mask=mask, labels=labels,
                         decoder_input_ids=decoder_input_ids, use_cache=False, **more)  # fmt: skip

    @torch.no_grad()
    def generate(self, input_ids: Tensor, attention_mask: Tensor, rule_ids: Tensor | None = None,
                 rule_slots: Tensor | None = None, rule_mask: Tensor | None = None, image: Tensor | None = None,
                 **options: Any) -> Tensor:  # fmt: skip
        """Token ids of captions. The encoder runs once; `options` go to transformers' `generate` (beams, ...)."""
        states, mask, prefixes = self._encode(
            input_ids, attention_mask, rule_ids, rule_slots, rule_mask, image
        )
        with self._holding(prefixes):
            return self.bart.generate(encoder_outputs=BaseModelOutput(states), attention_mask=mask, **options)

    @contextlib.contextmanager
    def _holding(self, prefixes: dict[int, Prefix]) -> Iterator[None]:
        """Leave `prefixes` in the decoder's attentions, and take them away again."""
        held = [self.bart.model.decoder.layers[k].self_attn for k in prefixes]
        for attention in held:
            attention.held = prefixes
        try:
            yield
        finally:
            for attention in held:
                attention.held = None

    def train_only(self, what: str) -> RuleBart:
        """Choose what trains: "all", or "prefix" (BART frozen; rule encoder and image mapper train)."""
        if what not in ("all", "prefix"):
            raise ValueError(f"train_only is {what!r}; choose all or prefix")
        self.bart.requires_grad_(what == "all")
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """`folder/bart` (a plain BART checkpoint), `rule_prefix.safetensors` and `rule_prefix.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.bart.save_pretrained(folder / "bart")
        own = {
            k: v.detach().cpu().contiguous()
            for k, v in self.state_dict().items()
            if not k.startswith("bart.")
        }
        save_file(own, folder / "rule_prefix.safetensors")
        (folder / "rule_prefix.json").write_text(
            json.dumps(asdict(self.config), indent=1) + "\n", encoding="utf-8"
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> RuleBart:
        """The captioner saved in `folder`; `options` go to BART's `from_pretrained` (dtype, attention, ...)."""
        folder = Path(folder)
        if not (folder / "rule_prefix.json").is_file():
            raise ValueError(f"{folder} holds no rule_prefix.json; give a folder written by save_pretrained")
        config = RulePrefixConfig(**json.loads((folder / "rule_prefix.json").read_text(encoding="utf-8")))
        model = cls(BartForConditionalGeneration.from_pretrained(folder / "bart", **options), config)
        own = load_file(folder / "rule_prefix.safetensors")
        missing, unexpected = model.load_state_dict(own, strict=False)
        if unexpected or any(not k.startswith("bart.") for k in missing):
            raise ValueError(f"{folder} does not fit its configuration: {unexpected or missing}")
        return model.to(model.bart.dtype)


def random_bart(**sizes: Any) -> BartForConditionalGeneration:
    """A BART with random weights; `sizes` go to BartConfig. No forced tokens, so that tests see plain decoding."""
    options = {"forced_eos_token_id": None, "forced_bos_token_id": None, "pad_token_id": 1, "bos_token_id": 0,
               "eos_token_id": 2, "decoder_start_token_id": 2}  # fmt: skip
    return BartForConditionalGeneration(BartConfig(**(options | sizes)))
