from collections.abc import Callable

import pytest
import torch
from torch.utils._pytree import tree_leaves

from companion.tasks import Fleet


@pytest.fixture
def check_draws() -> Callable[[Callable[[tuple[int, ...]], Fleet]], None]:
    """Checks that draws depend on seed, purpose and step alone, whatever runs are beside, and that
    runs of one seed draw alike. The fleets made must have every seed twice, seeds innermost."""

    def check(make: Callable[[tuple[int, ...]], Fleet]) -> None:
        many, one = make((7, 4)), make((4,))
        assert (many.seeds, one.seeds) == ((7, 4) * 2, (4, 4))
        draw, alone, other = (fleet.draw(fleet, purpose, 3, 4) for fleet, purpose in
                              ((many, "train"), (one, "train"), (one, "test")))
        for step in (0, 5, 70, 0):  # in and out of blocks, and back
            for mine, same in zip(tree_leaves(draw(step)), tree_leaves(alone(step)), strict=True):
                assert torch.equal(mine[1], same[0])
                assert torch.equal(mine[:2], mine[2:])
        first, mine, later, tested = (tree_leaves(each)[0] for each in (
            draw(0), alone(0), alone(1), other(0)))
        assert not torch.equal(first[0], first[1])
        assert not torch.equal(mine, later)
        assert not torch.equal(mine, tested)

    return check
