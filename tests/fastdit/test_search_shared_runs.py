"""What keeps the search cheap and its estimate sharp: shared calls, errors behind the projection, its price."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import fastdit
from fastdit.plan import TransformerIdentity
from fastdit.search.gains import gain_columns, phase_gains, sparse_from
from fastdit.search.head_errors import output_grams, projected_error
from fastdit.search.price import RunShape, attention_share, count_search
from fastdit.search.promise import USUAL_DEVIATION, first_aim, surplus_of
from fastdit.search.replay import RecordedCalls, calls_before, replayed
from fastdit.search.settings import SearchSettings
from fastdit.search.tables import order_tables

ONE = TransformerIdentity(class_name="Some", config_hash="0" * 64, num_layers=1, num_heads=2)


class Site(nn.Module):
    def __init__(self, to_out, heads=3):
        super().__init__()
        self.to_out, self.heads = to_out, heads


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: nn.ModuleList([x, nn.Dropout(0.0)]), nn.Sequential])
def test_errors_behind_the_projection_are_those_of_the_projection(wrap):
    torch.manual_seed(0)
    linear = nn.Linear(12, 10)
    missed = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    found = projected_error(missed, output_grams(Site(wrap(linear))))
    for head in range(3):
        columns = linear.weight.detach().double()[:, 4 * head : 4 * head + 4]
        assert found[head].item() == pytest.approx((missed[:, head] @ columns.T).square().mean().item())


@pytest.mark.parametrize("to_out", [None, nn.ModuleList(), nn.Linear(13, 4), nn.Linear(12, 4, device="meta")])
def test_sites_without_a_projection_are_measured_before_it(to_out):
    assert output_grams(Site(to_out)) is None


class Doubles(nn.Module):
    def __init__(self):
        super().__init__()
        self.computed = 0

    def forward(self, x, return_dict=True):
        self.computed += 1
        return (2 * x,) if not return_dict else 2 * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_recorded_calls_are_given_again_bit_for_bit_and_the_rest_is_computed(dtype, tmp_path):
    model, heard = Doubles(), []
    model.register_forward_pre_hook(lambda *_: heard.append(1))
    inputs = [torch.randn(3, 2, generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(6)]
    recorded = RecordedCalls(before=2)
    for number, x in enumerate(inputs):
        recorded.add(number // 2, model(x, return_dict=False))
    np.savez(tmp_path / "calls.npz", allow_pickle=False, **recorded.to_arrays())
    with np.load(tmp_path / "calls.npz", allow_pickle=False) as data:
        arrays = dict(data)
    assert len(calls_before(arrays, 2)) == 4
    model.computed, heard[:] = 0, []
    # Other inputs, so that what is computed can be told from what is replayed.
    with replayed([model], calls_before(arrays, 1)):
        found = [model(torch.zeros_like(x), return_dict=False)[0] for x in inputs]
    assert model.computed == 4
    assert len(heard) == 6
    for number, out in enumerate(found):
        assert out.dtype == dtype
        assert torch.equal(out, 2 * inputs[number] if number < 2 else torch.zeros(3, 2, dtype=dtype))
    assert torch.equal(model(inputs[0]), 2 * inputs[0])
    assert "forward" not in model.__dict__


def test_a_replayed_output_is_read_as_pipelines_do():
    model = Doubles()
    with replayed([model], [torch.ones(2), torch.ones(2)]):
        assert torch.equal(model(torch.zeros(2)).sample, torch.ones(2))
        assert torch.equal(model(x=torch.zeros(2))[0], torch.ones(2))


def test_calls_of_several_outputs_are_not_recorded():
    recorded = RecordedCalls(before=9)
    recorded.add(0, (torch.ones(1),))
    recorded.add(0, (torch.ones(1), torch.ones(1)))
    recorded.add(1, (torch.ones(1),))
    assert calls_before(recorded.to_arrays(), 9) == []


def test_gains_of_phases_are_what_each_adds():
    arrays = {"error_0": np.ones((3, 1, 2, 2)), "gain_0": np.ones((3, 1)), "joint_0": np.ones(2)}
    steps = [[[0]], [[1, 2]], [[3]]]
    gains = phase_gains([7e-2, 3e-2, 1e-2], [arrays], [ONE], steps, [1, 1, 1])
    # Two heads of error 1 in each phase.
    assert gains == pytest.approx([2e-2, 1e-2, 5e-3])
    # Where later phases have spoilt the frames, an earlier one is not taken for harmless.
    assert phase_gains([1e-2, 2e-2, 1e-2], [arrays], [ONE], steps, [1, 1, 1])[0] > 0
    idle = [[[0]], [[]], [[3]]]
    assert phase_gains([1e-2, None, 2e-3], [arrays], [ONE], idle, [1, 1, 1]) == pytest.approx([4e-3, 0, 1e-3])
    phases = sparse_from(1, (0.2, 0.5, 1.0), ["some"] * 3, [ONE])
    assert [phase.modes[0][0][0] for phase in phases] == ["dense", "some", "some"]
    numbers = np.array([[[4, 1]], [[-1, -1]], [[-1, 0]]])
    orders = order_tables(fastdit.PyramidConfig(), [numbers])
    phases = sparse_from(0, (0.2, 0.5, 1.0), ["some"] * 3, [ONE], orders)
    expected = [(((("gilbert", "score"), ("raster", "raster")),),), None, (((None, ("gilbert", "gilbert")),),)]
    assert [phase.orders for phase in phases] == expected
    assert sparse_from(1, (0.2, 0.5, 1.0), ["some"] * 3, [ONE], orders)[0].orders is None


def test_early_phases_are_weighed_with_what_spoils_the_frames_no_more_than_late_ones():
    """Modes 1 to 3 err less and less; in one call phases 0 and 1 err 8 and 2 times what phase 3 does; 2 is idle."""
    modes = np.array([0.0, 4e-2, 1e-2, 2e-3])
    error = np.stack([np.tile(modes * factor, (1, 2, 1)) for factor in (8.0, 2.0, 1.0, 1.0)])
    arrays = {"error_0": error, "gain_0": np.ones((4, 1)), "joint_0": np.ones(4)}
    steps = [[[0]], [[1, 2]], [[]], [[3]]]
    assert gain_columns(arrays, [ONE], steps, [1, 2, 3], 2) == [3, 3, 2, 2]
    assert gain_columns(arrays, [ONE], steps, [1, 2, 3], 1) == [3, 2, 1, 1]
    # A layer that matters more in an early phase counts as much more.
    arrays["gain_0"][1] = 10
    assert gain_columns(arrays, [ONE], steps, [1, 2, 3], 1) == [3, 3, 1, 1]
    # Calls of modes in all layers err less than the sum: half for mode 2.
    arrays["gain_0"][1], arrays["joint_0"][2] = 1, 0.1
    assert gain_columns(arrays, [ONE], steps, [1, 2, 3], 1) == [2, 2, 1, 1]


@pytest.fixture
def own_runs_alone(monkeypatch):
    """Deviations are not pooled with the usual one."""
    monkeypatch.setattr("fastdit.search.promise.USUAL_RUNS", 0)


def test_few_prompts_that_are_alike_say_little_of_others(monkeypatch):
    settings = SearchSettings(prompts=["a"], min_psnr=26.0)

    def surplus(number):
        psnr = 33.0 + 2.0 * np.resize([1.0, -1.0], number)
        return surplus_of(settings, {"psnr": psnr, "ssim": np.full(number, np.nan)}, tail=True)

    few, many = surplus(4), surplus(400)
    monkeypatch.setattr("fastdit.search.promise.USUAL_RUNS", 0)
    assert few < surplus(4) - 0.5
    assert many == pytest.approx(surplus(400), abs=0.1)


@pytest.mark.usefixtures("own_runs_alone")
def test_the_tail_counts_where_prompts_differ_much():
    settings = SearchSettings(prompts=["a"], min_psnr=30.0, margin=0.5, confidence=0.5)
    alike = {"psnr": np.array([31.0, 31.2, 30.8]), "ssim": np.full(3, np.nan)}
    assert surplus_of(settings, alike, tail=True) == pytest.approx(0.5)
    apart = {"psnr": np.array([28.0, 34.0, 31.0]), "ssim": np.full(3, np.nan)}
    assert surplus_of(settings, apart, tail=False) == pytest.approx(0.5)
    # The factor of three runs at confidence .5 is 1.4985: 31 - 1.4985 * 3 is 2.5 under the 29 of nine in ten.
    assert surplus_of(settings, apart, tail=True) == pytest.approx(-2.495, abs=1e-2)
    two = {"psnr": np.array([20.0, 42.0]), "ssim": np.full(2, np.nan)}
    assert surplus_of(settings, two, tail=True) == pytest.approx(0.5)


@pytest.mark.usefixtures("own_runs_alone")
def test_the_tail_of_ten_runs_is_the_published_tolerance_limit():
    """One-sided factor for nine of ten at confidence .95 and ten observations: 2.355 in every table."""
    psnr = np.array([1.0, -1.0] * 5)
    found = {"psnr": 40.0 + psnr / psnr.std(ddof=1), "ssim": np.full(10, np.nan)}
    settings = SearchSettings(prompts=["a"], min_psnr=30.0, margin=0.0, confidence=0.95)
    assert surplus_of(settings, found, tail=True) == pytest.approx(min(40 - 2.355 - 29, 40 - 0.5797 - 30), abs=1e-3)
    settings = SearchSettings(prompts=["a"], min_psnr=38.0, margin=0.0, confidence=0.95)
    found["psnr"] = 40.0 + 3 * psnr / psnr.std(ddof=1)
    assert surplus_of(settings, found, tail=True) == pytest.approx(40 - 3 * 2.355 - 37, abs=2e-3)


@pytest.mark.usefixtures("own_runs_alone")
def test_a_first_plan_as_predicted_lands_in_the_middle_of_the_window():
    settings = SearchSettings(prompts=["a"] * 24, min_psnr=30.0, num_measured=4, gains="calls")
    aim = first_aim(settings, 4.0)
    dB = np.random.default_rng(0).normal(size=len(settings.verified_runs))
    dB = (dB - dB.mean()) / dB.std(ddof=1) * USUAL_DEVIATION
    # Prompts whose errors have the mean that is aimed at, over very many of them.
    many = np.random.default_rng(1).normal(0, USUAL_DEVIATION, 1_000_000)
    above = 10 * np.log10((10 ** (-many / 10)).mean())
    found = {"psnr": aim + above + dB, "ssim": np.full(len(dB), np.nan)}
    assert surplus_of(settings, found, tail=True) == pytest.approx(2.0, abs=0.05)
    # Real errors fall by .75 dB for each dB of those predicted, from what gains were measured at on.
    assert first_aim(settings, 4.0, aim + 1) == aim
    assert first_aim(settings, 4.0, aim - 6) == pytest.approx(aim + 2)
    # Those predicted by gradients are aimed at a quarter of the window, and differ by .83 of the prediction from 41 dB.
    by_frames = dataclasses.replace(settings, gains="frames")
    assert first_aim(by_frames, 4.0) == pytest.approx(aim - 1 + (aim - 1 - 41) * (1 / 0.83 - 1))
    for promise, shift in ((10.0, -3.0), (90.0, 3.0)):
        far = dataclasses.replace(by_frames, min_psnr=promise)
        assert first_aim(far, 4.0) == pytest.approx(aim - 1 + promise - 30 + shift)


WAN_14B = RunShape(steps=50, calls_per_step=2, layers=40, attention_share=attention_share(75_600, 5120, 13_824))


def test_a_search_of_eight_prompts_costs_less_than_two_dense_runs_each():
    """The table of docs/search.md."""
    assert WAN_14B.attention_share == pytest.approx(0.718, abs=1e-3)
    parts = count_search(WAN_14B, measured=4, verified=4, density=0.25)
    found = {name: round(value, 1) for name, value in parts.items()}
    assert found == {
        "dense runs": 5.0,
        "further measured prompts": 0.4,
        "gradients of the frames": 3.1,
        "errors that meet them": 0.0,
        "gain of the first phase": 0.4,
        "noise floor": 1.0,
        "plans tried and verified": 3.7,
    }
    assert sum(parts.values()) < 14
    assert sum(count_search(WAN_14B, measured=1, verified=1, density=0.25).values()) < 7.5
    by_calls = count_search(WAN_14B, measured=4, verified=4, density=0.25, gains="calls")
    assert [round(by_calls[f"gains of {of}"], 1) for of in ("layers", "modes", "phases")] == [1.6, 0.0, 1.4]
    assert sum(by_calls.values()) < 14
