"""Verdicts follow the records: move a table past its criterion and the word flips; take the record
away and it is untested."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml

from companion import claims, criteria, paths, records
from companion.errors import RecordError
from companion.experiment import Experiment
from companion.records import Record
from companion.tables import WORDS, Finding, contrast, judge

ROOT = Path(__file__).resolve().parents[1]
GAINS = [1.18, 1.25, 1.2, 1.22, 1.24]
ENTRY = {"id": "X1", "paper": "X", "statement": "Deep beats shallow.", "chapter": "book/x",
         "parts": [{"name": "theorem", "scope": "every x", "criterion": "it is so.", "by": "proof"},
                   {"name": "drawn", "scope": "two kinds", "criterion": "ratio above 1.",
                    "by": "made"}]}


@dataclass(frozen=True)
class Config:
    seeds: int = 5


def drawn(record: Record) -> Finding:
    rows = contrast(record.table, ["kind", "model"], "loss", {"model": "deep"})
    return judge(rows, "loss of shallow / deep", ["kind"], above=1)


def made(**findings: Callable[[Record], Finding]) -> Experiment:
    """An experiment with the profiles of the book, of which only full has a record here."""
    return Experiment("made", "a made table", {"quick": Config(2), "full": Config()},
                      lambda config: [{"all": True}], lambda config, point, device: [],
                      {f"X1/{name}": finding for name, finding in findings.items()})


def write(scale: dict[str, float]) -> None:
    """The full record: shallow loses to deep by ``GAINS`` times the scale of a kind."""
    rows = [{"kind": kind, "model": model, "seed": seed,
             "loss": scale[kind] * gain if model == "shallow" else 1.0}
            for kind in scale for model in ("shallow", "deep") for seed, gain in enumerate(GAINS)]
    records.save(records.folder("made", "full"), rows,
                 {"key": claims.EXPERIMENTS["made"].key("full"), "device": "cpu",
                  "criteria": criteria.digests(["X1/drawn"]),
                  "sittings": [{"started": "2026-01-02T03:04:05+00:00"}]})


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one claim of two parts, one proof, one experiment, and its full record."""
    monkeypatch.setattr(claims, "EXPERIMENTS", {"made": made(drawn=drawn)})
    monkeypatch.setattr(claims, "PROOFS", {"X1/theorem": lambda: True})
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "results"))
    listing(tmp_path, [ENTRY])
    write({"linear": 1.0, "logistic": 1.0})
    return tmp_path


def listing(root: Path, entries: object) -> None:
    (root / "claims.yml").write_text(yaml.safe_dump(entries), encoding="utf-8")


def settled(profile: str = "full") -> claims.Verdict:
    (claim,) = claims.evaluate(profile)
    return claim


def test_a_claim_has_the_words_of_its_parts(book: Path) -> None:
    claim = settled()
    theorem, part = claim.parts
    assert (claim.id, claim.statement) == ("X1", "Deep beats shallow.")
    assert claim.verdict == "proved, supported"
    assert (theorem.interval, theorem.source, theorem.date) == (None, None, None)
    assert (part.source, part.device, part.date) == ("made/full", "cpu", "2026-01-02")
    assert part.cases == {"linear": "supported", "logistic": "supported"}
    assert claim.value == pytest.approx(1.218)
    assert claim.interval[0] < 1.218 < claim.interval[1]
    assert claim.source == "made/full"


@pytest.mark.parametrize(("scale", "word"), [
    ({"linear": 0.8, "logistic": 0.8}, "contradicted"),
    ({"linear": 0.8, "logistic": 1.0}, "mixed"),
    ({"linear": 1 / 1.218, "logistic": 1.0}, "inconclusive"),
    ({"linear": 1 / 1.218, "logistic": 0.8}, "inconclusive"),
])
def test_the_word_follows_the_table(book: Path, scale: dict[str, float], word: str) -> None:
    write(scale)
    part = settled().parts[1]
    assert part.word == word
    assert settled().verdict == f"proved, {word}"
    assert (part.detectable is not None) == (word == "inconclusive")


def test_an_inconclusive_part_says_what_could_have_been_seen(book: Path) -> None:
    write({"linear": 1 / 1.218, "logistic": 1 / 1.218})
    part = settled().parts[1]
    half = (part.interval.high - part.interval.low) / 2
    assert part.detectable == pytest.approx(half * (1.96 + 0.8416) / 1.96, rel=1e-4)


def test_a_missing_record_is_untested(book: Path) -> None:
    assert settled("quick").verdict == "proved, untested"
    shutil.rmtree(book / "results")
    claim = settled()
    assert claim.verdict == "proved, untested"
    assert (claim.value, claim.interval, claim.source) == (None, None, None)


def test_a_proof_that_does_not_go_through_is_untested(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "PROOFS", {"X1/theorem": lambda: False})
    assert settled().verdict == "untested, supported"


def test_one_word_that_all_parts_share_stands_once() -> None:
    def verdict(*words: str) -> str:
        parts = tuple(claims.Part(word, name="", scope="", criterion="") for word in words)
        return claims.Verdict("X1", "X", "", "", parts).verdict

    assert verdict("supported", "supported") == "supported"
    assert verdict("proved", "mixed", "proved") == "proved, mixed, proved"


def test_an_altered_or_outdated_record_is_no_verdict(book: Path) -> None:
    path = records.folder("made", "full") / "table.csv"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(RecordError, match=r"table\.csv must have the hash"):
        claims.evaluate("full")
    write({"linear": 1.0})
    table = records.load(path.parent)
    records.save(path.parent, table.table.to_dict("records"), {**table.provenance, "key": "old"})
    with pytest.raises(RecordError, match="the experiment has changed"):
        claims.evaluate("full")


def test_parts_and_findings_must_be_the_same(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proof, part = ENTRY["parts"]
    listing(book, [ENTRY | {"parts": [proof]}])
    with pytest.raises(RecordError, match="list every part whole, got none for X1/drawn by made"):
        claims.evaluate()
    listing(book, [ENTRY | {"parts": [part]}])
    with pytest.raises(RecordError, match="got none for X1/theorem by proof"):
        claims.evaluate()
    listing(book, [ENTRY | {"parts": [proof, part, part | {"name": "images"}]}])
    with pytest.raises(RecordError, match="got nothing for X1/images by made"):
        claims.evaluate()
    listing(book, [ENTRY | {"parts": [proof, part | {"by": "proof"}]}])
    with pytest.raises(RecordError, match="X1/drawn by"):
        claims.evaluate()
    monkeypatch.setattr(claims, "EXPERIMENTS", {"made": made(drawn=drawn, more=drawn)})
    listing(book, [ENTRY])
    with pytest.raises(RecordError, match="got none for X1/more by made"):
        claims.evaluate()


@pytest.mark.parametrize("entries", [None, 3, ["L1"], [{"id": "X1"}], [ENTRY | {"parts": [{}]}],
                                     [{**ENTRY, "parts": [{"name": "theorem", "by": "proof"}]}]])
def test_a_broken_list_is_refused(book: Path, entries: object) -> None:
    listing(book, entries)
    with pytest.raises(RecordError, match=r"claims\.yml must list claims with parts"):
        claims.evaluate()


def test_a_part_without_a_criterion_is_refused(book: Path) -> None:
    proof, part = ENTRY["parts"]
    listing(book, [ENTRY | {"parts": [proof, {**part, "criterion": None}]}])
    with pytest.raises(RecordError, match=r"got None is not .* at \[0\]\.parts\[1\]\.criterion"):
        claims.evaluate()


@pytest.mark.parametrize("text", [b"- id: [", b"- id: X\xff", b"\t- id: X1"])
def test_a_file_that_is_no_yaml_is_refused(book: Path, text: bytes) -> None:
    (book / "claims.yml").write_bytes(text)
    with pytest.raises(RecordError, match=r"claims\.yml must be a YAML file, got .*; mend it"):
        claims.evaluate()


def test_a_criterion_that_changed_after_its_run_is_told(book: Path) -> None:
    proof, part = ENTRY["parts"]
    assert [one.remark for one in settled().parts] == ["", ""]
    listing(book, [ENTRY | {"parts": [proof, part | {"criterion": "ratio\n  above 1."}]}])
    assert settled().parts[1].remark == ""  # other lines, the same words
    listing(book, [ENTRY | {"parts": [proof, part | {"criterion": "ratio above 1.1."}]}])
    assert settled().parts[1].remark == "criterion changed after the run"
    assert settled().parts[1].word == "supported"


def test_a_criterion_that_came_after_its_run_is_told(book: Path) -> None:
    made_before = records.load(records.folder("made", "full"))
    rows = made_before.table.to_dict("records")
    without = {**made_before.provenance, "criteria": {}}
    records.save(records.folder("made", "full"), rows, without)
    assert settled().parts[1].remark == "criterion entered after the run"


def test_claims_need_their_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a package that was copied without what its wheel carries."""
    monkeypatch.setattr(paths, "checkout", lambda: None)
    monkeypatch.setattr(paths, "_PACKAGED", tmp_path)
    with pytest.raises(RecordError, match=r"claims\.yml must be a file, got none there; install"):
        claims.evaluate()


@pytest.mark.parametrize("profile", ["cpu", "huge"])
def test_unknown_profile(profile: str) -> None:
    with pytest.raises(ValueError, match=f"profile must be one of quick, full, got '{profile}'"):
        claims.evaluate(profile)


def test_one_claim_alone(book: Path) -> None:
    assert claims.evaluate(ident="X1") == claims.evaluate()
    with pytest.raises(ValueError, match="ident must be one of X1, got 'X9'"):
        claims.evaluate(ident="X9")


def test_every_criterion_that_came_after_its_run_stands_in_deviations() -> None:
    text = (ROOT / "book" / "deviations.md").read_text(encoding="utf-8")
    table = text.partition(":name: tbl-criteria-after")[2].partition(":::")[0]
    listed = {name.strip() for line in table.splitlines()[3:]
              for name in line.split("|")[1].split(",") if line.startswith("|")}
    told = {f"{claim.id} {part.name}" for claim in claims.evaluate("full")
            for part in claim.parts if part.remark}
    assert listed == told


def test_the_claims_of_the_papers() -> None:
    """Every claim is listed, its chapter exists, and its links lead to labels of the book."""
    entries = claims.listed()
    ids = [entry["id"] for entry in entries]
    assert {"L1", "L2", "L3", "L4", "L5", "L6", "D1", "D2", "D3", "D4"} <= set(ids)
    assert len(set(ids)) == len(ids)
    for entry in entries:
        assert (ROOT / f"{entry['chapter']}.md").exists()
        for part in entry["parts"]:
            assert part.get("links"), f"{entry['id']}/{part['name']} must have a link"
            for target in part["links"].values():
                page, label = target.split("#")
                text = (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")
                named = rf"^( *name: |:label: |\(){re.escape(label)}\)?=?$"
                assert re.search(named, text, re.MULTILINE), f"{target} must exist"


def test_proofs_go_through() -> None:
    for key, proof in claims.PROOFS.items():
        assert proof() is True, key


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed records, which may be spoiled."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.mark.parametrize("profile", claims.PROFILES)
def test_what_the_committed_records_settle(copy: Path, profile: str) -> None:
    for claim in claims.evaluate(profile):
        for part in claim.parts:
            assert part.word in WORDS
            measured = part.source is not None
            assert measured == (part.interval is not None) == (part.word not in ("proved",
                                                                                 "untested"))
            assert (part.detectable is not None) == (part.word == "inconclusive")
            assert part.what or not measured
            if part.interval is not None:
                assert part.interval.low <= part.interval.value <= part.interval.high


def test_a_part_has_its_word_from_its_own_record_alone(copy: Path) -> None:
    """With one record at hand and no other, its parts have the words that they have among all, and
    every other measured part is untested."""
    before = {(claim.id, part.name): part for claim in claims.evaluate() for part in claim.parts}
    names = {part.source.split("/")[0] for part in before.values() if part.source}
    assert names
    every = copy.rename(copy.with_name("every"))
    for name in names:
        copy.mkdir()
        (every / name).rename(copy / name)
        after = {(claim.id, part.name): part for claim in claims.evaluate() for part in claim.parts}
        for key, part in before.items():
            gone = part.source is not None and not part.source.startswith(f"{name}/")
            assert after[key].word == ("untested" if gone else part.word)
        shutil.rmtree(copy)


def test_a_committed_record_that_is_altered_is_refused(copy: Path) -> None:
    path = copy / "linear" / "full" / "provenance.json"
    stated = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(stated | {"table_sha256": "0" * 64}), encoding="utf-8")
    with pytest.raises(RecordError, match=r"linear.*provenance\.json must have the hash"):
        claims.evaluate("full")
    path.write_bytes(records.sealed(stated, b"another table"))
    with pytest.raises(RecordError, match=r"linear.*table\.csv must have the hash"):
        claims.evaluate("full")


def test_nothing_but_numbers_moves_a_word(book: Path) -> None:
    """The order of the rows and other columns settle nothing."""
    before = settled().parts[1]
    where = records.folder("made", "full")
    record = records.load(where)
    table: pd.DataFrame = record.table.iloc[::-1].assign(note="x")
    records.save(where, table.to_dict("records"), record.provenance)
    assert settled().parts[1].interval == before.interval
