"""Every meta-optimizer: the identity it starts from, the matrix it is, its meta-gradients, and what
it refuses."""

from functools import partial

import pytest
import torch
from torch.func import grad

from companion import nets, training
from companion.adaptation import adapt, adapt_with_rule
from companion.losses import cross_entropy, squared_error
from companion.meta_optimizers import (
    RULES,
    InnerOptimizer,
    Params,
    Rule,
    chain,
    held_kfo,
    kfo,
    learned_rate,
    meta_curvature,
    meta_sgd,
    momentum,
    nonlinear_kfo,
    per_step_rates,
    rule_named,
    sgd,
)
from companion.objectives import joined, learned, maml, parted
from companion.streams import torch_stream
from companion.tasks import Task

F64 = torch.float64
ALPHA = 0.07
SHAPES = {"dense": (4, 3), "bias": (5,), "conv": (4, 2, 3, 3), "scalar": (), "line": (4, 2, 3),
          "volume": (4, 2, 2, 1, 3)}
OWN = [name for name in RULES if name != "SGD"]


def normal(*shape: int, purpose: str = "x", dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.randn(shape, generator=torch_stream(0, f"tests/rules/{purpose}/{shape}"),
                       dtype=dtype)


def gradients(dtype: torch.dtype = F64) -> Params:
    drawn = {name: normal(*shape, dtype=dtype) for name, shape in SHAPES.items()}
    return drawn | {"scalar": drawn["scalar"].abs()}  # a ReLU would leave nothing of a negative one


def disturbed(rule: Rule, params: Params, size: float = 0.3) -> Params:
    """The rule's parameters away from their start."""
    start = rule.init(params)
    return {
        key: v + size * normal(*v.shape, purpose=key, dtype=v.dtype) for key, v in start.items()
    }


def columns(key: str, value: torch.Tensor) -> torch.Tensor:
    """vec of a gradient as KFO sees it, [n * m, 1]; of a convolution, one column a filter."""
    return value.reshape(4 if value.ndim > 2 else 1, -1).mT


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", RULES)
def test_a_rule_starts_as_sgd(name: str, dtype: torch.dtype) -> None:
    g, rule = gradients(dtype), RULES[name](ALPHA)
    plain, ours = sgd(ALPHA)(g), rule.apply(rule.init(g), g)
    assert all(torch.equal(ours[key], plain[key]) and ours[key].abs().min() > 0 for key in g)
    if name != "SGD":
        moved = rule.apply(disturbed(rule, g), g)
        assert all(relative(moved[key], plain[key]) > 1e-2 for key in g)


def kron_product(rule: Params, name: str, layer: str = "") -> torch.Tensor:
    return torch.kron(rule[f"{name}.L{layer}"], rule[f"{name}.R{layer}"].mT.contiguous())


@pytest.mark.parametrize("key", SHAPES)
def test_kfo_is_a_kronecker_matrix(key: str) -> None:
    g = gradients()
    for psd in (False, True):
        rule = kfo(ALPHA, psd=psd)
        own = disturbed(rule, g)
        matrix = kron_product(own, key)
        if psd:
            squares = {name: value.mT @ value for name, value in own.items()}
            matrix = kron_product(squares, key)
            assert torch.linalg.eigvalsh(matrix).min() > -1e-12
        expected = ALPHA * (matrix @ columns(key, g[key])).mT.reshape(g[key].shape)
        assert relative(rule.apply(own, g)[key], expected) < 1e-12


def test_held_factors_are_data() -> None:
    """KFO times one rate, the factors without a meta-gradient; SGD at the start."""
    g, rule = gradients(), held_kfo(ALPHA)
    first = rule.apply(rule.init(g), g)
    assert all(torch.equal(first[key], ALPHA * g[key]) for key in g)
    own = disturbed(rule, g)
    factors = {key: value for key, value in own.items() if key != "scale"}
    plain = kfo(ALPHA).apply(factors, g)
    assert factors.keys() == kfo(ALPHA).init(g).keys()
    for key, update in rule.apply(own, g).items():
        assert relative(update, own["scale"] * plain[key]) < 1e-12
    slopes = grad(lambda some: sum(u.square().sum() for u in rule.apply(some, g).values()))(own)
    assert slopes.pop("scale") != 0
    assert all((slope == 0).all() for slope in slopes.values())
    assert rule_named("KFO, held", ALPHA).init(g).keys() == own.keys()


@pytest.mark.parametrize("key", SHAPES)
def test_nonlinear_kfo_is_layers_of_kronecker_matrices(key: str) -> None:
    g, rule = gradients(), nonlinear_kfo(ALPHA)
    own = disturbed(rule, g)
    vectors = hidden = columns(key, g[key])
    for layer in "12":
        hidden = torch.relu(kron_product(own, key, layer) @ hidden)
    expected = ALPHA * (vectors + kron_product(own, key, "3") @ hidden).mT.reshape(g[key].shape)
    assert relative(rule.apply(own, g)[key], expected) < 1e-12
    assert key == "scalar" or 0 < float((hidden > 0).double().mean()) < 1


@pytest.mark.parametrize("key", SHAPES)
def test_meta_curvature_is_a_product_of_modes(key: str) -> None:
    g, rule = gradients(), meta_curvature(ALPHA)
    own = disturbed(rule, g)
    modes = [own[f"{key}.M{i}"] for i in (1, 2, 3) if f"{key}.M{i}" in own]
    assert len(modes) == {"dense": 2, "bias": 1, "scalar": 1}.get(key, 3)
    matrix = modes[0]
    for mode in modes[1:]:
        matrix = torch.kron(matrix, mode)
    expected = ALPHA * (matrix @ g[key].reshape(-1)).reshape(g[key].shape)
    assert relative(rule.apply(own, g)[key], expected) < 1e-12


def test_the_filters_of_a_convolution_share_their_factors() -> None:
    own = kfo(ALPHA).init(gradients())
    assert {name: tuple(value.shape) for name, value in own.items()} == {
        "dense.L": (4, 4),
        "dense.R": (3, 3),
        "bias.L": (5, 5),
        "bias.R": (1, 1),
        "conv.L": (2, 2),
        "conv.R": (9, 9),
        "scalar.L": (1, 1),
        "scalar.R": (1, 1),
        "line.L": (2, 2),
        "line.R": (3, 3),
        "volume.L": (2, 2),
        "volume.R": (6, 6),
    }


def regression(purpose: str) -> Task:
    x = normal(11, 3, purpose=purpose)
    y = torch.sin(2 * x.sum(1, keepdim=True)) @ torch.ones(1, 2, dtype=F64) + 0.5 * normal(
        11, 2, purpose=purpose
    )
    return Task((x[:5], y[:5]), (x[5:], y[5:]))


def images() -> Task:
    x, y = normal(14, 2, 4, 4), torch.arange(14) % 3
    return Task((x[:6], y[:6]), (x[6:], y[6:]))


def warp() -> Rule:
    """Like WarpGrad: a step is preconditioned by a function of the parameters that it starts from,
    here 1 + tanh(slope theta + shift)."""

    def bound(rule: Params) -> InnerOptimizer:
        def update(gradients: Params, state: tuple, params: Params) -> tuple[Params, tuple]:
            warped = {name: 1 + torch.tanh(rule[f"{name}.slope"] * params[name]
                                           + rule[f"{name}.shift"]) for name in gradients}
            return {name: ALPHA * warped[name] * g for name, g in gradients.items()}, state

        return InnerOptimizer(lambda params: (), update)

    return Rule(lambda params: {f"{name}.{part}": torch.zeros_like(value)
                                for name, value in params.items() for part in ("slope", "shift")},
                stateful=bound)


def heavy() -> Rule:
    """KFO on gradients with momentum."""
    return Rule(kfo(ALPHA).init, stateful=lambda own: chain(momentum(0.8), kfo(ALPHA).bind(own)))


STATEFUL = {"per step": lambda: per_step_rates(ALPHA, 3), "fewer than steps":
            lambda: per_step_rates(ALPHA, 2), "warp": warp, "momentum": heavy}
CASES = {"dense and bias": (nets.mlp((3, 4, 2), "tanh"), squared_error, regression("a")),
         "convolution": (nets.cnn((2, 4, 4), 2, 1, 3, pool=False), cross_entropy, images())}


@pytest.mark.parametrize("rule_alpha", [None, 0.05])
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("case", CASES)
def test_meta_gradients_by_central_differences(
    case: str, name: str, rule_alpha: float | None
) -> None:
    """Through the rule, adapting or not, at parameters away from the identity; along random
    directions."""
    differences(case, RULES[name](ALPHA), rule_alpha)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("case", CASES)
def test_meta_gradients_through_a_state(case: str, name: str) -> None:
    differences(case, STATEFUL[name]())


def differences(case: str, rule: Rule, rule_alpha: float | None = None) -> None:
    net, of, task = CASES[case]
    params = net.init(torch_stream(1, "tests/rules"), dtype=F64)
    both = joined(params, disturbed(rule, params, 0.2))
    objective = learned(of(net.apply), steps=3, rule=rule, rule_alpha=rule_alpha)
    exact = grad(objective)(both, task)
    for part in ("model", "rule"):
        names = [key for key in both if key.startswith("rule/") == (part == "rule")]
        way = {key: normal(*both[key].shape, purpose=f"way {key}") for key in names}
        ends = [objective(both | {key: both[key] + h * way[key] for key in names}, task)
                for h in (1e-6, -1e-6)]
        slope = sum((exact[key] * way[key]).sum() for key in names)
        assert abs(slope) > 1e-4
        assert ((ends[0] - ends[1]) / 2e-6).item() == pytest.approx(slope.item(), rel=2e-5)


def test_a_fixed_rule_enters_maml_by_closure() -> None:
    net, of, task = CASES["dense and bias"]
    params, rule = net.init(torch_stream(1, "tests/rules"), dtype=F64), kfo(ALPHA)
    own = disturbed(rule, params)
    closed = maml(of(net.apply), steps=2, update=partial(rule.apply, own))(params, task)
    assert closed == learned(of(net.apply), steps=2, rule=rule)(joined(params, own), task)
    assert parted(joined(params, own)) == (params, own)


def test_a_rule_that_adapts_is_the_loop_written_out() -> None:
    net, of, task = CASES["dense and bias"]
    loss, rule, beta = of(net.apply), kfo(ALPHA), 0.05
    params = net.init(torch_stream(1, "tests/rules"), dtype=F64)
    own = disturbed(rule, params)
    theta = {key: value.clone().requires_grad_() for key, value in params.items()}
    r = {key: value.clone().requires_grad_() for key, value in own.items()}
    for step in range(3):
        value = loss(theta, task.support)
        slopes = torch.autograd.grad(value, [*theta.values(), *(r.values() if step else ())])
        if step:  # the loss depends on r through the update before
            for key, slope in zip(r, slopes[len(theta) :], strict=True):
                r[key] = (r[key] - beta * slope).detach().requires_grad_()
        updates = rule.apply(
            r, {key: slope.detach() for key, slope in zip(theta, slopes, strict=False)}
        )
        theta = {key: value.detach() - updates[key] for key, value in theta.items()}
    found, rule_found = adapt_with_rule(loss, params, own, task.support, steps=3, apply=rule.apply,
                                        rule_alpha=beta)
    for key, value in theta.items():
        assert relative(found[key], value) < 1e-12
    for key, value in r.items():
        assert relative(rule_found[key], value) < 1e-12
        assert not torch.equal(value, own[key])
    still = adapt_with_rule(loss, params, own, task.support, steps=1, apply=rule.apply,
                            rule_alpha=beta)[1]
    assert all(torch.equal(still[key], own[key]) for key in own)


def test_momentum_is_that_of_torch() -> None:
    net, of, task = CASES["dense and bias"]
    loss, start = of(net.apply), net.init(torch_stream(1, "tests/rules"), dtype=F64)
    leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
    peer = torch.optim.SGD(leaves.values(), ALPHA, momentum=0.8)
    for _ in range(4):
        peer.zero_grad()
        loss(leaves, task.support).backward()
        peer.step()
    moved = adapt(loss, start, task.support, steps=4, update=chain(momentum(0.8), sgd(ALPHA)))
    plain = adapt(loss, start, task.support, steps=4, update=sgd(ALPHA))
    for name, value in leaves.items():
        assert relative(moved[name], value) < 1e-12 < 1e-2 < relative(plain[name], value)
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1"):
        momentum(1.0)


def test_a_chain_is_taken_in_order() -> None:
    """A running sum before a square is another rule than after it; each part has its own state."""
    summed = momentum(0.999999999999)
    square = lambda g: {name: value * value for name, value in g.items()}
    for parts, expected in (((summed, square), 9.0), ((square, summed), 5.0),
                            ((summed, summed), 4.0)):
        inner, g = chain(*parts), {"w": torch.ones((), dtype=F64)}
        state = inner.init(g)
        _, state = inner.update(g, state, g)
        found = inner.update({"w": 2 * g["w"]}, state, g)[0]["w"].item()
        assert found == pytest.approx(expected)
    assert chain().update(g, (), g) == (g, ())


def test_rates_per_step_are_the_loop_written_out() -> None:
    """Also beyond the last step, with its rate; and at the start they are SGD to the last bit."""
    net, of, task = CASES["dense and bias"]
    loss, start = of(net.apply), net.init(torch_stream(1, "tests/rules"), dtype=F64)
    rule = per_step_rates(ALPHA, 3)
    own = disturbed(rule, start)
    assert {value.shape for value in own.values()} == {(3,)}
    moved = start
    for step in (0, 1, 2, 2, 2):
        slopes = grad(loss)(moved, task.support)
        moved = {name: value - ALPHA * own[f"{name}.scales"][step] * slopes[name]
                 for name, value in moved.items()}
    found = adapt(loss, start, task.support, steps=5, update=rule.bind(own))
    assert all(relative(found[name], moved[name]) < 1e-12 for name in moved)
    first, plain = (adapt(loss, start, task.support, steps=5, update=update)
                    for update in (rule.bind(rule.init(start)), sgd(ALPHA)))
    assert all(torch.equal(first[name], plain[name]) for name in plain)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        per_step_rates(ALPHA, 0)
    with pytest.raises(ValueError, match=r"scales of the rule must have shape \(3,\), got \(4,\)"):
        rule.bind(per_step_rates(ALPHA, 4).init(start)).update(start, 0, start)


def test_a_first_order_step_takes_what_the_rule_looks_at_as_constant() -> None:
    net, of, task = CASES["dense and bias"]
    loss, params = of(net.apply), net.init(torch_stream(1, "tests/rules"), dtype=F64)
    update = warp().bind(disturbed(warp(), params))

    def moved(start: Params) -> Params:
        return adapt(loss, start, task.support, steps=2, update=update, first_order=True)

    found = grad(lambda start: loss(moved(start), task.query))(params)
    expected = grad(loss)(moved(params), task.query)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-12) for name in found)


def test_what_cannot_be_an_update() -> None:
    net, of, task = CASES["dense and bias"]
    loss, params = of(net.apply), net.init(torch_stream(1, "tests/rules"), dtype=F64)
    with pytest.raises(ValueError, match=r"update must be a function .* got Rule; bind a rule"):
        adapt(loss, params, task.support, steps=1, update=kfo(ALPHA))
    both = joined(params, warp().init(params))
    with pytest.raises(ValueError, match="adapting by rule_alpha, must have no state"):
        learned(loss, steps=2, rule=warp(), rule_alpha=0.1)(both, task)


def test_only_some_entries_may_adapt() -> None:
    net, of, task = CASES["dense and bias"]
    params, rule, some = (net.init(torch_stream(1, "tests/rules"), dtype=F64), kfo(ALPHA),
                          ["1.weight", "1.bias"])
    own = disturbed(rule, {name: params[name] for name in some})
    objective = learned(of(net.apply), steps=2, rule=rule, adapted=some)
    fixed = {name: value for name, value in params.items() if name not in some}
    by_hand = maml(lambda p, b: of(net.apply)(fixed | p, b), steps=2,
                   update=partial(rule.apply, own))
    assert objective(joined(params, own), task) == by_hand({name: params[name] for name in some},
                                                           task)
    with pytest.raises(ValueError, match=r"adapted must name some of 0\.weight"):
        learned(of(net.apply), steps=2, rule=rule, adapted=["2.weight"])(joined(params, own), task)


@pytest.mark.parametrize("rule", [kfo(ALPHA), per_step_rates(ALPHA, 1), heavy()])
def test_a_fleet_trains_rules_of_its_own(rule: Rule) -> None:
    net, of, task = CASES["dense and bias"]
    starts = [net.init(torch_stream(seed, "tests/rules"), dtype=F64) for seed in (0, 1)]
    both = [joined(start, rule.init(start)) for start in starts]
    fleet = {name: torch.stack([one[name] for one in both]) for name in both[0]}
    tasks = Task(*[tuple(part.expand(2, 1, *part.shape) for part in side) for side in task])
    gradient = training.fleet_gradient(learned(of(net.apply), steps=1, rule=rule))
    trained = training.train(gradient, fleet, lambda step: tasks, optimizer=training.adam(0.01),
                             steps=30)
    assert (gradient(trained, tasks)[1] < 0.9 * gradient(fleet, tasks)[1]).all()
    slopes = gradient(fleet, tasks)[0]
    for run in (0, 1):
        alone = grad(learned(of(net.apply), steps=1, rule=rule))(both[run], task)
        assert all(
            torch.allclose(slopes[name][run], alone[name], rtol=1e-9, atol=1e-12) for name in alone
        )


@pytest.mark.parametrize("make", RULES.values())
@pytest.mark.parametrize("alpha", [0, -0.1, float("inf"), float("nan")])
def test_rates_must_be_positive(make, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive and finite, got"):
        make(alpha)


@pytest.mark.parametrize("make", [meta_curvature, kfo, nonlinear_kfo])
def test_shapes_that_a_rule_does_not_know(make) -> None:
    odd = {"odd": normal(2, 3, 1, 1, 1, 4)}
    with pytest.raises(ValueError, match=r"odd must be a scalar, a vector, a matrix or a "
                                         r"convolution .* got shape \(2, 3, 1, 1, 1, 4\)"):
        make(ALPHA).init(odd)
    with pytest.raises(ValueError, match="odd must be a scalar"):
        make(ALPHA).apply({}, odd)


@pytest.mark.parametrize("make", [learned_rate, meta_sgd, meta_curvature, kfo, nonlinear_kfo])
def test_a_rule_of_another_model(make) -> None:
    rule = make(ALPHA)
    with pytest.raises(
        ValueError, match=r"of the rule must have shape .*, got none; make it by init of this model"
    ):
        rule.apply({}, gradients())
    if make is not learned_rate:
        with pytest.raises(ValueError, match=r"w\..* of the rule must have shape"):
            rule.apply(
                rule.init({"w": normal(1)}), {"w": normal(5)}
            )  # else 1 would be broadcast to 5


def test_rules_by_name() -> None:
    params = {"w": torch.zeros(2, 3)}
    for name, make in RULES.items():
        assert rule_named(name, ALPHA).init(params).keys() == make(ALPHA).init(params).keys()
    assert rule_named("per-step rates", ALPHA, 4).init(params)["w.scales"].shape == (4,)
    with pytest.raises(ValueError, match=r"one of SGD, .*, per-step rates, got 'Adam'"):
        rule_named("Adam", ALPHA)
