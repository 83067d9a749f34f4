"""The work that is timed: meta-gradients of MAML for given networks, starts and tasks, from fixed
seeds."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from companion import nets
from companion.losses import cross_entropy, squared_error
from companion.streams import torch_stream
from companion.tasks import Task


@dataclass(frozen=True)
class Work:
    """``runs`` fleets of one: each a start and ``tasks`` tasks. ``peer_runs`` of them are given to
    the peers that take one run at a time; every time is reported per run."""

    name: str
    title: str
    kind: str  # "two_layer", "mlp" or "cnn"
    runs: int
    tasks: int
    support: int
    query: int
    steps: int
    alpha: float
    size: dict[str, Any] = field(default_factory=dict)
    peer_runs: int = 1
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    first_order: bool = False
    compiled: bool = True  # whether our compiled form takes part

    @property
    def twin(self) -> "Work":
        """The same work on two runs of two tasks in double precision: in single, a rounding can
        flip a ReLU or a maximum, and after five steps the gradients of two libraries that are both
        right differ by per cents."""
        return replace(self, runs=min(2, self.runs), tasks=2, dtype=torch.float64)

    @property
    def net(self) -> nets.Net:
        """The network of the package."""
        build = {"two_layer": nets.two_layer, "mlp": nets.mlp, "cnn": nets.cnn}[self.kind]
        return build(**self.size)

    @property
    def loss(self) -> Any:
        """Its loss: half the mean squared error, or cross-entropy."""
        return (cross_entropy if self.kind == "cnn" else squared_error)(self.net.apply)

    def module(self, params: dict[str, torch.Tensor]) -> nn.Module:
        """The same network as a module of torch, with these parameters, for the peers that take
        modules."""
        return Module(self.kind, self.size, params)

    def data(self) -> tuple[dict[str, torch.Tensor], Task]:
        """Starts [run, ...] and tasks [run, task, ...], on the device."""
        rng = torch_stream(0, f"benchmarks/{self.name}")
        starts = [self.net.init(rng, dtype=self.dtype) for _ in range(self.runs)]
        params = {name: torch.stack([start[name] for start in starts]).to(self.device)
                  for name in starts[0]}
        many = (self.runs, self.tasks, self.support + self.query)
        shape = (self.size["image"]
                 if self.kind == "cnn"
                 else (self.size.get("dim") or self.size["widths"][0],))
        x = torch.randn(*many, *shape, generator=rng, dtype=self.dtype)
        if self.kind == "cnn":
            ways = self.size["ways"]
            y = (torch.arange(many[-1]) % ways).expand(many).contiguous()
            x = x + y[..., None, None, None] / ways  # so that there is something to learn
        else:
            y = torch.sin(x.sum(-1)) + torch.randn(many, generator=rng, dtype=self.dtype)
        x, y, m = x.to(self.device), y.to(self.device), self.support
        return params, Task((x[:, :, :m], y[:, :, :m]), (x[:, :, m:], y[:, :, m:]))


class Module(nn.Module):
    """A network of the package as a module: the same parameters under the same names, dots as
    underscores."""

    def __init__(self, kind: str, size: dict[str, Any], params: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.kind, self.size, self.names = kind, size, list(params)
        for name, value in params.items():
            self.register_parameter(name.replace(".", "_"), nn.Parameter(value.clone()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs."""
        p = {name: getattr(self, name.replace(".", "_")) for name in self.names}
        if self.kind == "two_layer":
            return nets.activation(self.size["activation_name"])(x @ p["weight"].T).sum(-1)
        if self.kind == "mlp":
            act, last = nets.activation(self.size["activation_name"]), len(p) // 2 - 1
            for i in range(last + 1):
                x = nn.functional.linear(x, p[f"{i}.weight"], p[f"{i}.bias"])
                x = act(x) if i < last else x
            return x.squeeze(-1)
        for i in range(self.size["blocks"]):
            x = nn.functional.conv2d(x, p[f"{i}.conv"], padding=1)
            x = nn.functional.batch_norm(x, None, None, p[f"{i}.scale"], p[f"{i}.shift"],
                                         training=True)
            x = nn.functional.max_pool2d(torch.relu(x), 2)
        return nn.functional.linear(x.flatten(1), p["head.weight"], p["head.bias"])


TWO_LAYER = dict(kind="two_layer", tasks=20, support=25, query=25, steps=1, alpha=0.1, peer_runs=2)
TWO_LAYER_SIZE = {"dim": 10, "hidden": 20, "activation_name": "erf"}
CNN = dict(kind="cnn", runs=1, support=25, query=25, steps=5, alpha=0.1)
CNN_SIZE = {"image": (3, 32, 32), "filters": 32, "blocks": 4, "ways": 5}

WORKS = [Work("two-layer-cpu", "two-layer net, fleet of 128, CPU", runs=128, size=TWO_LAYER_SIZE,
              **TWO_LAYER),
         Work("two-layer-cuda", "two-layer net, fleet of 4096, GPU", runs=4096, size=TWO_LAYER_SIZE,
              device="cuda", **TWO_LAYER),
         Work("cnn-cpu", "4-block CNN, meta-batch 16, CPU", tasks=16, size=CNN_SIZE, **CNN),
         Work("cnn-cuda", "4-block CNN, meta-batch 32, GPU", tasks=32, size=CNN_SIZE, device="cuda",
              **CNN)]

MLP = {"widths": (4, 6, 5, 1), "activation_name": "tanh"}
SMALL_CNN = {"image": (2, 8, 8), "filters": 4, "blocks": 2, "ways": 3}
_F64 = dict(runs=2, tasks=3, support=6, query=5, alpha=0.1, peer_runs=2, dtype=torch.float64)
CHECKS = [Work(f"{kind}-{steps}{'-first' if first else ''}", "", kind, size=size, steps=steps,
               first_order=first, compiled=(kind, steps) in (("two_layer", 1), ("cnn", 5)), **_F64)
          for kind, size in (("two_layer", {"dim": 4, "hidden": 3, "activation_name": "erf"}),
                             ("mlp", MLP), ("cnn", SMALL_CNN))
          for steps in (1, 5)
          for first in (False, True)]
