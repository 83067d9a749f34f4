"""A transplanted rule: whose it is, that it stays, where networks start; D4 from made tables."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from companion.errors import Diverged
from companion.experiments import transplant
from companion.fleets import CAP, Budget, start
from companion.measures.upper_layers import on_bottom
from companion.meta_optimizers import Params
from companion.objectives import joined
from companion.records import Record

SHORT = Budget(steps=4, tasks=5, rate=0.04, query=10, test_tasks=20, test_query=20)
TINY = replace(transplant.PROFILES["quick"], seeds=3, pairs=30, again=3, alphas=(0.3, 1.0),
               budget=SHORT)
FINDING = transplant.EXPERIMENT.findings["D4/transplant"]


def begun(arm: str, activation: str = "tanh") -> Params:
    fleet = transplant.fleet_of(TINY, activation, [1.0], "cpu")
    return start(fleet, transplant.model_of(TINY, activation, arm))


def rules(params: Params, activation: str = "tanh") -> dict[str, Params]:
    fleet = transplant.fleet_of(TINY, activation, [1.0], "cpu")
    return transplant.factors(TINY, fleet, activation, params)


def alike(rule: Params, other: Params, run: int, other_run: int) -> bool:
    """Whether two runs have the same factors but for a number a tensor."""
    pairs = [(rule[name][run], other[name][other_run]) for name in rule]
    return all(torch.allclose(a / a.norm(), b / b.norm(), rtol=1e-9, atol=1e-12) for a, b in pairs)


def test_every_arm_has_its_own_rule() -> None:
    deep = begun("deep")
    found = rules(deep)
    assert set(found) == {arm for arm, rule in transplant.ARMS.items() if rule == "KFO, held"}
    own, random, other = (found[arm] for arm in ("transplanted", "random upper", "other seed"))
    for run in range(3):
        assert alike(other, own, run, (run + 1) % 3)
        assert not alike(other, own, run, run)
        assert not alike(random, own, run, run)
    changed = {name: value if name in transplant.BOTTOM or name == "4.weight" else 2 * value.flip(1)
               for name, value in deep.items()}
    again = rules(changed)
    for run in range(3):  # upper layers drawn afresh know nothing of those that they replace
        assert alike(again["random upper"], random, run, run)
        assert not alike(again["transplanted"], own, run, run)


def test_given_factors_stay_and_the_rest_is_trained() -> None:
    given = rules(begun("deep"))["transplanted"]
    for arm, moves in (("transplanted", False), ("KFO", True)):
        begin = begun(arm) | joined({}, given)
        case = {"activation": "tanh", "arm": arm}
        rows, kept = transplant.trained(TINY, case, begin, SHORT, "cpu")
        assert [(row["alpha"], row["seed"]) for row in rows] == [
            (alpha, seed) for alpha in (0.3, 1.0) for seed in range(3)]
        for params in kept.values():
            for name, value in params.items():
                same = torch.equal(value, begin[name])
                assert same == (name.endswith((".L", ".R")) and not moves), name
        assert not torch.equal(kept[0.3]["0.weight"], kept[1.0]["0.weight"])


def test_small_networks_start_from_the_deep_one_at_its_best_rate() -> None:
    config = replace(TINY, again=0)
    rows = transplant.measure(config, {"activation": "tanh"}, "cpu")
    table = pd.DataFrame(rows).set_index(["arm", "alpha", "seed"])
    deep = {"activation": "tanh", "arm": "deep"}
    first, kept = transplant.trained(config, deep, begun("deep"), SHORT, "cpu")
    valid = pd.DataFrame(first).groupby("alpha")["valid"].mean()
    best, worst = valid.idxmin(), valid.idxmax()
    small = [pd.DataFrame(transplant.trained(
        config, deep | {"arm": "one rate"}, begun("one rate") | on_bottom(kept[alpha],
        transplant.BOTTOM), replace(SHORT, steps=0), "cpu")[0]) for alpha in (best, worst)]
    for arm in transplant.ARMS:
        assert table.loc[arm]["risk_0"].to_list() == small[0]["risk_0"].to_list()
    assert (small[0]["risk_0"] != small[1]["risk_0"]).all()
    after = table["risk_1"]
    assert after["one rate"].to_list() == small[0]["risk_1"].to_list() == after["KFO"].to_list()
    held = [after[arm] for arm, rule in transplant.ARMS.items() if rule == "KFO, held"]
    assert all((one != after["one rate"]).all() for one in held)
    assert all((held[i] != held[i - 1]).all() for i in range(3))
    expected = pd.DataFrame(first).set_index(["alpha", "seed"])["risk_1"][best]
    assert after["deep"][best].to_list() == expected.to_list()
    assert list(dict.fromkeys(row["arm"] for row in rows)) == ["deep", *transplant.ARMS]


def test_linear_networks_see_linear_tasks() -> None:
    kinds = {name: transplant.fleet_of(TINY, name, [1.0], "cpu").settings[0].linear
             for name in transplant.Config.activations}
    assert kinds == {"relu": False, "tanh": False, "identity": True}


def test_a_rate_that_diverges_counts_as_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = transplant.train

    def train(fleet, *args, **options):
        if fleet.alpha.max() > 0.5 / 9:
            raise Diverged(0, "the objective")
        return plain(fleet, *args, **options)

    monkeypatch.setattr(transplant, "train", train)
    case = {"activation": "tanh", "arm": "one rate"}
    rows, kept = transplant.trained(TINY, case, begun("one rate"), SHORT, "cpu")
    assert list(kept) == [0.3]
    assert {row["risk_1"] == CAP for row in rows if row["alpha"] == 1.0} == {True}
    assert all(row["risk_1"] < CAP for row in rows if row["alpha"] == 0.3)


RISK = {"deep": 0.2, "transplanted": 0.25, "random upper": 0.35, "other seed": 0.3,
        "one rate": 0.4, "KFO": 0.2}


@pytest.fixture
def table(around) -> pd.DataFrame:
    """Every arm is best on validation tasks at the inner rate 1."""
    return pd.DataFrame([
        {"activation": activation, "arm": arm, "alpha": alpha, "seed": seed, "risk_0": 1.0,
         "risk_1": value if alpha == 1 else 0.01, "valid": value / alpha}
        for activation in transplant.Config.activations for arm, risk in RISK.items()
        for alpha in transplant.Config.alphas for seed, value in enumerate(around(risk))])


def test_gains_are_at_the_rate_best_on_validation_tasks(table) -> None:
    found = transplant.gains(table).set_index(["activation", "arm"])["value"]
    assert len(found) == 3 * 5
    for arm, risk in RISK.items():
        if arm != "transplanted":
            assert found["relu", arm] == pytest.approx(risk / 0.25, rel=0.01)


def test_shares_of_the_way_to_the_deep_network(table) -> None:
    found = transplant.closed(table).set_index(["activation", "arm"])
    assert len(found) == 3 * 4
    for arm, share in {"transplanted": 0.75, "random upper": 0.25, "other seed": 0.5,
                       "KFO": 1.0}.items():
        row = found.loc["tanh", arm]
        assert row["low"] < row["value"] < row["high"] or arm == "KFO"
        assert row["value"] == pytest.approx(share, abs=0.03)


def test_d4_flips(table) -> None:
    def found(where, factor):
        changed = table.assign(risk_1=table["risk_1"].where(~where, factor * table["risk_1"]))
        return FINDING(Record(changed, {}))

    relu, rule = table["activation"] == "relu", table["arm"] == "transplanted"
    holds = found(relu & False, 1)
    assert (holds.word, len(holds.cases)) == ("supported", 3 * 3)
    assert holds.interval.value == pytest.approx(1.2, rel=0.01)
    assert found(table["arm"].isin(("deep", "KFO")), 0.1) == holds
    for control in transplant.CONTROLS:
        assert found(relu & (table["arm"] == control), 0.3).word == "mixed"
    assert found(rule, 3).word == "contradicted"
    noise = 1 + 0.5 * (table["seed"] - 9.5) / 9.5
    assert found(relu & rule, 1.2 * noise).word == "inconclusive"
