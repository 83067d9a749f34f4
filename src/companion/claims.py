"""The claims of the two papers, and their verdicts, recomputed from records and proofs."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from companion import errors, paths, records
from companion.evaluation import Interval

PROFILES = ("quick", "cpu", "full")
VERDICTS = ("derived", "holds", "partly", "fails", "pending")


@dataclass(frozen=True)
class Finding:
    """What settles a claim: the parts of its criterion, each with its outcome, and the number that
    decides.

    ``parts`` maps each part to "derived", "holds", "partly", "fails", or "pending" where nothing
    settles it yet.
    """

    parts: Mapping[str, str]
    value: float
    interval: tuple[float, float]
    what: str

    @property
    def verdict(self) -> str:
        """The verdict on these parts alone."""
        return verdict_of(self.parts)


def verdict_of(parts: Mapping[str, str]) -> str:
    """All parts hold: holds (derived, if all are proofs or agree with one); some: partly; none:
    fails.

    Pending, as long as a part is.
    """
    outcomes = set(parts.values())
    if "pending" in outcomes:
        return "pending"
    if outcomes <= {"derived", "holds"}:
        return "derived" if "derived" in outcomes else "holds"
    return "fails" if outcomes == {"fails"} else "partly"


def all_or_some(outcomes: Iterable[bool]) -> str:
    """The outcome of a part that is asked of several cases: "holds" in all, "partly" in some,
    "fails" in none."""
    found = list(outcomes)
    return "holds" if all(found) else "partly" if any(found) else "fails"


@dataclass(frozen=True)
class Verdict:
    """One line of the ledger. ``value``, ``interval``, ``what`` and ``source`` are None where the
    claim is pending."""

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
        """Value and interval as texts, to the digits that the interval allows; empty where
        pending."""
        if self.value is None or self.interval is None:
            return "", ""
        return Interval(self.value, *self.interval).texts


def listed() -> list[dict[str, Any]]:
    """The entries of claims.yml; RecordError where it is missing or not a list of claims."""
    root = paths.checkout()
    path = root / "claims.yml" if root else None
    if path is None or not path.exists():
        raise errors.RecordError(
            "claims.yml must be at hand, got an installed package; only a checkout has it"
        )
    import yaml  # only here: an experiment settles its claims without it

    entries = yaml.safe_load(path.read_text())
    if not isinstance(entries, list) or not all(
        {"id", "statement", "criterion"} <= set(entry) for entry in entries
    ):
        raise errors.RecordError(
            f"{path} must list claims with id, statement and criterion; restore it"
        )
    return entries


def evaluate(profile: str = "full") -> list[Verdict]:
    """The verdict on every claim of claims.yml from the records of ``profile``: "quick", "cpu" or
    "full".

    For "cpu" an experiment that has no such profile gives its full record. A claim that nothing
    settles yet is pending, and so is a part whose record is missing.

    Raises:
        ValueError: an unknown profile.
        RecordError: a record has been altered, or belongs to an earlier config.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}, got {profile!r}")
    return [_settle(entry, profile) for entry in listed()]


def _settle(entry: dict[str, Any], profile: str) -> Verdict:
    """The parts that each function of ``settled_by`` finds, together; the numbers are those of the
    first."""
    told = {name: entry[name] for name in ("id", "statement", "criterion")} | {
        "chapter": entry.get("chapter")
    }
    parts: dict[str, str] = {}
    findings: list[tuple[Finding, str, records.Record]] = []
    for name in entry.get("settled_by", ()):
        module, function = name.split(":")
        found = importlib.import_module(module)
        settle: Callable[[records.Record], Finding] = getattr(found, function)
        own = "full" if profile == "cpu" and "cpu" not in found.EXPERIMENT.profiles else profile
        source = f"{found.EXPERIMENT.name}/{own}"
        try:
            record = found.EXPERIMENT.load(own)
        except errors.MissingRecord:
            parts[source] = "pending"
        else:
            findings.append((settle(record), source, record))
            parts |= findings[-1][0].parts
    if not findings:
        return Verdict(**told, verdict="pending")
    finding, _, record = findings[0]
    return Verdict(**told, verdict=verdict_of(parts), value=finding.value,
                   interval=finding.interval, what=finding.what, parts=parts,
                   source=", ".join(source for _, source, _ in findings),
                   device=record.provenance["device"], date=record.provenance["started"][:10])
