"""Caption metrics: 20,000 captions on one core, and the same numbers from other people's ports.

    python benchmarks/newscap_metrics.py [CAPTIONS]

Captions are made (18 words on average, with names), so that no news text is needed. Compared where they are installed:
BLEU-4 with sacrebleu (no tokeniser, no smoothing), ROUGE-L with rouge-score (beta = 1, no stemmer), BLEU-4, ROUGE-L and
CIDEr-D with pycocoevalcap and aac-metrics. Prints and writes `newscap_metrics.json` beside it.
"""

import importlib
import random
import string
import sys
import time
from importlib import metadata
from pathlib import Path

from companion import records
from companion.newscap import metrics

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
COMPARED = 2000  # captions for the comparison: the other ports are slower


def captions(count: int, seed: int = 0) -> tuple[list[str], list[str], dict[str, str]]:
    """Pairs (generated, reference) that share most words, and the names in them with their labels."""
    rng = random.Random(seed)

    def word(capital: bool = False) -> str:
        text = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9)))
        return text.title() if capital else text

    common = [word() for _ in range(4000)]
    names = {f"{word(True)} {word(True)}": rng.choice(("PERSON", "ORG", "GPE")) for _ in range(20_000)}
    listed = list(names)
    hypotheses, references = [], []
    for _ in range(count):
        words = [rng.choice(common) for _ in range(rng.randint(8, 20))]
        for _ in range(3):
            words.insert(rng.randrange(len(words)), rng.choice(listed))
        said = [w if rng.random() < 0.7 else rng.choice(common) for w in words][: rng.randint(6, 30)]
        references.append(" ".join(words) + ".")
        hypotheses.append(", ".join([" ".join(said[:4]), " ".join(said[4:])]))
    return hypotheses, references, names


def mean(values: list[float]) -> float:
    """Mean of a list."""
    return sum(values) / len(values)


def others(h: list[str], r: list[str]) -> dict[str, dict[str, float]]:
    """port -> score -> our value minus theirs, for the ports that are installed. Texts come without punctuation."""
    ours = {
        "bleu4": metrics.bleu(h, r)[3],
        "rouge_l": mean(metrics.rouge_l(h, r)),
        "cider": mean(metrics.cider_d(h, r)),
    }
    found: dict[str, dict[str, float]] = {}

    def note(port: str, **theirs: float) -> None:
        name = f"{port} {metadata.version(port)}"
        found.setdefault(name, {}).update({k: round(ours.get(k, 0.0) - v, 9) for k, v in theirs.items()})

    if importlib.util.find_spec("sacrebleu"):
        import sacrebleu

        note(
            "sacrebleu",
            bleu4=sacrebleu.corpus_bleu(h, [r], tokenize="none", smooth_method="none", force=True).score
            / 100,
        )
    if importlib.util.find_spec("rouge_score"):
        from rouge_score import rouge_scorer, tokenizers

        class Words(tokenizers.Tokenizer):
            def tokenize(self, text: str) -> list[str]:
                return text.split(" ")

        scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=Words())
        theirs = mean([scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(h, r, strict=True)])
        note("rouge-score", **{"rouge_l (beta 1)": theirs - mean(metrics.rouge_l(h, r, beta=1.0))})
    if importlib.util.find_spec("pycocoevalcap"):
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        gts, res = {k: [x] for k, x in enumerate(r)}, {k: [x] for k, x in enumerate(h)}
        note("pycocoevalcap", bleu4=Bleu(4).compute_score(gts, res, verbose=0)[0][3], rouge_l=Rouge().compute_score(gts, res)[0],
             cider=Cider().compute_score(gts, res)[0])  # fmt: skip
    if importlib.util.find_spec("aac_metrics"):
        from aac_metrics.functional.bleu import bleu
        from aac_metrics.functional.cider_d import cider_d
        from aac_metrics.functional.rouge_l import rouge_l

        refs = [[x] for x in r]
        note("aac-metrics", bleu4=float(bleu(h, refs, n=4, tokenizer=str.split)[0]["bleu_4"]),
             rouge_l=float(rouge_l(h, refs, tokenizer=lambda t: t.split(" "))[0]["rouge_l"]),
             cider=float(cider_d(h, refs, tokenizer=str.split)[0]["cider_d"]))  # fmt: skip
    return found


def main() -> None:
    """Measure and report."""
    h, r, names = captions(COUNT)
    began = time.process_time()
    scores = metrics.evaluate(h, r, metrics.Gazetteer(names), labels=("PERSON", "ORG", "GPE"), known={})
    seconds = time.process_time() - began
    report = {"captions": COUNT, "core seconds": round(seconds, 2), "names in the gazetteer": len(names),
              "scores": {k: round(v, 4) for k, v in scores.items() if v is not None}, "processor": records.processor()}  # fmt: skip
    print(report)
    few = [metrics.clean(x) for x in h[:COMPARED]], [metrics.clean(x) for x in r[:COMPARED]]
    report["compared captions"] = len(few[0])
    report["ours minus theirs"] = others(*few)
    print(report["ours minus theirs"])
    records.write_json(Path(__file__).with_suffix(".json"), report | {"versions": records.versions()})


if __name__ == "__main__":
    main()
