"""Time limits in whole minutes, a quarter above the prediction."""

import pytest

from flora_hpc.cli._jobtime import limit


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:05:00"), (240, "0:05:00"), (241, "0:06:00"), (3000, "1:03:00"), (90_000, "31:15:00")]
)
def test_limits(seconds: float, text: str) -> None:
    assert limit(seconds) == text
