"""DG-SCT (Duan et al., NeurIPS 2023): audio and vision prompt each other inside frozen encoders.

Rooms, from the method outwards: `model` (the unit and the pairing of two encoders), `plain` (the unit's operations
as published, to compare with), `towers` (Swin-V2, HTS-AT, CLIP and small encoders behind one interface), `audio`
(waveform to log-mel image), `tasks`, `masks` and `prompts` (heads and losses of the main tasks, of segmentation, and
of the few- and zero-shot tasks), `metrics`, `data` (public annotation formats), `media` (extracted frames and sounds of
these sets), `extract` (the command that extracts them), `full` (training on them), `checkpoints` and `official` (published
weights of the towers, and of a whole model), `fast` (the units fused), `cost`; and for the reduced scale
`world`, `pretrain`, `binding`, `events`, `parsing`, `digits`; `summary` makes the chapter's tables from the records.
"""

import importlib

_WHERE = {"CrossModalPrompt": "model", "DualGuidedEncoder": "model", "PromptConfig": "model", "PRESETS": "model",
          "load_official": "model", "swinv2_tower": "towers", "htsat_tower": "towers", "clip_tower": "towers",
          "LogMel": "audio", "repeat_to": "audio", "read_clip": "audio", "AVEHead": "tasks", "AVVPHead": "tasks",
          "AVQAHead": "tasks", "AVSHead": "masks", "FewShotHead": "prompts"}  # fmt: skip
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"companion.dgsct has no {name!r}; it has {', '.join(__all__)}")
