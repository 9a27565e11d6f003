"""Processes killed at random moments lose nothing that they called safe, and go on bit by bit."""

import shutil

import pytest

from tests.faults import kills, writer


def test_killed_writers_lose_nothing(tmp_path):
    campaign = writer.Campaign(tmp_path / "run", seed=1)
    for _ in range(25):
        campaign.kill()
    assert campaign.safe > 25 and sum(campaign.left.values()) > 0


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    campaign = kills.Campaign(tmp_path_factory.mktemp("kills") / "runs", seed=3, steps=120)
    campaign.go(2)
    return campaign


def test_a_training_run_killed_twice_equals_one_that_was_not(campaign):
    assert len(campaign.kills) == 2 and campaign.lost == []


def test_the_comparison_sees_the_least_difference(campaign, tmp_path):
    """A campaign that could not fail would prove nothing."""
    changed = tmp_path / "changed"
    shutil.copytree(campaign.whole, changed)
    state = changed / "checkpoints" / "120" / "state.safetensors"
    content = bytearray(state.read_bytes())
    content[-1] ^= 1
    state.write_bytes(content)
    rows = (changed / "metrics.csv").read_text().splitlines(keepends=True)
    (changed / "metrics.csv").write_text("".join([*rows, rows[-1]]))
    found = kills.differences(campaign.whole, changed)
    assert len(found) == 2 and "metrics.csv" in found


@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
    campaign = kills.Campaign(tmp_path / "runs", seed=0)
    campaign.go(200)
    assert campaign.lost == []


@pytest.mark.slow
def test_two_thousand_killed_writers(tmp_path):
    campaign = writer.Campaign(tmp_path / "run", seed=0)
    for _ in range(2000):
        campaign.kill()
