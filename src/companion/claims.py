"""The claims of the two papers, and their verdicts, recomputed from records and proofs."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from companion import paths, records
from companion.evaluation import Interval

PROFILES = ("quick", "cpu", "full")
VERDICTS = ("derived", "holds", "partly", "fails", "pending")


@dataclass(frozen=True)
class Finding:
    """What settles a claim: the parts of its criterion, each with its outcome, and the number that decides.

    ``parts`` maps each part to "derived", "holds", "partly", "fails", or "pending" where nothing settles it yet.
    """

    parts: Mapping[str, str]
    value: float
    interval: tuple[float, float]
    what: str

    @property
    def verdict(self) -> str:
        """All parts hold: holds (derived, if all are proofs or agree with one); some: partly; none: fails.

        Pending, as long as a part is.
        """
        outcomes = set(self.parts.values())
        if "pending" in outcomes:
            return "pending"
        if outcomes <= {"derived", "holds"}:
            return "derived" if "derived" in outcomes else "holds"
        return "fails" if outcomes == {"fails"} else "partly"


def all_or_some(outcomes: Iterable[bool]) -> str:
    """The outcome of a part that is asked of several cases: "holds" in all, "partly" in some, "fails" in none."""
    found = list(outcomes)
    return "holds" if all(found) else "partly" if any(found) else "fails"


@dataclass(frozen=True)
class Verdict:
    """One line of the ledger. ``value``, ``interval``, ``what`` and ``source`` are None where the claim is pending."""

    id: str
    statement: str
    criterion: str
    verdict: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    what: str | None = None
    parts: Mapping[str, str] | None = None
    source: str | None = None
    device: str | None = None
    date: str | None = None
    chapter: str | None = None

    @property
    def numbers(self) -> tuple[str, str]:
        """Value and interval as texts, to the digits that the interval allows; empty where pending."""
        if self.value is None or self.interval is None:
            return "", ""
        return Interval(self.value, *self.interval).texts


def listed() -> list[dict[str, Any]]:
    """The entries of claims.yml; RecordError where it is missing or not a list of claims."""
    root = paths.checkout()
    path = root / "claims.yml" if root else None
    if path is None or not path.exists():
        raise records.RecordError("claims.yml must be at hand, got an installed package; only a checkout has it")
    entries = yaml.safe_load(path.read_text())
    if not isinstance(entries, list) or not all({"id", "statement", "criterion"} <= set(entry) for entry in entries):
        raise records.RecordError(f"{path} must list claims with id, statement and criterion; restore it")
    return entries


def evaluate(profile: str = "full") -> list[Verdict]:
    """The verdict on every claim of claims.yml from the records of ``profile``: "quick", "cpu" or "full".

    A claim that nothing settles yet is pending, and so is a part whose record is missing, or whose experiment has no
    such profile.

    Raises:
        ValueError: an unknown profile.
        RecordError: a record has been altered, or belongs to an earlier config.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    return [_settle(entry, profile) for entry in listed()]


def _settle(entry: dict[str, Any], profile: str) -> Verdict:
    """The parts that each function of ``settled_by`` finds, together; numbers and source are those of the first."""
    told = {name: entry[name] for name in ("id", "statement", "criterion")} | {"chapter": entry.get("chapter")}
    parts: dict[str, str] = {}
    first: tuple[Finding, str, records.Record] | None = None
    for name in entry.get("settled_by", ()):
        module, function = name.split(":")
        found = importlib.import_module(module)
        settle: Callable[[records.Record], Finding] = getattr(found, function)
        try:
            if profile not in found.EXPERIMENT.profiles:
                raise records.MissingRecord(f"{found.EXPERIMENT.name} must have the profile {profile}, got none")
            record = found.EXPERIMENT.load(profile)
        except records.MissingRecord:
            parts[f"{found.EXPERIMENT.name}/{profile}"] = "pending"
            continue
        finding = settle(record)
        parts |= finding.parts
        first = first or (finding, f"{found.EXPERIMENT.name}/{profile}", record)
    if first is None:
        return Verdict(**told, verdict="pending")
    finding, source, record = first
    whole = Finding(parts, finding.value, finding.interval, finding.what)
    return Verdict(
        **told, verdict=whole.verdict, value=whole.value, interval=whole.interval, what=whole.what, parts=parts,
        source=source, device=record.provenance["device"], date=record.provenance["started"][:10],
    )  # fmt: skip
