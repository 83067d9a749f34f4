import math

import pytest
import torch
from torch import nn
from torch.func import grad, vmap

from companion import nets, training
from companion.losses import cross_entropy, logistic, squared_error
from companion.meta_optimizers import Params, kfo, sgd
from companion.nets import from_module
from companion.objectives import joined, learned, maml
from companion.streams import torch_stream
from companion.tasks import Task

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(1), dtype=F64)


def test_two_layer_is_a_sum_over_hidden_units() -> None:
    net, x = nets.two_layer(3, 4, "erf"), inputs(6, 3)
    params = net.init(generator(), dtype=F64)
    expected = [sum(math.erf(float(w @ row) / math.sqrt(2)) for w in params["weight"]) for row in x]
    torch.testing.assert_close(net.apply(params, x), torch.tensor(expected, dtype=F64))


def test_an_mlp_is_that_of_torch() -> None:
    net, x = nets.mlp((3, 5, 4, 2), "tanh"), inputs(6, 3)
    params = net.init(generator(), dtype=F64)
    params["1.bias"] += 1
    peer = nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)
    ).double()
    for layer, i in zip(peer[::2], range(3), strict=True):
        layer.weight.data, layer.bias.data = params[f"{i}.weight"], params[f"{i}.bias"]
    torch.testing.assert_close(net.apply(params, x), peer(x))


def test_a_deep_linear_net_is_the_product_of_its_matrices() -> None:
    net, x = nets.deep_linear((3, 5, 4, 2)), inputs(6, 3)
    params = net.init(generator(), dtype=F64)
    assert list(params) == ["0.weight", "1.weight", "2.weight"]
    product = params["2.weight"] @ params["1.weight"] @ params["0.weight"]
    torch.testing.assert_close(net.apply(params, x), x @ product.T)
    line = nets.linear(3)
    assert line.apply(line.init(generator(), dtype=F64), x).shape == (6,)


@pytest.mark.parametrize("pool", [True, False])
def test_a_cnn_is_that_of_torch(pool: bool) -> None:
    net, x = nets.cnn((2, 9, 8), 5, 2, 3, pool=pool), inputs(6, 2, 9, 8)
    params = net.init(generator(), dtype=F64)
    params["1.shift"] += torch.linspace(-1, 1, 5)
    blocks = []
    for i, channels in enumerate((2, 5)):
        conv, norm = (nn.Conv2d(channels, 5, 3, padding=1, bias=False).double(),
                      nn.BatchNorm2d(5).double())
        conv.weight.data, norm.weight.data, norm.bias.data = (
            params[f"{i}.{n}"] for n in ("conv", "scale", "shift")
        )
        blocks += [conv, norm, nn.ReLU(), *([nn.MaxPool2d(2)] if pool else [])]
    head = nn.Linear(5 * 4 if pool else 5, 3).double()
    head.weight.data, head.bias.data = params["head.weight"], params["head.bias"]
    peer = nn.Sequential(*blocks, nn.Flatten() if pool else nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         head)
    torch.testing.assert_close(net.apply(params, x), peer(x))


@pytest.mark.parametrize("pool", [True, False])
def test_patches_compute_the_same_network(pool: bool) -> None:
    """Values and second derivatives, where images have blank margins whose maxima tie."""
    usual, patched = (nets.cnn((2, 9, 8), 5, 2, 3, pool=pool, linear_layers=1, patches=patches)
                      for patches in (False, True))
    params, x, y = usual.init(generator(), dtype=F64), inputs(6, 2, 9, 8), torch.arange(6) % 3
    x[:, :, :3] = 0

    def after_a_step(net: nets.Net):
        loss = cross_entropy(net.apply)

        def value(params):
            slopes = grad(loss)(params, (x, y))
            return loss({name: value - 0.3 * slopes[name] for name, value in params.items()},
                        (x.flip(0), y))

        return grad(value)(params)

    torch.testing.assert_close(patched.apply(params, x), usual.apply(params, x))
    expected, found = after_a_step(usual), after_a_step(patched)
    for name, slope in expected.items():
        assert slope.norm() > 1e-6 or name == "linear.0.bias"
        assert (found[name] - slope).norm() <= 1e-9 * max(1.0, float(slope.norm())), name


@pytest.mark.parametrize(("linear_layers", "square"), [(1, 1 / 2), (2, 3**-0.5)])
def test_linear_layers_start_balanced(linear_layers: int, square: float) -> None:
    """Semi-orthogonal factors, whose gradients' terms add up to a projection of the head's."""
    net = nets.cnn((1, 8, 8), 8, 2, 3, linear_layers=linear_layers, width=6)
    params = net.init(generator(), dtype=F64)
    factors = [value for name, value in params.items()
               if name.split(".")[0] in ("linear", "head") and name.endswith("weight")]
    assert len(factors) == linear_layers + 1
    for factor in factors:
        n = len(factor)
        torch.testing.assert_close(factor @ factor.mT, square * torch.eye(n, dtype=F64))
    assert (linear_layers + 1) * square**linear_layers == pytest.approx(1)
    wide = nets.cnn((1, 8, 8), 8, 2, 3, linear_layers=1, width=64).init(generator(), dtype=F64)
    low = wide["linear.0.weight"]
    torch.testing.assert_close(low.mT @ low, 0.5 * torch.eye(32, dtype=F64))


def test_starts_keep_the_scale() -> None:
    """Outputs of wide networks on standard normal inputs have a mean square near 1."""
    x = torch.randn(400, 200, generator=generator(1))
    for net in (nets.mlp((200, 300, 300, 50)), nets.linear(200, 50)):
        assert net.apply(net.init(generator()), x).square().mean().item() == pytest.approx(
            1, abs=0.2
        )
    lengths = nets.two_layer(200, 300).init(generator())["weight"].norm(dim=1)
    assert lengths.mean().item() == pytest.approx(1, abs=0.02)


def test_a_start_is_fixed_by_its_generator_and_fits_vmap() -> None:
    net = nets.cnn((1, 8, 8), 4, 2, 3)
    first, same, other = (net.init(generator(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["0.conv"], other["0.conv"])
    params = {name: torch.stack([first[name], other[name]]) for name in first}
    x = torch.randn(2, 6, 1, 8, 8, generator=generator(2))
    both = vmap(net.apply)(params, x)
    torch.testing.assert_close(both[1], net.apply(other, x[1]))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of identity, erf, .* got 'cos'"):
        nets.two_layer(3, 2, "cos")
    with pytest.raises(ValueError, match="widths must name inputs and outputs, two or more"):
        nets.mlp((3,))
    with pytest.raises(ValueError, match="widths must be at least 1"):
        nets.mlp((3, 0, 1))
    with pytest.raises(ValueError, match="hidden, dim must be a whole number"):
        nets.two_layer(3, 1.5)
    with pytest.raises(ValueError, match="image must be at least 16 wide and high for 4 poolings"):
        nets.cnn((1, 8, 8), 4, 4, 3)


LINNETS = [((3, 1), 0), ((3, 4, 1), 1), ((3, 5, 4, 6, 2), 2), ((3, 4, 4, 4, 4, 1), 4)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("widths", "linear_layers"), LINNETS)
def test_a_collapsed_net_computes_the_same(widths, linear_layers: int, dtype: torch.dtype,
                                           tolerance: float) -> None:
    net = nets.mlp(widths, "tanh", linear_layers=linear_layers)
    params = net.init(generator(2), dtype=dtype)
    params = {name: value + 0.1 * inputs(*value.shape).to(dtype) for name, value in params.items()}
    x = inputs(50, 3).to(dtype)
    plain = nets.mlp((*widths[: len(widths) - 1 - linear_layers], widths[-1]), "tanh")
    one = nets.collapsed(params, linear_layers)
    assert one.keys() == plain.init(generator(), dtype=dtype).keys()
    expected = net.apply(params, x)
    assert expected.std() > 0.05
    assert (plain.apply(one, x) - expected).abs().max() < tolerance * expected.abs().max()
    if linear_layers:  # layers are linear only where told
        assert not torch.allclose(nets.mlp(widths, "tanh").apply(params, x), expected, rtol=1e-2)


def test_a_fleet_collapses_run_by_run() -> None:
    net = nets.mlp((3, 4, 5, 2), "tanh", linear_layers=1)
    runs = [net.init(generator(seed), dtype=torch.float64) for seed in (0, 1)]
    fleet = nets.collapsed({name: torch.stack([run[name] for run in runs]) for name in runs[0]}, 1)
    for i, run in enumerate(runs):
        for name, value in nets.collapsed(run, 1).items():
            torch.testing.assert_close(fleet[name][i], value)


@pytest.mark.parametrize(
    ("call", "said"),
    [(lambda: nets.mlp((3, 0, 1), linear_layers=1), "a layer has at least one unit"),
     (lambda: nets.mlp((3, 4, 1), linear_layers=2),
      "linear_layers must be at most 1 for these widths, got 2"),
     (lambda: nets.mlp((3, 4, 1), linear_layers=-1), "linear_layers must be at least 0"),
     (lambda: nets.collapsed({"0.weight": torch.ones(1, 2)}, 1),
      "linear_layers must be below the 1 layers, got 1"),
     (lambda: nets.collapsed({"0.weight": torch.ones(1, 2)}, -1),
      "linear_layers must be at least 0")],
)
def test_linear_layers_out_of_range(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_logistic_loss() -> None:
    loss = logistic(lambda params, x: x @ params["w"])
    x, y = torch.tensor([[1.0], [-2.0]]), torch.tensor([1.0, 0.0])
    expected = (
        torch.log1p(torch.exp(torch.tensor(-3.0))) + torch.log1p(torch.exp(torch.tensor(-6.0)))
    ) / 2
    torch.testing.assert_close(loss({"w": torch.tensor([3.0])}, (x, y)), expected)
    for wrong in (y.long(), y[:, None]):
        with pytest.raises(ValueError,
                           match=r"y must be floating and have the outputs' shape \(2,\)"):
            loss({"w": torch.tensor([3.0])}, (x, wrong))


@pytest.mark.parametrize("linear_layers", [1, 3])
def test_the_added_layers_of_a_cnn_collapse_into_its_head(linear_layers: int) -> None:
    net = nets.cnn((1, 8, 8), 4, 2, 5, linear_layers=linear_layers, width=7)
    params = {name: value + 0.1
              for name, value in net.init(torch_stream(0, "tests/linnet"), dtype=F64).items()}
    one = nets.collapsed_head(params)
    assert set(one) == set(nets.cnn((1, 8, 8), 4, 2, 5).init(torch_stream(0, "tests/linnet")))
    assert one["head.weight"].shape == (5, 16)
    x = inputs(6, 1, 8, 8)
    torch.testing.assert_close(nets.cnn((1, 8, 8), 4, 2, 5).apply(one, x), net.apply(params, x),
                               rtol=1e-12, atol=1e-12)
    fleet = nets.collapsed_head(
        {name: torch.stack([value, 2 * value]) for name, value in params.items()}
    )
    torch.testing.assert_close(fleet["head.weight"][0], one["head.weight"])
    assert nets.head_names(one) == ("head.weight", "head.bias")
    assert len(nets.head_names(params)) == 2 * (linear_layers + 1)


def test_a_fresh_head_says_nothing() -> None:
    net = nets.cnn((1, 8, 8), 4, 2, 30)
    params = nets.fresh_head(net.init(torch_stream(0, "tests/fresh")), 5)
    assert not nets.cnn((1, 8, 8), 4, 2, 5).apply(params, inputs(6, 1, 8, 8).float()).any()
    assert params["head.weight"].shape == (5, 16)
    fleet = nets.fresh_head({name: value[None] for name, value in params.items()}, 3)
    assert fleet["head.bias"].shape == (1, 3)
    with pytest.raises(ValueError, match="ways must be at least 1"):
        nets.fresh_head(params, 0)


class Waves(nn.Module):
    """A Conv1d, a scalar, a constant buffer, a frozen and a shared parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4, track_running_stats=False)
        self.head, self.gain = nn.Linear(4, 4), nn.Parameter(torch.rand(()))
        self.again = self.head
        self.frozen = nn.Parameter(torch.rand(4), requires_grad=False)
        self.register_buffer("window", torch.rand(6))
        self.register_buffer("order", torch.tensor([3, 1, 0, 2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.norm(self.conv(x))) @ self.window
        hidden = self.again(torch.tanh(self.head(hidden + self.frozen)))
        return self.gain * hidden[:, self.order]


def waves(seed: int = 0) -> Waves:
    torch.manual_seed(seed)
    return Waves().double()


def wave_task() -> Task:
    x, y = inputs(14, 2, 8), torch.sin(3 * inputs(14, 4))
    return Task((x[:6], y[:6]), (x[6:], y[6:]))


def test_a_module_as_a_net_is_the_module() -> None:
    """Its outputs, and MAML through two steps by plain autograd on the module itself."""
    module, task, alpha = waves(), wave_task(), 0.3
    net = from_module(module)
    params = net.init(generator())
    learnable = {name: value for name, value in module.named_parameters() if value.requires_grad}
    assert "gain" in params
    assert params.keys() == learnable.keys()
    assert all(torch.equal(params[name], value) for name, value in learnable.items())
    torch.testing.assert_close(net.apply(params, task.query[0]), module(task.query[0]))
    found = grad(maml(squared_error(net.apply), steps=2, update=sgd(alpha)))(params, task)

    def score(values: dict[str, torch.Tensor], side: tuple[torch.Tensor, ...]) -> torch.Tensor:
        outputs = torch.func.functional_call(module, values, side[0])
        return (outputs - side[1]).square().sum() / (2 * len(side[1]))

    moved = learnable
    for _ in range(2):
        slopes = torch.autograd.grad(score(moved, task.support), moved.values(), create_graph=True)
        moved = {name: value - alpha * slope
                 for (name, value), slope in zip(moved.items(), slopes, strict=True)}
    exact = torch.autograd.grad(score(moved, task.query), learnable.values())
    for name, slope in zip(learnable, exact, strict=True):
        assert slope.abs().max() > (1e-12 if name == "conv.bias" else 1e-4) or name == "conv.bias"
        torch.testing.assert_close(found[name], slope, rtol=1e-9, atol=1e-12)


def test_a_fleet_of_modules_learns_and_leaves_the_module_alone() -> None:
    """KFO on Conv1d and a scalar; chunks of one run take plain autograd, larger ones vmap."""
    module, task, rule = waves(), wave_task(), kfo(0.1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    net = from_module(Waves)
    starts = [net.init(generator(seed), dtype=F64) for seed in (0, 1)]
    fleet = [joined(start, rule.init(start)) for start in starts]
    fleet = {name: torch.stack([one[name] for one in fleet]) for name in fleet[0]}
    tasks = Task(*[tuple(part.expand(2, 1, *part.shape) for part in side) for side in task])
    objective = learned(squared_error(net.apply), steps=1, rule=rule)
    gradient = training.fleet_gradient(objective)
    whole, single = (training.fleet_gradient(objective, chunk_size=chunk)(fleet, tasks)[0]
                     for chunk in (None, 1))
    for name in whole:
        torch.testing.assert_close(whole[name], single[name], rtol=1e-9, atol=1e-12)
    trained = training.train(gradient, fleet, lambda step: tasks, optimizer=training.adam(0.02),
                             steps=30)
    assert (gradient(trained, tasks)[1] < 0.8 * gradient(fleet, tasks)[1]).all()
    net = from_module(module)
    params = net.init(generator())
    for value in params.values():
        value.zero_()
    net.apply(params, task.query[0])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in net.init(generator()).items())


def test_a_function_that_makes_modules_draws_a_start_for_every_seed() -> None:
    net = from_module(Waves)
    state = torch.random.get_rng_state()
    first, same, other = (net.init(generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    module = waves()
    one, two = (from_module(module).init(generator(seed)) for seed in (0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_constants_of_a_module_follow_the_dtype() -> None:
    net = from_module(waves())
    params = net.init(generator(), dtype=torch.float32)
    assert {value.dtype for value in params.values()} == {torch.float32}
    x = inputs(6, 2, 8)
    single = net.apply(params, x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), waves()(x), rtol=1e-4, atol=1e-5)
    assert net.init(generator())["gain"].dtype == F64


class Counting(nn.Module):
    """Changes a buffer in its forward pass, in one of three ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.line, self.way = nn.Linear(3, 1), way
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.way == "in place":
            self.count += 1
        elif self.way == "by the data":
            self.count += x.mean()
        elif self.way == "anew":
            self.count = self.count + 1
        return self.line(x) + self.count


@pytest.mark.parametrize("way", ["in place", "by the data", "anew", "not"])
def test_a_module_that_changes_a_buffer_is_refused(way: str) -> None:
    net, x = from_module(Counting(way)), inputs(4, 3).float()
    params = net.init(generator())
    loss = lambda p, x: net.apply(p, x).sum()
    for call in (lambda: net.apply(params, x), lambda: grad(loss)(params, x),
                 lambda: vmap(grad(loss), in_dims=(None, 0))(params, x[None])):
        if way == "not":
            call()
            continue
        with pytest.raises(ValueError, match=r"leave buffers as they are, got a change of count"):
            call()


@pytest.mark.parametrize(
    ("make", "said"),
    [(lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)),
      r"1 \(BatchNorm1d\) must leave its buffers .*; pass track_running_stats=False, or call"),
     (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)),
      r"1 \(Dropout\) must draw nothing at random, got dropout 0\.3; set it to 0, or call"),
     (lambda: nn.LSTM(2, 2, 2, dropout=0.5), r"the module \(LSTM\) must draw nothing at random"),
     (lambda: nn.LazyLinear(2), r"\(LazyLinear\) must know its shapes"),
     (lambda: nn.ReLU(), "must have parameters that require a gradient, got none")],
)
def test_modules_that_are_refused(make, said: str) -> None:
    for module in (make, make()):
        with pytest.raises(ValueError, match=said):
            from_module(module)


def test_modules_in_evaluation_mode_are_taken() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.3))
    module(torch.ones(4, 2) * torch.arange(4)[:, None])
    net, x = from_module(module.eval()), inputs(5, 2).float()
    torch.testing.assert_close(net.apply(net.init(generator()), x), module(x))


def compiled(net: nets.Net, x: torch.Tensor, params: Params) -> Params:
    slope = grad(lambda p: net.apply(p, x).square().sum())
    return torch.compile(slope, fullgraph=True, backend="eager")(params)


def test_a_net_from_a_module_can_be_compiled() -> None:
    net, x = from_module(waves()), inputs(6, 2, 8)
    params = net.init(generator())
    plain = grad(lambda p: net.apply(p, x).square().sum())(params)
    torch.testing.assert_close(compiled(net, x, params), plain)


@pytest.mark.parametrize("way", ["in place", "by the data", "anew"])
def test_compiled_a_module_that_changes_a_buffer_is_not_taken(way: str) -> None:
    """:func:`companion.training.fleet_gradient` then computes without the compiler, which names
    the buffer."""
    net = from_module(Counting(way))
    params, x = net.init(generator()), inputs(4, 3).float()
    tasks = Task(*[(x[None, None], x[None, None, :, :1])] * 2)
    with pytest.raises(ValueError, match="got a change of count"):
        training.fleet_gradient(maml(squared_error(net.apply), steps=1, update=sgd(0.1)),
                                compiled=True)({n: v[None] for n, v in params.items()}, tasks)
