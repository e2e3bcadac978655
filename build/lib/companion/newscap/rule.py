"""The news-aware semantic rule: what happens in the image, and which named entity plays which role in it.

A rule is a verb of imSitu, its roles, and for each filled role one or more named entities with scores. `Frames`
says which verbs and roles exist, `fill_roles` puts entities into roles, `Rule` prints, edits, stores and spells
itself as the token string that BART's prefixes are made of.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

TYPES = ("PER", "ORG", "LOC")
RULE, END, ROLE, ENT = "<rule>", "</rule>", "<role>", "<ent>"
MARKERS = (RULE, END, ROLE, ENT)
# what a token of a spelt rule is: marker, verb, name of a role, part of an entity
MARK, VERB, ROLE_NAME, ENTITY = range(4)

# Spelling of the roles as in the SWiG role list, misprints included.
PERSON_ROLES = frozenset(
    [
        "addressee",
        "admired",
        "adressee",
        "agent",
        "agents",
        "audience",
        "baptized",
        "beneficiary",
        "blocked",
        "blocker",
        "boaters",
        "buyer",
        "carrier",
        "chasee",
        "coagent",
        "confronted",
        "coparticipant",
        "crownedentity",
        "decorated",
        "depicted",
        "eater",
        "entityhelped",
        "experiencer",
        "farmer",
        "follower",
        "gatherers",
        "giver",
        "hugged",
        "hunted",
        "individuals",
        "interviewee",
        "listener",
        "mourner",
        "naggedperson",
        "patient",
        "perceiver",
        "performer",
        "pinned",
        "reassured",
        "receiver",
        "reciever",
        "recipient",
        "recipients",
        "restrained",
        "seller",
        "served",
        "slider",
        "student",
        "supported",
        "suspect",
        "target",
        "teacher",
        "tickled",
        "traveler",
        "undergoer",
        "victim",
        "yanked",
    ]
)
PLACE_ROLES = frozenset(["place", "destination", "start", "end", "path", "shelter", "stage", "ground"])
EVENT_ROLES = frozenset(["event", "occasion", "competition", "against"])


class RuleError(ValueError):
    """A rule that no frame allows; the message is one sentence."""


@dataclass(frozen=True)
class Entity:
    """A named entity of an article. `type`: PER, ORG or LOC; `score`: how well it fits the image or role."""

    text: str
    type: str
    score: float | None = None

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise RuleError(f"entity {self.text!r} has type {self.type!r}; choose {', '.join(TYPES)}")
        if not self.text.strip() or any(mark in self.text for mark in MARKERS):
            raise RuleError(
                f"entity {self.text!r} is empty or holds a rule marker; give the name as it stands in the article"
            )


@dataclass(frozen=True)
class Frames:
    """Which verbs there are and which roles each has, in order. `roles` of a verb never number more than six."""

    verbs: Mapping[str, tuple[str, ...]]
    abstracts: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @staticmethod
    @lru_cache(maxsize=1)
    def imsitu() -> Frames:
        """The 504 verbs and 190 roles of imSitu, in SWiG's spelling (ships with the package)."""
        content = json.loads(Path(__file__).with_name("frames.json").read_text(encoding="utf-8"))
        return Frames({verb: tuple(roles) for verb, roles in content["verbs"].items()})

    @staticmethod
    def from_space(path: str | Path) -> Frames:
        """Frames of an `imsitu_space.json`, with its sentences and role definitions."""
        try:
            verbs = json.loads(Path(path).read_text(encoding="utf-8"))["verbs"]
            return Frames({v: tuple(f["order"]) for v, f in verbs.items()}, {v: f["abstract"] for v, f in verbs.items()},
                          {v: {r: d["def"] for r, d in f["roles"].items()} for v, f in verbs.items()})  # fmt: skip
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise RuleError(f"{path} is not an imsitu_space.json: it needs verbs with order, abstract and roles "
                            f"({type(error).__name__}: {error})") from None  # fmt: skip

    def roles(self, verb: str) -> tuple[str, ...]:
        """The roles of `verb`. Raises RuleError, with the nearest verbs, for one that imSitu does not have."""
        if verb not in self.verbs:
            near = difflib.get_close_matches(verb, self.verbs, n=3, cutoff=0.4)
            raise RuleError(f"verb {verb!r} is not among the {len(self.verbs)} verbs"
                            + (f"; did you mean {', '.join(near)}?" if near else ""))  # fmt: skip
        return self.verbs[verb]

    def sentence(self, verb: str) -> str:
        """A line that says the frame, such as "hugging (agent, hugged, agentpart, place)"."""
        return self.abstracts.get(verb) or f"{verb} ({', '.join(self.roles(verb))})"


def allowed_types(role: str, events: bool = False) -> tuple[str, ...]:
    """Entity types that may fill `role`, the preferred one first; event-like roles only where `events`."""
    if role in PLACE_ROLES:
        return ("LOC",)
    if role in PERSON_ROLES:
        return ("PER", "ORG")
    return ("ORG", "LOC") if events and role in EVENT_ROLES else ()


@dataclass(frozen=True)
class Rule:
    """verb, and role -> entities. Checked against `frames` (imSitu's by default) when it is made.

    `nouns` and `boxes` keep what situation recognition saw in each role: a word, and (x1, y1, x2, y2) in pixels.
    """

    verb: str
    roles: Mapping[str, tuple[Entity, ...]] = field(default_factory=dict)
    score: float | None = None
    nouns: Mapping[str, str] = field(default_factory=dict)
    boxes: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    frames: Frames = field(default_factory=Frames.imsitu, repr=False, compare=False)

    def __post_init__(self) -> None:
        order = self.frames.roles(self.verb)
        given = {**dict.fromkeys(self.roles), **dict.fromkeys(self.nouns), **dict.fromkeys(self.boxes)}
        for role in given:
            if role not in order:
                raise RuleError(f"{self.verb} has no role {role!r}; its roles are {', '.join(order)}")
        kept = {role: tuple(self.roles[role]) for role in order if self.roles.get(role)}
        object.__setattr__(self, "roles", kept)

    # --- reading it

    def __str__(self) -> str:
        inside = ", ".join(
            f"{role} = {' & '.join(e.text for e in found)}" for role, found in self.roles.items()
        )
        return f"{self.verb}({inside})"

    @property
    def entities(self) -> tuple[Entity, ...]:
        """All entities of the rule in the order of the frame."""
        return tuple(e for found in self.roles.values() for e in found)

    def pieces(self) -> list[tuple[str, int]]:
        """The rule as (piece of text, kind of piece): the source of both the string and the slot numbers."""
        found = [(RULE, MARK), (self.verb, VERB)]
        for role, entities in self.roles.items():
            found += [(ROLE, MARK), (role, ROLE_NAME)]
            for entity in entities:
                found += [(ENT, MARK), (entity.text, ENTITY)]
        return [*found, (END, MARK)]

    def spell(self) -> str:
        """The exact string whose tokens become prefixes."""
        return " ".join(text for text, _ in self.pieces())

    # --- changing it

    def edit(self, *, verb: str | None = None, swap: tuple[str, str] | None = None, drop: str | Iterable[str] = (),
             **roles: str | Entity | Sequence[Entity] | None) -> Rule:  # fmt: skip
        """A changed copy: another verb, two roles swapped, roles dropped, or roles given anew.

        With another verb, entities move to the new frame's roles of the same class in order (agent to agent,
        second person to second person, place to place); what has no role there is dropped. Roles are given as
        text (its type follows from the role) or as entities; None empties a role.
        """
        found = dict(self.roles)
        rule = self
        if verb is not None and verb != self.verb:
            rule = replace(self, verb=verb, roles=carry(found, self.frames.roles(verb)), nouns={}, boxes={})
            found = dict(rule.roles)
        if swap:
            for role in swap:
                if role not in rule.frames.roles(rule.verb):
                    raise RuleError(
                        f"{rule.verb} has no role {role!r}; its roles are {', '.join(rule.frames.roles(rule.verb))}"
                    )
            found[swap[0]], found[swap[1]] = found.get(swap[1], ()), found.get(swap[0], ())
        for role in [drop] if isinstance(drop, str) else drop:
            if role not in found:
                raise RuleError(
                    f"role {role!r} is not filled in {rule}; filled are {', '.join(found) or 'none'}"
                )
            del found[role]
        for role, value in roles.items():
            if value is None:
                found.pop(role, None)
            elif isinstance(value, str):
                found[role] = (Entity(value, (allowed_types(role, events=True) or ("ORG",))[0]),)
            else:
                found[role] = (value,) if isinstance(value, Entity) else tuple(value)
        return replace(rule, roles=found)

    # --- storing it

    def to_json(self) -> str:
        """One JSON object; `from_json` gives an equal rule."""
        return json.dumps({
            "verb": self.verb, "score": self.score,
            "roles": {role: {"entities": [{"text": e.text, "type": e.type, "score": e.score} for e in self.roles.get(role, ())],
                             "noun": self.nouns.get(role), "box": list(self.boxes[role]) if role in self.boxes else None}
                      for role in self.frames.roles(self.verb)
                      if role in self.roles or role in self.nouns or role in self.boxes},
        }, ensure_ascii=False)  # fmt: skip

    @classmethod
    def from_json(cls, text: str, frames: Frames | None = None) -> Rule:
        """The rule of `to_json`, checked again. Raises RuleError for anything else."""
        try:
            content = json.loads(text)
            parts = content["roles"]
            roles = {
                r: tuple(Entity(e["text"], e["type"], e.get("score")) for e in p["entities"])
                for r, p in parts.items()
            }
            nouns = {r: p["noun"] for r, p in parts.items() if p.get("noun")}
            boxes = {r: tuple(p["box"]) for r, p in parts.items() if p.get("box")}
            verb, score = content["verb"], content.get("score")
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise RuleError(
                f"not a rule in JSON ({type(error).__name__}: {error}); it needs verb and roles"
            ) from None
        return cls(verb, roles, score, nouns, boxes, frames or Frames.imsitu())

    @classmethod
    def parse(cls, text: str, types: Mapping[str, str] | None = None, frames: Frames | None = None) -> Rule:
        """The rule spelt by `spell`. Types of entities are looked up in `types`, else follow from the role."""
        words = text.strip()
        if not (words.startswith(RULE) and words.endswith(END)):
            raise RuleError(f"a rule starts with {RULE} and ends with {END}; got {text!r}")
        head, *parts = words[len(RULE) : -len(END)].split(ROLE)
        roles = {}
        for part in parts:
            role, *entities = (piece.strip() for piece in part.split(ENT))
            kind = (allowed_types(role, events=True) or ("ORG",))[0]
            roles[role] = tuple(Entity(e, (types or {}).get(e, kind)) for e in entities)
        return cls(head.strip(), roles, frames=frames or Frames.imsitu())

    def show(self, image: Any = None, ax: Any = None) -> Any:
        """Draw the rule beside `image` (an array [h, w, 3] or a PIL image), its boxes on it. Returns the axes."""
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5.4, 3.2))[1]
        ax.set_axis_off()
        width = 1.0
        if image is not None:
            ax.imshow(image, interpolation="nearest")
            height, width = (
                (image.size[1], image.size[0])
                if hasattr(image, "size") and hasattr(image, "convert")
                else image.shape[:2]
            )
        else:
            height = 1.0
            ax.set_ylim(1, 0)
        colours = plt.rcParams["axes.prop_cycle"].by_key()["color"]
        lines = [(self.verb, "#1f2933")]
        for k, role in enumerate(
            r for r in self.frames.roles(self.verb) if r in self.roles or r in self.boxes
        ):
            colour = colours[k % len(colours)]
            names = " & ".join(e.text for e in self.roles.get(role, ())) or "–"
            noun = f" ({self.nouns[role]})" if role in self.nouns else ""
            lines.append((f"{role}: {names}{noun}", colour))
            if role in self.boxes and image is not None:
                x1, y1, x2, y2 = self.boxes[role]
                ax.add_patch(
                    plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2)
                )
        for k, (text, colour) in enumerate(lines):
            ax.text(
                width * 1.05,
                height * (0.1 + 0.14 * k),
                text,
                color=colour,
                fontweight="bold" if k == 0 else "normal",
            )
        return ax


def role_class(role: str) -> str:
    """ "person", "place", "event" or "thing"."""
    for name, group in (("person", PERSON_ROLES), ("place", PLACE_ROLES), ("event", EVENT_ROLES)):
        if role in group:
            return name
    return "thing"


def carry(roles: Mapping[str, tuple[Entity, ...]], order: Sequence[str]) -> dict[str, tuple[Entity, ...]]:
    """Entities of `roles` moved into a frame with the roles `order`: same class, same rank within the class."""
    found = {}
    for kind in ("person", "place", "event", "thing"):
        old = [r for r in roles if role_class(r) == kind]
        new = [r for r in order if role_class(r) == kind]
        found |= {n: roles[o] for o, n in zip(old, new, strict=False)}
    return found


def fill_roles(verb: str, entities: Sequence[Entity], fit: Callable[[str, Entity], float], *,
               frames: Frames | None = None, threshold: float | None = None, most: int = 2, tie: float = 0.02,
               events: bool = False, **seen: Any) -> Rule:  # fmt: skip
    """Put entities into the roles of `verb`: the type must suit, then `fit(role, entity)` decides (one entity, one role).

    Roles are served in frame order; a person-like role takes PER before ORG. One agent-like role, the first,
    may take up to `most` entities whose fits differ by less than `tie`. Entities below `threshold` are not
    used; roles that nobody fills are left out. `seen` (score, nouns, boxes) goes to the rule.

    This procedure is ours: the paper's is in no text that could be read.
    """
    frames = frames or Frames.imsitu()
    left = list(dict.fromkeys(entities))
    roles: dict[str, tuple[Entity, ...]] = {}
    order = frames.roles(verb)
    first = next((r for r in order if role_class(r) == "person"), None)
    rivals = [r for r in order if role_class(r) == "person"]
    for role in order:
        for kind in allowed_types(role, events):
            ranked = sorted(
                ((fit(role, e), -k, e) for k, e in enumerate(left) if e.type == kind), reverse=True
            )
            ranked = [x for x in ranked if threshold is None or x[0] >= threshold]
            if not ranked:
                continue
            best = ranked[0][0]
            taken = [ranked[0]]
            if role == first and len(rivals) == 1:
                taken += [x for x in ranked[1:most] if best - x[0] < tie]
            roles[role] = tuple(replace(e, score=round(float(s), 4)) for s, _, e in taken)
            left = [e for e in left if e not in [x[2] for x in taken]]
            break
    return Rule(verb, roles, frames=frames, **seen)
