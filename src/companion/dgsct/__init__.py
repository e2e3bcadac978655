"""DG-SCT (Duan et al., NeurIPS 2023): audio and vision prompt each other inside frozen encoders.

Rooms: `model` (the unit and the pairing of two encoders), `towers` (Swin-V2, HTS-AT, CLIP and small encoders
behind one interface), `audio` (waveform to log-mel image), `data` (public annotation formats and the worlds of
the reduced scale), `tasks` (heads and losses), `metrics`, `baselines`, `binding` (the reduced experiment), `cost`.
"""

import importlib

_WHERE = {"CrossModalPrompt": "model", "DualGuidedEncoder": "model", "PromptConfig": "model", "PRESETS": "model",
          "load_official": "model", "swinv2_tower": "towers", "htsat_tower": "towers", "clip_tower": "towers",
          "LogMel": "audio", "repeat_to": "audio", "AVEHead": "tasks", "AVVPHead": "tasks", "AVSHead": "tasks",
          "AVQAHead": "tasks"}  # fmt: skip
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"companion.dgsct has no {name!r}; it has {', '.join(__all__)}")
