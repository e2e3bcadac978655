"""The recorded pre-training behind the small committed weights: `python -m companion.reactiont5.pretrain FOLDER`.

Stage 1 (CompoundT5): span corruption on the world's molecules. Stage 2 (ReactionT5): forward prediction on the
seen reaction types; and, as another model, yields of the same reactions, from stage 1. About ten minutes on one
core; nothing else in the project repeats it. The paper starts stage 2 from stage 1; at this size that was worse than
random weights (`weights/tried.json`), so the default starts from scratch.
`record.json` beside the weights says what was done and what came out.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from companion import records, training
from companion.reactiont5 import train, world
from companion.reactiont5.beam import beam_search
from companion.reactiont5.metrics import accuracy, yield_errors
from companion.reactiont5.model import T5, ReactionYield, seq2seq_loss

WEIGHTS = Path(__file__).parent / "weights"
STAGES = ("compound", "reaction", "yield")


@dataclass(frozen=True)
class Plan:
    """Settings of the three trainings."""

    width: int = 96
    layers: int = 2
    compound_steps: int = 1500
    compound_batch: int = 24
    compound_lr: float = 3e-3
    reaction_start: str = "scratch"  # compound (as published) or scratch; see tried.json
    reaction_steps: int = 2000
    reaction_batch: int = 32
    reaction_lr: float = 3e-3
    reaction_final: float = 0.05  # learning rate at the end, as a share; 0.02 in the other two
    yield_steps: int = 1000
    yield_lr: float = 1e-3
    seed: int = 0


def _config(steps: int, lr: float, final: float = 0.02) -> training.FitConfig:
    return training.FitConfig(steps=steps, lr=lr, warmup=100, schedule="linear", final_lr=final, weight_decay=0.01,
                              betas=(0.9, 0.98), evaluate_every=500, save_every=500)  # fmt: skip


def fit_molecules(folder: Path, plan: Plan) -> None:
    """Stage 1: span corruption; writes `compound.safetensors` and `compound.json`."""
    training.seed_everything(plan.seed, threads=1)
    tok, model, text = train.tokenizer(), T5(train.small_config(plan.width, plan.layers)), train.molecules()
    check = train.masked(text, tok, plan.seed + 1, 64)(0)
    fitted = training.fit(
        model, seq2seq_loss, train.masked(text, tok, plan.seed, plan.compound_batch),
        _config(plan.compound_steps, plan.compound_lr), folder=folder / "stage-1", title="molecules", cpu=True,
        evaluate=lambda m: {"valid_loss": seq2seq_loss(m, check)},
    )  # fmt: skip
    store(model, folder / "compound.safetensors")
    records.write_json(folder / "compound.json", {"examples": len(text), "curves": fitted.curves})


def fit_reactions(folder: Path, plan: Plan) -> None:
    """Stage 2: products of the seen types; writes `reaction.safetensors` and `reaction.json`."""
    known, held_back = train.seen_reactions()
    tok = train.tokenizer()
    pairs, valid = train.forward_pairs(known, tok), train.forward_pairs(held_back, tok)
    training.seed_everything(plan.seed, threads=1)
    model = T5(train.small_config(plan.width, plan.layers))
    if plan.reaction_start == "compound":
        model.load_state_dict(_read(folder / "compound.safetensors"))

    def examine(m: T5) -> dict[str, float]:
        found = accuracy([r.product for r in held_back], answers(m, valid.ids, 1), tops=(1,))
        return {"valid_exact": found.top[1], "valid_invalid": found.invalid}

    fitted = train.fit_forward(model, pairs, _config(plan.reaction_steps, plan.reaction_lr, plan.reaction_final),
                               plan.reaction_batch, plan.seed, folder=folder / "stage-2", title="reactions", cpu=True,
                               evaluate=examine)  # fmt: skip
    store(model, folder / "reaction.safetensors")
    records.write_json(folder / "reaction.json", {"examples": len(known), "curves": fitted.curves})


def fit_yields(folder: Path, plan: Plan) -> None:
    """Yields of the seen types, from stage 1; writes `yield.safetensors` and `yield.json`."""
    known, held_back = train.seen_reactions()
    tok = train.tokenizer()
    training.seed_everything(plan.seed, threads=1)
    regressor = ReactionYield(train.small_config(plan.width, plan.layers))
    load_backbone(regressor, _read(folder / "compound.safetensors"))
    measured = train.yield_pairs(world.with_yields(known, plan.seed), tok)
    unseen = train.yield_pairs(world.with_yields(held_back, plan.seed + 1), tok)

    def judge(m: ReactionYield) -> dict[str, float]:
        found = yield_errors([100 * y for y in unseen.yields], train.predicted_yields(m, unseen))
        return {"valid_r2": found["r2"], "valid_rmse": found["rmse"]}

    fitted = train.fit_yield(regressor, measured, _config(plan.yield_steps, plan.yield_lr), plan.reaction_batch,
                             plan.seed, folder=folder / "stage-yield", title="yields", evaluate=judge, cpu=True)  # fmt: skip
    store(regressor, folder / "yield.safetensors")
    records.write_json(folder / "yield.json", {"examples": len(known), "curves": fitted.curves})


def summary(folder: Path, plan: Plan, remark: str = "") -> dict:
    """Exact match per reaction type and all curves; writes `record.json`."""
    known, held_back = train.seen_reactions()
    tok, model = train.tokenizer(), T5(train.small_config(plan.width, plan.layers))
    model.load_state_dict(_read(folder / "reaction.safetensors"))
    per_type = {}
    for kind in world.TYPES:
        some = [r for r in held_back if r.kind == kind] or world.reactions(kind, 20, seed=99)
        found = accuracy([r.product for r in some], answers(model, train.forward_pairs(some, tok).ids, 5))
        per_type[kind] = {
            "top1": found.top[1],
            "top5": found.top[5],
            "invalid": found.invalid,
            "tests": found.targets,
        }
    parts = {name: json.loads((folder / f"{name}.json").read_text())
             for name in STAGES if (folder / f"{name}.json").is_file()}  # fmt: skip
    record = {
        "plan": asdict(plan), "remark": remark, "molecules": parts["compound"]["examples"], "reactions": len(known),
        "validation": len(held_back), "parameters": sum(p.numel() for p in model.parameters()), "per_type": per_type,
        "curves": {name: part["curves"] for name, part in parts.items()},
        "provenance": {"code": records.loaded_code(), **records.commit(), "versions": records.versions(),
                       "processor": records.processor(), "threads": torch.get_num_threads(),
                       "data": records.fingerprint([[r.reactant, r.reagent, r.product] for r in known])},
    }  # fmt: skip
    records.write_json(folder / "record.json", record)
    return record


def run(folder: Path, plan: Plan = Plan()) -> dict:
    """All of it; parts whose weights are in `folder` already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, fit in (("compound", fit_molecules), ("reaction", fit_reactions), ("yield", fit_yields)):
        if not (folder / f"{name}.json").is_file():
            fit(folder, plan)
    return summary(
        folder, plan, (folder / "remark.txt").read_text() if (folder / "remark.txt").is_file() else ""
    )


def answers(model: T5, ids: list[list[int]], beams: int, most: int = 52, batch: int = 100) -> list[list[str]]:
    """Predicted SMILES per input, best first."""
    tok, found = train.tokenizer(), []
    model.eval()
    for k in range(0, len(ids), batch):
        sequences, _ = beam_search(model, train.padded(ids[k : k + batch]), beams, most)
        found += [[tok.decode(s) for s in group] for group in sequences]
    return found


def load_backbone(regressor: ReactionYield, state: dict[str, torch.Tensor]) -> None:
    """Copy a sequence model's weights into the regressor's T5; its output matrix has no place there."""
    regressor.model.load_state_dict({k: w for k, w in state.items() if k != "lm_head.weight"})


def store(model: torch.nn.Module, path: Path) -> None:
    """Weights small enough for a repository: matrices as 8-bit numbers with one scale per row, the rest halved."""
    out = {}
    for name, w in model.state_dict().items():
        if w.ndim == 2:
            scale = w.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
            out[f"{name}.q"], out[f"{name}.s"] = (w / scale).round().to(torch.int8), scale
        else:
            out[name] = w.half()
    save_file({name: w.contiguous() for name, w in out.items()}, path)


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The weights of `store` as float32."""
    held = load_file(path)
    plain = {name: w.float() for name, w in held.items() if not name.endswith((".q", ".s"))}
    return plain | {
        name[:-2]: w.float() * held[f"{name[:-2]}.s"] for name, w in held.items() if name.endswith(".q")
    }


@lru_cache(maxsize=4)
def _stored(stage: str) -> dict[str, torch.Tensor]:
    return _read(WEIGHTS / f"{stage}.safetensors")


def small_model(stage: str, seed: int = 0) -> T5:
    """The reduced scale's network: `reaction` (both stages), `compound` (stage 1 only) or `scratch` (random).

    Raises ValueError for another stage.
    """
    model = T5(_sizes(stage, ("reaction", "compound"), seed))
    if stage != "scratch":
        model.load_state_dict(_stored(stage))
    return model


def small_yield_model(stage: str, seed: int = 0) -> ReactionYield:
    """The reduced scale's yield regressor: backbone of the `reaction` or `compound` model, or `scratch`; `yield` where
    the yield stage has been trained. Raises ValueError for another stage, or where that one is missing."""
    model = ReactionYield(_sizes(stage, STAGES, seed))
    if stage == "yield":
        if not (WEIGHTS / "yield.safetensors").is_file():
            raise ValueError(
                "start 'yield' has no weights yet; run python -m companion.reactiont5.pretrain and copy them"
            )
        model.load_state_dict(_stored(stage))
    elif stage != "scratch":
        load_backbone(model, _stored(stage))
    return model


def _sizes(stage: str, known: tuple[str, ...], seed: int):
    if stage not in (*known, "scratch"):
        raise ValueError(f"start {stage!r} does not exist; choose {', '.join(known)} or scratch")
    plan = json.loads((WEIGHTS / "record.json").read_text())["plan"]
    training.seed_everything(seed, threads=1)
    return train.small_config(plan["width"], plan["layers"])


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]))["per_type"], indent=1))
