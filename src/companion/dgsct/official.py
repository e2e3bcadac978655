"""A published DG-SCT checkpoint into a whole `DualGuidedEncoder`: both towers and all units.

Written from the parameter names of the published classes; no released checkpoint could be fetched here, so it is tested on
checkpoints that the tests write in that layout. Task heads are left to the caller, who gets the names that were not used.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from companion.dgsct import checkpoints
from companion.dgsct.model import DualGuidedEncoder, load_official

# our list of units -> the published one; unit k belongs to the k-th pair of layers in both
BLOCKS: Mapping[str, str] = {
    "visual_1": "vis_adapter_blocks_p1", "audio_1": "audio_adapter_blocks_p1",
    "visual_2": "vis_adapter_blocks_p2", "audio_2": "audio_adapter_blocks_p2",
}  # fmt: skip


def load_official_encoder(
    encoder: DualGuidedEncoder, state: Mapping[str, Tensor], towers: bool = True
) -> list[str]:
    """Fill `encoder` (Swin-V2 with HTS-AT) from the state dict of a published model of the main tasks.

    Its units compute operation by operation as published from then on; `companion.dgsct.fast.fuse(encoder)` replaces them
    by fused ones, equal up to rounding.

    Args:
        encoder: towers and `PRESETS` of the task that the checkpoint belongs to.
        state: names as published, with or without the prefix `module.` of parallel training.
        towers: also read `swin.*` and `htsat.*`; False leaves the towers as they are.

    Returns:
        The names that were not used, sorted: the task's head and what no output depends on.

    Raises:
        ValueError: where units or weights are missing, left over or of another shape.
    """
    state = {k.removeprefix("module."): v for k, v in state.items()}
    used = set()

    def part(prefix: str) -> dict[str, Tensor]:
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        used.update(prefix + k for k in found)
        return found

    for ours, theirs in BLOCKS.items():
        units = getattr(encoder, ours) or []
        there = {k.split(".")[1] for k in state if k.startswith(f"{theirs}.")}
        if len(there) != len(units):
            raise ValueError(
                f"the checkpoint holds {len(there)} units of {theirs!r}; this encoder has {len(units)}"
            )
        for k, unit in enumerate(units):
            try:
                load_official(unit, part(f"{theirs}.{k}."))
            except ValueError as error:
                raise ValueError(f"{theirs}.{k}: {error}") from None
    if towers:
        checkpoints.load_timm_swinv2(encoder.visual.model, part("swin."))
        checkpoints.load_htsat(encoder.audio.encoder, part("htsat."))
    return sorted(state.keys() - used)
