"""Who takes part: each makes, for a :class:`works.Work`, a function that returns the meta-gradients
of its runs.

A gradient is a dict {name: array [run, ...]}, of all runs of the fleet, or of the first
``peer_runs`` where the library takes one run at a time.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from companion.meta_optimizers import sgd
from companion.objectives import first_order_maml, maml
from companion.tasks import Task
from companion.training import fleet_gradient
from works import Work

Gradients = dict[str, Any]
Step = Callable[[], Gradients]


def _ours(work: Work, compiled: bool) -> Step:
    kind = first_order_maml if work.first_order else maml
    objective = kind(work.loss, steps=work.steps, update=sgd(work.alpha))
    task_chunk = 1 if work.kind == "cnn" and work.device == "cpu" else None
    gradient = fleet_gradient(objective, task_chunk=task_chunk, compiled=compiled)
    params, tasks = work.data()
    return lambda: gradient(params, tasks)[0]


def companion_plain(work: Work) -> Step:
    """This package without compilation."""
    return _ours(work, compiled=False)


def companion_compiled(work: Work) -> Step | None:
    """This package through torch.compile."""
    return _ours(work, compiled=True) if work.compiled else None


def _modules(work: Work) -> Iterator[tuple[torch.nn.Module, list[Task]]]:
    """A module and the tasks of every run that a peer takes."""
    params, tasks = work.data()
    for run in range(min(work.peer_runs, work.runs)):
        module = work.module({name: value[run] for name, value in params.items()})
        sides = [[(side[0][run, i], side[1][run, i]) for side in tasks] for i in range(work.tasks)]
        yield module, [Task(*pair) for pair in sides]


def _criterion(work: Work) -> Callable[..., torch.Tensor]:
    if work.kind == "cnn":
        return torch.nn.functional.cross_entropy
    return lambda outputs, y: ((outputs - y) ** 2).mean() / 2


def _collected(modules: list[tuple[torch.nn.Module, list[Task]]]) -> Gradients:
    grads = [[p.grad for p in module.parameters()] for module, _ in modules]
    return {name: torch.stack(leaves)
            for name, leaves in zip(modules[0][0].names, zip(*grads, strict=True), strict=True)}


def higher(work: Work) -> Step:
    """higher: a patched module and a differentiable optimiser, task after task."""
    import higher as library

    modules, criterion = list(_modules(work)), _criterion(work)

    def step() -> Gradients:
        for module, tasks in modules:
            module.zero_grad()
            inner = torch.optim.SGD(module.parameters(), lr=work.alpha)
            for task in tasks:
                with library.innerloop_ctx(
                    module,
                    inner,
                    copy_initial_weights=False,
                    track_higher_grads=not work.first_order,
                ) as (patched, differentiable):
                    for _ in range(work.steps):
                        differentiable.step(criterion(patched(task.support[0]), task.support[1]))
                    value = criterion(patched(task.query[0]), task.query[1]) / len(tasks)
                    if work.first_order:
                        slopes = torch.autograd.grad(value, list(patched.parameters()))
                        for p, slope in zip(module.parameters(), slopes, strict=True):
                            p.grad = slope if p.grad is None else p.grad + slope
                    else:
                        value.backward()
        return _collected(modules)

    return step


def torchopt(work: Work) -> Step | None:
    """TorchOpt: its differentiable MetaSGD, task after task. It has no first-order form."""
    import torchopt as library

    if work.first_order:
        return None
    modules, criterion = list(_modules(work)), _criterion(work)

    def step() -> Gradients:
        for module, tasks in modules:
            module.zero_grad()
            inner = library.MetaSGD(module, lr=work.alpha)
            start = [library.extract_state_dict(of, by="reference") for of in (module, inner)]
            originals = dict(module.named_parameters())
            for task in tasks:
                for _ in range(work.steps):
                    inner.step(criterion(module(task.support[0]), task.support[1]))
                (criterion(module(task.query[0]), task.query[1]) / len(tasks)).backward()
                library.recover_state_dict(module, start[0])
                library.recover_state_dict(inner, start[1])
            assert all(value is originals[name] for name, value in module.named_parameters())
        return _collected(modules)

    return step


def _jax_apply(work: Work, patches: bool) -> Callable[..., Any]:
    import jax
    from jax import lax
    from jax import numpy as jnp

    acts = {"erf": lambda u: lax.erf(u / np.sqrt(2).astype(u.dtype)), "tanh": jnp.tanh}

    def two_layer(p: Any, x: Any) -> Any:
        return acts[work.size["activation_name"]](x @ p["weight"].T).sum(-1)

    def mlp(p: Any, x: Any) -> Any:
        last = len(p) // 2 - 1
        for i in range(last + 1):
            x = x @ p[f"{i}.weight"].T + p[f"{i}.bias"]
            x = acts[work.size["activation_name"]](x) if i < last else x
        return x[:, 0]

    def by_patches(p: Any, x: Any) -> Any:
        x = x.transpose(0, 2, 3, 1)
        for i in range(work.size["blocks"]):
            (_, height, width, _), filters = x.shape, p[f"{i}.conv"]
            padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            parts = [padded[:, a:a + height, b:b + width] for a in range(3) for b in range(3)]
            x = jnp.concatenate(parts, -1) @ filters.transpose(2, 3, 1, 0).reshape(-1, len(filters))
            x = (x - x.mean((0, 1, 2))) / jnp.sqrt(x.var((0, 1, 2)) + 1e-5)
            x = x * p[f"{i}.scale"] + p[f"{i}.shift"]
            x = jnp.maximum(x[:, ::2], x[:, 1::2])
            x = jax.nn.relu(jnp.maximum(x[:, :, ::2], x[:, :, 1::2]))
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        return x @ p["head.weight"].T + p["head.bias"]

    def cnn(p: Any, x: Any) -> Any:
        for i in range(work.size["blocks"]):
            x = lax.conv_general_dilated(x, p[f"{i}.conv"], (1, 1), "SAME")
            mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
            x = (x - mean) / jnp.sqrt(var + 1e-5) * p[f"{i}.scale"][:, None, None] + p[
                f"{i}.shift"
            ][:, None, None]
            x = lax.reduce_window(jax.nn.relu(x), -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2),
                                  "VALID")
        return x.reshape(len(x), -1) @ p["head.weight"].T + p["head.bias"]

    return {"two_layer": two_layer, "mlp": mlp, "cnn": by_patches if patches else cnn}[work.kind]


def _jax(work: Work, over_tasks: Callable[..., Any], *, patches: bool = False) -> Step:
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_enable_x64", work.dtype == torch.float64)
    apply = _jax_apply(work, patches)

    def loss(p: Any, batch: Any) -> Any:
        x, y = batch
        if work.kind == "cnn":
            return -jnp.take_along_axis(jax.nn.log_softmax(apply(p, x)), y[:, None], axis=1).mean()
        return ((apply(p, x) - y) ** 2).mean() / 2

    def objective(p: Any, task: Any) -> Any:
        support, query = task
        moved = p
        for _ in range(work.steps):
            slopes = jax.grad(loss)(moved, support)
            slopes = jax.lax.stop_gradient(slopes) if work.first_order else slopes
            moved = jax.tree.map(lambda value, slope: value - work.alpha * slope, moved, slopes)
        return loss(moved, query)

    def of_run(p: Any, tasks: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.mean(0),
                            over_tasks(lambda task: jax.grad(objective)(p, task), tasks))

    step = (
        jax.jit(jax.vmap(of_run))
        if work.runs > 1
        else jax.jit(
            lambda p, tasks: jax.tree.map(lambda leaf: leaf[None],
                                          of_run(*jax.tree.map(lambda leaf: leaf[0], (p, tasks))))
        )
    )
    params, tasks = work.data()
    device = jax.devices("gpu" if work.device == "cuda" else "cpu")[0]
    params, tasks = jax.tree.map(lambda leaf: jax.device_put(leaf.cpu().numpy(), device),
                                 (params, tuple(tuple(side) for side in tasks)))
    return lambda: jax.block_until_ready(step(params, tasks))


def jax_vmap(work: Work) -> Step | None:
    """JAX: jitted, vmapped over runs and tasks."""
    import jax

    if work.name == "cnn-cpu":
        return None  # minutes: see jax_patches
    return _jax(work, lambda function, tasks: jax.vmap(function)(tasks))


def jax_patches(work: Work) -> Step | None:
    """JAX: jitted, one task after the other, convolutions as products of 3x3 patches: on a CPU its
    own primitive takes 4 times as long."""
    import jax

    if work.kind != "cnn" or work.device != "cpu":
        return None
    return _jax(work, jax.lax.map, patches=True)


CONTESTANTS: dict[str, Callable[[Work], Step | None]] = {
    "companion": companion_plain, "companion, compiled": companion_compiled, "higher": higher,
    "TorchOpt": torchopt, "JAX, vmap": jax_vmap, "JAX, patches": jax_patches}
PER_RUN = {"higher", "TorchOpt"}  # these take one run at a time and are given `peer_runs` of them


def arrays(gradients: Gradients) -> dict[str, Any]:
    """A gradient as NumPy arrays."""
    return {
        name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        for name, value in gradients.items()
    }
