import pytest

from companion.streams import stream


def test_a_stream_is_fixed_by_its_seed_and_purpose() -> None:
    first = stream(3, "tasks").integers(0, 2**32, 4).tolist()
    assert first == stream(3, "tasks").integers(0, 2**32, 4).tolist()
    assert first != stream(4, "tasks").integers(0, 2**32, 4).tolist()
    assert first != stream(3, "inputs").integers(0, 2**32, 4).tolist()


@pytest.mark.parametrize("seed", [-1, 0.5, [1, 2]])
def test_bad_seed(seed: object) -> None:
    with pytest.raises(ValueError, match="seed must"):
        stream(seed, "tasks")
