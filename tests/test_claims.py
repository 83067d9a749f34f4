"""Verdicts follow the records: perturb one past its criterion and the verdict flips; take it away
and it is pending."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from companion import claims, experiments, paths, records

ROOT = Path(__file__).resolve().parents[1]
NOT_RUN = {
    ("landscape_images", "full"),
    ("depth_images", "full"),
}  # sized for a GPU; take a pair out when it is run


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed full record of `linear`, which may be spoiled."""
    shutil.copytree(ROOT / "results", tmp_path / "results")
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "results"))
    return records.folder("linear", "full")


def verdicts() -> dict[str, str]:
    return {claim.id: claim.verdict for claim in claims.evaluate("full")}


def rewrite(where: Path, table: pd.DataFrame) -> None:
    provenance = json.loads((where / "provenance.json").read_text())
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    records.save(where, rows, provenance)


def test_every_claim_of_the_papers_is_listed() -> None:
    entries = claims.listed()
    assert [entry["id"] for entry in entries] == ["L1", "L2", "L3", "L4", "L5", "L6", "D1", "D2",
                                                  "D3", "D4"]
    chapters = [entry["chapter"] for entry in entries if "chapter" in entry]
    assert all((ROOT / f"{chapter}.md").exists() for chapter in chapters)


def test_the_committed_records_are_whole_and_of_today(copy: Path) -> None:
    for name in experiments.NAMES:
        for profile in experiments.get(name).profiles:
            if (name, profile) not in NOT_RUN:
                assert len(experiments.get(name).load(profile).table) > 0


def test_what_is_settled_says_what_it_rests_on(copy: Path) -> None:
    for claim in claims.evaluate("full"):
        pending = set((claim.parts or {}).values()) or {"pending"}
        settled = pending != {"pending"}
        assert (claim.verdict == "pending") == ("pending" in pending)
        assert claim.verdict in claims.VERDICTS
        assert all((value is not None) == settled
                   for value in (claim.value, claim.interval, claim.source, claim.date))
        if claim.interval is not None:
            assert claim.interval[0] <= claim.value <= claim.interval[1]


def test_l1_follows_the_steps(copy: Path) -> None:
    table = records.load(copy).table
    assert verdicts()["L1"] == "partly"
    steps = (table["quantity"] == "steps") & (table["method"] == "maml")
    rewrite(copy, table.assign(value=table["value"].where(~steps, table["value"] * 100)))
    assert verdicts()["L1"] == "derived"
    rewrite(copy, table.assign(value=table["value"].where(~steps, table["value"] / 100)))
    assert verdicts()["L1"] == "partly"  # (a) is proved whatever (b) says
    (claim,) = [claim for claim in claims.evaluate("full") if claim.id == "L1"]
    assert claim.parts["(b) harder to optimise"] == "fails"


@pytest.mark.parametrize(
    ("claim", "sweep", "row", "factor"),
    [("L2", "rho_hard", -1, 1.1), ("L2", "rho_hard", 2, 0.9), ("L3", "distance", -1, 0.4),
     ("L3", "var_hard", 0, 1.2)],
)
def test_l2_and_l3_follow_the_drawn_ratio(copy: Path, claim: str, sweep: str, row: int,
                                          factor: float) -> None:
    table = records.load(copy).table
    before = verdicts()
    assert before[claim] == "derived"
    assert (
        before | {"L5": "pending", "L6": "pending", "D1": "holds", "D2": "pending", "D3": "pending"}
        == before
    )
    where = table.index[table["sweep"] == sweep][row]
    table.loc[where, "value"] *= factor
    rewrite(copy, table)
    after = verdicts()
    assert after[claim] == "partly"
    assert all(verdict == before[name] for name, verdict in after.items() if name != claim)


def test_l4_follows_the_ratios(copy: Path) -> None:
    where = records.folder("two_layer", "full")
    table = records.load(where).table
    before = {claim.id: claim for claim in claims.evaluate("full")}["L4"]
    assert before.verdict == "partly"
    hardness = table["sweep"] == "rho_hard"
    equal = table.assign(nal=table["nal"].where(~(hardness & (table["x"] == 1)), table["maml"]))
    rewrite(where, equal)
    assert verdicts()["L4"] == "holds"
    rewrite(where,
            equal.assign(
                nal=equal["nal"].where(~(hardness & (table["x"] == 0.2)), 1.05 * table["maml"])
            ))
    after = {claim.id: claim for claim in claims.evaluate("full")}["L4"]
    assert after.verdict == "partly"
    assert after.parts["(ii) packed and far"] == "partly"
    assert after.value == pytest.approx(1.05)


def test_a_missing_record_is_pending(copy: Path) -> None:
    shutil.rmtree(copy.parents[1])
    assert set(verdicts().values()) == {"pending"}


def test_one_claim_from_two_experiments(copy: Path) -> None:
    """D3 asks for synthetic tasks and for images: pending without the second, and its parts come
    together with it."""

    def d3(profile: str) -> claims.Verdict:
        return {claim.id: claim for claim in claims.evaluate(profile)}["D3"]

    assert d3("full").parts == {"synthetic": "holds", "depth_images/full": "pending"}
    found = d3("cpu")  # no such profile of the synthetic experiment: its full record
    assert set(found.parts) == {"synthetic", "images"}
    assert found.source == "meta_optimizers/full, depth_images/cpu"
    assert found.value == d3("full").value
    shutil.rmtree(records.folder("meta_optimizers", "full"))
    left = d3("cpu")
    assert left.verdict == "pending"
    assert left.source == "depth_images/cpu"
    assert left.value != found.value


def test_an_altered_record_is_no_verdict(copy: Path) -> None:
    path = copy / "table.csv"
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(records.RecordError, match=r"table\.csv must have the hash"):
        claims.evaluate("full")


def test_claims_need_a_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "checkout", lambda: None)
    with pytest.raises(records.RecordError, match="only a checkout has it"):
        claims.evaluate()
    monkeypatch.delenv("COMPANION_RESULTS", raising=False)
    with pytest.raises(ValueError, match="set COMPANION_RESULTS"):
        paths.results()


def test_unknown_profile() -> None:
    with pytest.raises(ValueError, match="profile must be one of quick, cpu, full, got 'huge'"):
        claims.evaluate("huge")


def test_findings_add_up() -> None:
    def verdict(*outcomes: str) -> str:
        parts = {str(i): outcome for i, outcome in enumerate(outcomes)}
        return claims.verdict_of(parts)

    assert verdict("derived", "holds") == "derived"
    assert verdict("holds", "holds") == "holds"
    assert verdict("derived", "fails") == "partly"
    assert verdict("holds", "partly") == "partly"
    assert verdict("fails", "fails") == "fails"
