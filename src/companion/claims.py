"""The claims of the two papers, a word for each part, recomputed from proofs and records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from companion import criteria, records
from companion.checks import require
from companion.errors import MissingRecord, RecordError
from companion.experiments import EXPERIMENTS
from companion.records import Record
from companion.tables import Finding
from companion.theory import depth, gaussian
from companion.theory import landscape_proofs as landscape
from companion.theory import together_proofs as together

PROFILES = ("quick", "full")
CHANGED = "criterion changed after the run"
ENTERED = "criterion entered after the run"


@dataclass(frozen=True, kw_only=True)
class Part(Finding):
    """One part of a claim: what was asked within which scope, and what was found. ``links`` lead
    from a text to "page#label". ``source`` names the record, "linear/full", with its ``device`` and
    ``date``; None for a proof, and for a part without a record. ``remark`` says what a reader must
    know of it."""

    name: str
    scope: str
    criterion: str
    links: Mapping[str, str] = field(default_factory=dict)
    source: str | None = None
    device: str | None = None
    date: str | None = None
    remark: str = ""


@dataclass(frozen=True)
class Verdict:
    """A claim; ``value``, ``interval`` and ``source`` are of its first part that has a number."""

    id: str
    paper: str
    statement: str
    chapter: str
    parts: tuple[Part, ...]
    value: float | None = None
    interval: tuple[float, float] | None = None
    source: str | None = None

    @property
    def verdict(self) -> str:
        """The words of the parts in their order; one word that all share stands once."""
        words = [part.word for part in self.parts]
        return words[0] if len(set(words)) == 1 else ", ".join(words)


def _all(*theorems: str) -> bool:
    return all(landscape.proofs()[name] for name in theorems)


def _both(*theorems: str) -> bool:
    return all(together.proofs()[name] for name in theorems)


@cache
def _identity() -> bool:
    return all(residual.is_zero_matrix for sizes in ((2, 3, 2), (2,) * 4)
               for residual in depth.update_residuals(sizes))


PROOFS: Mapping[str, Callable[[], bool]] = {
    "L1/mixture": lambda: all(gaussian.proofs().values()) and _all("gap"),
    "L2/ceiling": lambda: _all("ceiling"),
    "L2/zeros": lambda: _all("gap", "zeros"),
    "L3/identity": lambda: _all("identity", "limit", "monotone"),
    "D4/identity": _identity,
    "B1/specialise": lambda: _both("moment", "scalar", "well", "balanced"),
    "B2/either side": lambda: _both("full", "samples", "shrinks"),
    "B3/few samples": lambda: _both("transition", "samples"),
}


def listed() -> list[dict[str, Any]]:
    """The entries of claims.yml; RecordError where it is missing or not whole, or where its parts
    are not those that proofs and experiments settle."""
    entries = criteria.entries()
    asked = {
        (f"{entry['id']}/{part['name']}", part["by"])
        for entry in entries
        for part in entry["parts"]
    }
    known = {(key, "proof") for key in PROOFS}
    known |= {(key, name) for name, one in EXPERIMENTS.items() for key in one.findings}
    for key, by in sorted(asked ^ known):
        must, state = (("list every part whole", "none") if (key, by) in known else
                       ("name what settles a part", "nothing"))
        raise RecordError(f"claims.yml must {must}, got {state} for {key} by {by}; make them agree")
    return entries


def evaluate(profile: str = "full", ident: str | None = None) -> list[Verdict]:
    """The verdict on every claim of claims.yml, or on the one named ``ident``, from proofs and the
    records of ``profile``. A part without a record, or whose proof does not go through, is
    untested. Raises ValueError: an unknown profile or claim. RecordError: an altered or outdated
    record; claims.yml is not whole."""
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    entries = listed()
    require(ident in (None, *(entry["id"] for entry in entries)), "ident",
            f"be one of {', '.join(entry['id'] for entry in entries)}", repr(ident),
            "see claims.yml")
    return [_verdict(entry, profile) for entry in entries if ident in (None, entry["id"])]


def _verdict(entry: Mapping[str, Any], profile: str) -> Verdict:
    asked = {name: entry[name] for name in ("id", "paper", "statement", "chapter")}
    parts = tuple(_settle(f"{entry['id']}/{one['name']}", one, profile) for one in entry["parts"])
    for part in parts:
        if part.interval is not None:
            return Verdict(**asked, parts=parts, value=part.interval.value, source=part.source,
                           interval=(part.interval.low, part.interval.high))
    return Verdict(**asked, parts=parts)


def _settle(key: str, entry: Mapping[str, Any], profile: str) -> Part:
    asked = {name: entry[name] for name in ("name", "scope", "criterion")}
    asked["links"] = entry.get("links", {})
    if entry["by"] == "proof":
        return Part("proved" if PROOFS[key]() else "untested", **asked)
    experiment = EXPERIMENTS[entry["by"]]
    try:
        record = experiment.load(profile)
    except MissingRecord:
        return Part("untested", **asked)
    return Part(
        **vars(experiment.findings[key](record)),
        **asked,
        source=f"{experiment.name}/{profile}",
        device=record.provenance["device"],
        date=records.started(record.provenance),
        remark=_remark(key, entry["criterion"], record),
    )


def _remark(key: str, criterion: str, record: Record) -> str:
    """Whether a criterion stood in these words when its record was begun."""
    then = record.provenance["criteria"].get(key)
    if then is None:
        return ENTERED
    return "" if then == criteria.digest(criterion) else CHANGED
