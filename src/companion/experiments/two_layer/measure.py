"""Two-layer networks, measured: fleets of NAL and MAML trained on teacher-student tasks, and their
risks (paper L)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.func import grad, vmap

from companion import streams, training
from companion.adaptation import Loss, adapt
from companion.experiments.two_layer.local import mean_curvature
from companion.losses import squared_error
from companion.meta_optimizers import Params, sgd
from companion.nets import two_layer
from companion.objectives import maml, nal
from companion.tasks import Task, teachers
from companion.tasks.teachers import Teachers
from companion.theory.kernels import KERNELS, population_loss

METHODS = ("nal", "maml")
Normals = dict[str, torch.Tensor]


class Sizes(NamedTuple):
    """What a fleet costs: tasks a step, outer steps, their first rate, query samples, and tasks it
    is tested on."""

    tasks: int
    steps: int
    rate: float
    query: int
    test_tasks: int


class Fleet(NamedTuple):
    """Runs trained together: their ``seeds``, families [run, ...], inner steps ``alpha`` [run], and
    what they share."""

    activation: str
    support: (
        int | None
    )  # samples to adapt on; None is the full batch, the exact gradient of the population
    seeds: tuple[int, ...]
    families: Teachers
    alpha: torch.Tensor

    @property
    def exact(self) -> bool:
        """Whether the activation has closed-form population losses."""
        return self.activation in KERNELS

    def normals(
        self, purpose: str, tasks: int, samples: int
    ) -> Callable[[int], dict[str, torch.Tensor]]:
        """The draws of the fleet for ``purpose``, a step at a time."""
        shapes = teachers.shapes(self.families, tasks, samples)
        device, dtype = str(self.alpha.device), self.alpha.dtype
        return streams.normals(self.seeds, f"two_layer/{purpose}", shapes, device=device,
                               dtype=dtype)


def fleet(activation: str, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int], *, dim: int,
          hidden: int, support: int | None, device: str = "cpu") -> Fleet:
    """A run for every setting and seed. The inner step is ``alpha`` over the largest curvature of
    the easy tasks.

    A setting holds the arguments of :func:`companion.tasks.teachers.family` and ``alpha``. Runs of
    one seed share centres, start and draws, whatever their setting.

    Raises:
        ValueError: an argument of the family out of range.
    """
    families, alphas, of_run = [], [], []
    for setting in settings:
        of = {name: value for name, value in setting.items() if name != "alpha"}
        for seed in seeds:
            rng = streams.torch_stream(seed, "two_layer/centres")
            found = teachers.family(rng, dim=dim, hidden=hidden, **of)
            top = torch.linalg.eigvalsh(mean_curvature(activation, found, teachers.EASY, seed))[-1]
            families.append(found)
            alphas.append(setting["alpha"] / top)
            of_run.append(seed)
    both = teachers.on((teachers.stacked(families), torch.stack(alphas)), device=device)
    return Fleet(activation, support, tuple(of_run), *both)


def run(of: Fleet, index: int) -> Teachers:
    """The family of one run, on the CPU."""
    return Teachers(*(leaf[index].cpu() for leaf in of.families))


def sides(of: Fleet, query: int) -> tuple[Loss, Callable[[Teachers, Normals], Task], int]:
    """The loss of the fleet's tasks, how a task is made from its normals, and how many samples that
    takes."""
    if of.support is None:
        return population(of.activation), teachers.population_task, 0
    apply = two_layer(1, 1, of.activation).apply
    make = partial(teachers.sampled_task, apply=apply, support=of.support)
    return squared_error(apply), make, of.support + query


def population(activation: str) -> Loss:
    """The exact loss on a batch (teacher, rho)."""
    return lambda params, batch: population_loss(params["weight"], batch[0], batch[1], activation)


def start(of: Fleet) -> Params:
    """Where the runs begin, [run, hidden, dim]: rows of length about one, the same for both
    methods."""
    hidden, dim = of.families.centres.shape[-2:]
    init = partial(two_layer(dim, hidden).init, dtype=of.alpha.dtype)
    drawn = {seed: init(streams.torch_stream(seed, "two_layer/start"))["weight"]
             for seed in set(of.seeds)}
    return {"weight": torch.stack([drawn[seed] for seed in of.seeds]).to(of.alpha.device)}


def objective(of: Fleet, method: str, query: int) -> training.Objective:
    """What ``method``, "nal" or "maml" with one inner step, minimises: (params, normals, family,
    alpha) -> scalar."""
    loss, make, samples = sides(of, query)

    def plain(
        params: Params, normal: Normals, family: Teachers, alpha: torch.Tensor
    ) -> torch.Tensor:
        task = make(family, normal)
        return nal(loss)(params, task) if samples else loss(params, task.query)

    def adaptive(
        params: Params, normal: Normals, family: Teachers, alpha: torch.Tensor
    ) -> torch.Tensor:
        return maml(loss, steps=1, update=sgd(alpha))(params, make(family, normal))

    return {"nal": plain, "maml": adaptive}[method]


def train(of: Fleet, method: str, sizes: Sizes) -> Params:
    """The solutions of ``method``, [run, hidden, dim]: Adam on fresh tasks, its rate decayed to
    0."""
    families, alpha, begin = (of.families, of.alpha, start(of))
    if of.support is not None:  # samples are noisier than float32
        families, alpha, begin = teachers.on((families, alpha, begin), dtype=torch.float32)
    of = of._replace(families=families, alpha=alpha)
    gradient = training.fleet_gradient(objective(of, method, sizes.query))
    found = training.train(gradient, begin,
                           of.normals("train", sizes.tasks, sides(of, sizes.query)[2]),
                           optimizer=training.adam(training.cosine(sizes.rate, sizes.steps)),
                           steps=sizes.steps, settings=(families, alpha))
    return {name: value.double() for name, value in found.items()}


class Scores(NamedTuple):
    """Of every test task, [run, task]: its group (1 is hard), risks before and after adaptation,
    gradient norm."""

    group: torch.Tensor
    before: torch.Tensor
    after: torch.Tensor
    gradient: torch.Tensor


def scores(of: Fleet, params: Params, sizes: Sizes, *, batch: int = 50) -> Scores:
    """How ``params`` [run, ...] do on test tasks that all methods share.

    Risks are exact where the activation has a closed form, and means over ``sizes.query`` samples
    elsewhere.
    """
    loss, make, samples = sides(of, sizes.query)

    def judge(params: Params, normal: Normals, family: Teachers, alpha: torch.Tensor) -> Scores:
        task = make(family, normal)
        weights, rho, group = teachers.teacher(family, normal)
        exact, query = (
            (population(of.activation), (weights, rho)) if of.exact else (loss, task.query)
        )
        moved = adapt(loss, params, task.support, steps=1, update=sgd(alpha))
        slope = grad(exact)(params, query)["weight"]
        return Scores(group, exact(params, query), exact(moved, query), slope.square().sum().sqrt())

    of_fleet = vmap(vmap(judge, in_dims=(None, 0, None, None)))
    draw = of.normals("test", batch, samples)
    parts = [of_fleet(params, draw(i), of.families, of.alpha)
             for i in range(-(-sizes.test_tasks // batch))]
    return Scores(*(torch.cat(leaves, dim=1) for leaves in zip(*parts, strict=True)))


def group_means(values: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The means of ``values`` [run, task] over easy and over hard tasks, two [run]."""
    hard = group.to(values.dtype)
    return (values * (1 - hard)).sum(1) / (1 - hard).sum(1), (values * hard).sum(1) / hard.sum(1)
