"""Steps of transformers with random weights: what the figures are made of."""

import pytest
import torch

from fastdit import AdaptiveConfig, VideoGrid
from fastdit.forecast import forecast_run
from fastdit.gain_forecast import GainForecast, forecast_gain
from fastdit_eval.bench_methods import ALL_SPARSE, bench_config
from fastdit_eval.e2e_bench import ModelTask, describe_forecast, project_run
from fastdit_eval.step_bench import measure_steps

CPU = torch.device("cpu")
GRID = VideoGrid(frames=3, height=8, width=12)


def task(transformer=None, call=None, layers=2):
    return ModelTask(
        transformer=transformer,
        call=call,
        grid=GRID,
        heads=2,
        head_dim=12,
        layers=layers,
        flops=(1e9, 1e9),
        num_inference_steps=50,
        dtype=torch.float32,
        device=CPU,
        card="cpu",
    )


def test_steps_are_timed_with_their_layers_and_nothing_stays(tiny_wan):
    transformer = tiny_wan.transformer
    latents = torch.randn(1, 16, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 8, transformer.config.text_dim)

    def call():
        return transformer(latents, torch.tensor([500]), text, return_dict=False)

    configs = {name: bench_config(name, 0.5, GRID) for name in ("adaptive", "cached")}
    processors = [block.attn1.processor for block in transformer.blocks]
    report = measure_steps(transformer, call, configs, 2, CPU)
    assert [block.attn1.processor for block in transformer.blocks] == processors
    assert not transformer.blocks[0].attn1._forward_hooks
    assert len(report["dense"]["seconds"]["each"]) == 2
    assert 0 < report["dense"]["attention_layers_share"] < 1
    assert report["dense"]["peak_memory_bytes"] > latents.nbytes
    for name in configs:
        row = report["methods"][name]
        assert 0.2 < row["density"] < 1
        assert 0 < row["attention_layers_seconds"] < row["seconds"]["median"]
        assert row["step_speedup_range"][0] <= row["step_speedup"] <= row["step_speedup_range"][1]
    cached = report["methods"]["cached"]
    low, high = sorted((cached["build_seconds"], cached["reuse_seconds"]))
    assert 0.9 * low <= cached["seconds"]["median"] <= 1.1 * high


def test_the_projection_counts_dense_steps_layers_and_settling():
    dense = {"seconds": {"median": 10.0}, "attention_layers_seconds": 8.0}
    sparse = {"seconds": {"median": 4.0}, "attention_layers_seconds": 2.0, "first_seconds": 7.0, "density": 0.2}
    found = project_run(task(layers=4), dense, sparse)
    # Ten of 50 steps and one of four layers dense; a layer dense costs 1.5 s more; the first sparse step 3 s more.
    assert found["speedup"] == pytest.approx(500 / (10 * 10 + 40 * 5.5 + 3))
    assert found["density"] == pytest.approx((10 + 40 * (0.2 * 3 + 1) / 4) / 50)
    assert found["is_projection"] is True


def forecast(attention):
    return GainForecast(
        attention=attention, step=None, run=None, selection=0.0, moving=0.0, source=None, efficiency=None
    )


def test_a_method_that_will_not_pay_is_announced():
    assert forecast((1.2, 3.0)).warning() is None
    assert "slower than dense" in forecast((0.5, 0.9)).warning()
    assert "may be slower" in forecast((0.8, 1.5)).warning()
    assert "unknown" in forecast(None).warning()
    assert describe_forecast(forecast((1.2, 3.0)), 0.9)["slower_without_warning"] is True
    assert describe_forecast(forecast((0.5, 0.9)), 0.9)["slower_without_warning"] is False
    assert describe_forecast(forecast((1.2, 3.0)), 1.1)["slower_without_warning"] is False


@pytest.mark.parametrize(("density", "warns"), [(0.1, False), (0.95, True)])
def test_the_forecast_depends_on_the_density(density, warns):
    grid = VideoGrid(frames=8, height=32, width=32)
    config = AdaptiveConfig(density=density, schedule=ALL_SPARSE)
    found = forecast_gain(config, grid, forecast_run(config, grid, 4, 2, 50), 64, (1e12, 1e12), "cpu")
    assert (found.warning() is not None) == warns


def test_selection_and_moving_weigh_more_in_short_sequences():
    shares = []
    for side in (16, 64):
        grid = VideoGrid(frames=8, height=side, width=side)
        config = bench_config("pyramid", 0.1, grid)
        shares.append(forecast_gain(config, grid, forecast_run(config, grid, 4, 2, 50), 64, (1e12, 1e12), "h100"))
    assert shares[0].selection > 2 * shares[1].selection > 0
    assert shares[0].moving == pytest.approx(16 * shares[1].moving)
    assert shares[0].attention[0] < shares[1].attention[0]
