import pytest
import torch

from companion.streams import normals, stream, torch_stream


def test_a_stream_is_fixed_by_its_seed_and_purpose() -> None:
    first = stream(3, "tasks").integers(0, 2**32, 4).tolist()
    assert first == stream(3, "tasks").integers(0, 2**32, 4).tolist()
    assert first != stream(4, "tasks").integers(0, 2**32, 4).tolist()
    assert first != stream(3, "inputs").integers(0, 2**32, 4).tolist()


@pytest.mark.parametrize("seed", [-1, 0.5, [1, 2]])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(ValueError, match="seed must"):
        stream(seed, "tasks")


def test_torch_streams() -> None:
    def draw(seed: int, purpose: str) -> torch.Tensor:
        return torch.randn(20, generator=torch_stream(seed, purpose))

    assert torch.equal(draw(3, "tasks"), draw(3, "tasks"))
    assert not torch.equal(draw(3, "tasks"), draw(4, "tasks"))
    assert not torch.equal(draw(3, "tasks"), draw(3, "inputs"))
    with pytest.raises(ValueError, match="seed must"):
        torch_stream(-1, "tasks")


def test_normals_depend_on_seed_and_step_alone() -> None:
    shapes = {"a": (3,), "b": (2, 5)}
    many, one = normals([4, 7, 4], "tests", shapes), normals([7], "tests", shapes)
    for step in (0, 1, 63, 64, 200, 1):  # in and out of blocks, and back
        for name, shape in shapes.items():
            drawn = many(step)[name]
            assert drawn.shape == (3, *shape)
            assert torch.equal(drawn[1:2], one(step)[name])
            assert torch.equal(drawn[0], drawn[2])
            assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(one(0)["a"], one(1)["a"])
    big = torch.cat([normals(range(50), "tests", {"a": (20,)})(step)["a"] for step in range(70)])
    assert abs(big.mean().item()) < 4 / big.numel() ** 0.5
    assert big.var().item() == pytest.approx(1, abs=0.02)
