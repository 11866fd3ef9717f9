import dataclasses
import json

import pytest

from fastdit import AdaptiveConfig, AttentionConfig, ConfigError, Schedule


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": 1.5}, "top_p=1.5: accepted is a fraction between 0 and 1"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": float("nan")}, "top_p"),
        ({"top_p": "much"}, "top_p"),
        ({"density": 2}, "density"),
        ({"min_density": 0.5, "max_density": 0.2}, "above max_density"),
        ({"q_tile": 0}, "q_tile"),
        ({"kv_tile": 2.5}, "kv_tile"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": True}, "min_tokens"),
        ({"order": "random"}, "'gilbert'"),
        ({"implementation": "cuda"}, "'auto'"),
        ({"schedule": 0.2}, "fastdit.Schedule"),
    ],
)
def test_values_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        AdaptiveConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"dense_steps": 1.5}, {"dense_steps": -1}, {"dense_steps": True}, {"dense_layers": [0]}, {"dense_layers": (0.5,)}],
)
def test_bad_schedules_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Schedule(**settings)


def test_configs_are_frozen_and_serialise():
    config = AdaptiveConfig(density=0.2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.density = 0.3
    assert json.loads(json.dumps(config.to_dict()))["method"] == "adaptive"


def test_the_base_config_has_no_selector():
    with pytest.raises(ConfigError, match="no selector"):
        AttentionConfig().select(None, None, None, None)


@pytest.mark.parametrize(
    ("dense_steps", "total", "expected"),
    [(0.2, 20, 4), (0.2, 15, 3), (0.1, 4, 1), (0.0, 4, 0), (3, 50, 3), (1.0, 7, 7)],
)
def test_dense_steps_as_fraction_round_up_and_as_count_are_taken(dense_steps, total, expected):
    schedule = Schedule(dense_steps=dense_steps)
    assert schedule.resolve_dense_steps(total) == expected
    assert [schedule.is_dense_step(step, total) for step in range(total)] == [step < expected for step in range(total)]


def test_a_fraction_needs_to_know_the_number_of_steps():
    with pytest.raises(ConfigError, match="give dense_steps as an int"):
        Schedule(dense_steps=0.2).resolve_dense_steps(None)
    assert Schedule(dense_steps=2).resolve_dense_steps(None) == 2
    assert Schedule(dense_steps=0.0).resolve_dense_steps(None) == 0


def test_layers_may_be_counted_from_the_end():
    schedule = Schedule(dense_layers=(0, -1))
    assert [schedule.is_dense_layer(layer, 4) for layer in range(4)] == [True, False, False, True]
