"""Caption metrics exactly as transform-and-tell computes them, without Java: BLEU, ROUGE-L, CIDEr-D, entities.

Definitions follow coco-caption (as packaged in pycocoevalcap) and transform-and-tell's evaluation script; tests
hold their numbers. Nothing is lower-cased or stemmed, and no PTB tokeniser runs: punctuation is removed and the
text is split at whitespace (ROUGE-L: at each single space). Scores are fractions; tables print them times 100.

METEOR needs the METEOR 1.5 jar and Java (`meteor`); where either is missing it is None, never another METEOR.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

PUNCTUATION = re.compile(r"[^\w\s]")
PROTOCOLS = ("tell", "vacnic")


def clean(text: str) -> str:
    """Text without punctuation, otherwise as it is (double spaces stay: ROUGE-L sees them)."""
    return PUNCTUATION.sub("", text)


def _pairs(
    hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]
) -> list[tuple[str, list[str]]]:
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} captions for {len(references)} references; give one reference "
                         "(or list of references) per caption, and at least one")  # fmt: skip
    return [(h, [r] if isinstance(r, str) else list(r)) for h, r in zip(hypotheses, references, strict=True)]


def grams(words: Sequence[str], most: int = 4) -> Counter[tuple[str, ...]]:
    """Counts of all n-grams, n = 1..most."""
    return Counter(tuple(words[i : i + n]) for n in range(1, most + 1) for i in range(len(words) - n + 1))


def bleu(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], most: int = 4) -> list[float]:
    """Corpus BLEU-1..`most`, closest reference length, no smoothing beyond coco's 1e-15 and 1e-9."""
    correct, guess = [0] * most, [0] * most
    length, target = 0, 0
    for hypothesis, refs in _pairs(hypotheses, references):
        words = hypothesis.split()
        counts = grams(words, most)
        best: Counter = Counter()
        for r in refs:
            best |= grams(r.split(), most)
        for gram, n in counts.items():
            correct[len(gram) - 1] += min(n, best[gram])
        for n in range(most):
            guess[n] += max(0, len(words) - n)
        length += len(words)
        target += min((abs(len(r.split()) - len(words)), len(r.split())) for r in refs)[1]
    ratio = (length + 1e-15) / (target + 1e-9)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(most):
        product *= (correct[n] + 1e-15) / (guess[n] + 1e-9)
        scores.append(penalty * product ** (1 / (n + 1)))
    return scores


def longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence (bit-parallel: one word operation per token of `b`)."""
    where: dict[str, int] = {}
    for k, word in enumerate(a):
        where[word] = where.get(word, 0) | 1 << k
    full = (1 << len(a)) - 1
    v = full
    for word in b:
        u = v & where.get(word, 0)
        v = ((v + u) | (v - u)) & full
    return len(a) - v.bit_count()


def rouge_l(
    hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], beta: float = 1.2
) -> list[float]:
    """ROUGE-L of each item (coco: beta 1.2, best precision and best recall over references)."""
    scores = []
    for hypothesis, refs in _pairs(hypotheses, references):
        words = hypothesis.split(" ")
        common = [(longest_common(r.split(" "), words), len(r.split(" "))) for r in refs]
        precision = max(c / len(words) for c, _ in common)
        recall = max(c / n for c, n in common)
        scores.append(
            (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
            if precision and recall
            else 0.0
        )
    return scores


def cider_d(
    hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], sigma: float = 6.0
) -> list[float]:
    """CIDEr-D of each item; document frequencies from the references given, so scores depend on the set.

    The length penalty uses the difference of bigram counts, as the released code does.
    """
    pairs = _pairs(hypotheses, references)
    frequency: Counter = Counter()
    counted = [(grams(h.split()), [grams(r.split()) for r in refs]) for h, refs in pairs]
    for _, refs in counted:
        frequency.update({gram for r in refs for gram in r})
    log_n = math.log(len(pairs))

    def vector(counts: Counter) -> tuple[list[dict], list[float], int]:
        by_order: list[dict] = [{}, {}, {}, {}]
        norms, bigrams = [0.0] * 4, 0
        for gram, n in counts.items():
            weight = n * (log_n - math.log(max(1, frequency[gram])))
            by_order[len(gram) - 1][gram] = weight
            norms[len(gram) - 1] += weight * weight
            bigrams += n if len(gram) == 2 else 0
        return by_order, [math.sqrt(x) for x in norms], bigrams

    scores = []
    for h, refs in counted:
        hyp, hyp_norm, hyp_length = vector(h)
        total = 0.0
        for r in refs:
            ref, ref_norm, ref_length = vector(r)
            penalty = math.exp(-((hyp_length - ref_length) ** 2) / (2 * sigma**2))
            for n in range(4):
                dot = sum(min(w, ref[n][g]) * ref[n][g] for g, w in hyp[n].items() if g in ref[n])
                if hyp_norm[n] and ref_norm[n]:
                    total += penalty * dot / (hyp_norm[n] * ref_norm[n])
        scores.append(10 * total / 4 / len(refs))
    return scores


def meteor(
    hypotheses: Sequence[str], references: Sequence[str], jar: str | Path | None = None
) -> float | None:
    """METEOR 1.5 of the corpus by its own jar (`-l en -norm`), or None where Java or the jar is missing.

    `jar`: path of meteor-1.5.jar (it needs its `data` folder beside it); default `$COMPANION_METEOR_JAR`.
    """
    jar = jar or os.environ.get("COMPANION_METEOR_JAR")
    if not jar or not Path(jar).is_file() or not shutil.which("java"):
        return None
    lines = []
    for hypothesis, refs in _pairs(hypotheses, references):
        # the jar's own separator must not stand in a caption
        h, *rs = (re.sub(r"\s+", " ", t.replace("|||", "")).strip() for t in (hypothesis, *refs))
        lines.append("SCORE ||| " + " ||| ".join(rs) + " ||| " + h)
    call = ["java", "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    with subprocess.Popen(
        call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as p:
        stats = []
        for line in lines:
            p.stdin.write(line + "\n")
            p.stdin.flush()
            stats.append(p.stdout.readline().strip())
        p.stdin.write("EVAL ||| " + " ||| ".join(stats) + "\n")
        p.stdin.flush()
        for _ in stats:
            p.stdout.readline()
        score = float(p.stdout.readline())
        p.stdin.close()
        p.terminate()
    return score


# --- named entities ----------------------------------------------------------------------------------


class EntityMatcher(Protocol):
    """Finds names in a caption: `entities` as (text, label), `proper_nouns` as words; duplicates are kept."""

    def entities(self, text: str) -> list[tuple[str, str]]: ...

    def proper_nouns(self, text: str) -> list[str]: ...


@dataclass
class Gazetteer:
    """Names found by longest match in a list: name -> label. Needs no model and no download."""

    names: Mapping[str, str]

    def entities(self, text: str) -> list[tuple[str, str]]:
        found, at = [], 0
        for word in re.finditer(r"\w+", text):
            if word.start() < at:
                continue
            for name in self._starts.get(word.group(), ()):
                end = word.start() + len(name)
                if text.startswith(name, word.start()) and not (
                    text[end : end + 1].isalnum() and name[-1].isalnum()
                ):
                    found.append((name, self.names[name]))
                    at = end
                    break
        return found

    @cached_property
    def _starts(self) -> dict[str, list[str]]:
        """First word of a name -> names, longest first."""
        starts: dict[str, list[str]] = {}
        for name in sorted(self.names, key=len, reverse=True):
            if first := re.match(r"\w+", name):
                starts.setdefault(first.group(), []).append(name)
        return starts

    def proper_nouns(self, text: str) -> list[str]:
        return [word for name, _ in self.entities(text) for word in name.split()]


class Spacy:
    """Names found by a spaCy model (transform-and-tell: 2.1 of en_core_web_lg). Raises ValueError without it."""

    def __init__(self, model: str = "en_core_web_lg") -> None:
        try:
            import spacy

            self.nlp = spacy.load(model)
        except (ImportError, OSError) as error:
            raise ValueError(f"spaCy model {model!r} cannot be loaded ({error}); install spaCy and the model, "
                             "or use metrics.Gazetteer") from None  # fmt: skip
        self.version = f"spacy {spacy.__version__}, {model} {self.nlp.meta['version']}"

    def entities(self, text: str) -> list[tuple[str, str]]:
        return [(e.text, e.label_) for e in self.nlp(text).ents]

    def proper_nouns(self, text: str) -> list[str]:
        return [t.text for t in self.nlp(text) if t.pos_ == "PROPN"]


def _share(found: Iterable, among: Iterable[Iterable]) -> tuple[int, int]:
    hits = total = 0
    for mine, theirs in zip(found, among, strict=True):
        known = set(theirs)
        hits += sum(x in known for x in mine)
        total += len(mine)
    return hits, total


def entity_scores(hypotheses: Sequence[str], references: Sequence[str], matcher: EntityMatcher, *,
                  protocol: str = "tell", labels: Sequence[str] = (), known: Mapping[str, int] | None = None,
                  ) -> dict[str, float | None]:  # fmt: skip
    """Micro-averaged precision and recall of named entities, and of proper nouns (all and rare).

    A name counts when the other caption holds the same text with the same label; there is no one-to-one
    assignment. `labels` adds scores restricted to each label; `known` (words of training captions) adds the
    rare proper nouns. `protocol`: "tell" compares texts as they are, "vacnic" lower-cases them.
    A share of nothing is None.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; choose {' or '.join(PROTOCOLS)}")
    _pairs(hypotheses, references)
    case: Callable[[str], str] = str.lower if protocol == "vacnic" else str
    hyp = [[(case(t), label) for t, label in matcher.entities(x)] for x in hypotheses]
    ref = [[(case(t), label) for t, label in matcher.entities(x)] for x in references]
    found: dict[str, float | None] = {}

    def both(name: str, mine: list[list], theirs: list[list]) -> None:
        for kind, a, b in (("precision", mine, theirs), ("recall", theirs, mine)):
            hits, total = _share(a, b)
            found[f"{name}_{kind}"] = hits / total if total else None

    both("entity", hyp, ref)
    for label in labels:
        both(f"entity_{label}", *([[e for e in one if e[1] == label] for one in side] for side in (hyp, ref)))
    nouns = [[matcher.proper_nouns(x) for x in side] for side in (hypotheses, references)]
    both("proper", *nouns)
    if known is not None:
        both("rare", *([[w for w in one if w not in known] for one in side] for side in nouns))
    return found


def transliterate(text: str) -> str:
    """ASCII letters for accented ones (the "vacnic" protocol's step before n-gram scores; letters only)."""
    import unicodedata

    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


def evaluate(hypotheses: Sequence[str], references: Sequence[str], matcher: EntityMatcher | None = None, *,
             protocol: str = "tell", labels: Sequence[str] = (), known: Mapping[str, int] | None = None,
             jar: str | Path | None = None) -> dict[str, float | None]:  # fmt: skip
    """All scores of a caption table as percentages: bleu4, meteor, rouge_l, cider, entity precision and recall."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol is {protocol!r}; choose {' or '.join(PROTOCOLS)}")
    prepare = (lambda t: clean(transliterate(t))) if protocol == "vacnic" else clean
    h, r = [prepare(x) for x in hypotheses], [prepare(x) for x in references]
    found: dict[str, float | None] = {f"bleu{n + 1}": x for n, x in enumerate(bleu(h, r))}
    found["meteor"] = meteor(h, r, jar)
    found["rouge_l"] = math.fsum(rouge_l(h, r)) / len(h)
    found["cider"] = math.fsum(cider_d(h, r)) / len(h)
    if matcher is not None:
        found |= entity_scores(hypotheses, references, matcher, protocol=protocol, labels=labels, known=known)
    return {k: None if v is None else 100 * v for k, v in found.items()}
