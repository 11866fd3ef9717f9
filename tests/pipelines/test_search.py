"""The whole search on random Wan pipelines: promises, budgets, resumption, and a pipeline left as it was."""

import numpy as np
import pytest
import torch
from tests_support import build_tiny_wan, run_wan
from tqdm import tqdm

import fastdit
from fastdit.order_trials import trial_errors
from fastdit.plan import ALL_SPARSE
from fastdit.search.measure import MeasuringDoneError, ModeProbe

CALL = {
    "negative_prompt": "negative",
    "guidance_scale": 4.0,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "num_inference_steps": 4,
    "max_sequence_length": 16,
}
TILES = {"q_tile": 8, "kv_tile": 4, "min_tokens": 0}
SMALL = {**TILES, "schedule": ALL_SPARSE}
LADDER = {
    "skip": fastdit.StaticConfig(pattern="skip", **SMALL),
    **{f"adaptive_{d}": fastdit.AdaptiveConfig(density=d, **SMALL) for d in (0.2, 0.5, 0.8)},
    "pyramid_0.3": fastdit.PyramidConfig(density=0.3, **SMALL),
}
PROMPTS = ["a red circle", "a blue square", "a green cross"]


@pytest.fixture
def wan():
    pipe = build_tiny_wan(num_layers=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def find(pipe, folder=None, **aim):
    return fastdit.search(
        pipe,
        PROMPTS,
        call=CALL,
        ladder=LADDER,
        phases=(0.5, 1.0),
        num_measured=1,
        run_directory=folder,
        progress=False,
        **aim,
    )


def test_a_promise_is_kept_and_the_plan_works(wan, tmp_path):
    dense = run_wan(wan)
    plan = find(wan, min_psnr=45.0)
    assert plan.keeps_promise
    assert plan.measured["psnr"] >= 45.3
    assert plan.measured["density"] < 1
    assert plan.measured["verified_runs"] == 2
    costs = [point.cost for point in plan.front]
    assert costs == sorted(costs)
    assert torch.equal(run_wan(wan), dense)
    plan.save(tmp_path / "plan.json")
    with fastdit.enable(wan, tmp_path / "plan.json") as session:
        run_wan(wan, size=(64, 96))
        assert session.stats.density() == pytest.approx(plan.measured["density"], abs=0.05)


def test_a_budget_is_not_passed(wan):
    plan = find(wan, density=0.4)
    assert plan.measured["density"] <= 0.4 + 0.03
    assert plan.keeps_promise is None


def test_a_higher_promise_costs_more(wan, tmp_path):
    low, high = find(wan, tmp_path, min_psnr=38.0), find(wan, tmp_path, min_psnr=52.0)
    assert low.measured["density"] < high.measured["density"]


def test_plans_hold_the_orders_that_they_were_measured_with(wan, tmp_path, monkeypatch):
    labels, tried = [], []
    monkeypatch.setattr(
        "fastdit.key_orders.trial_errors", lambda *args: tried.append(labels[-1]) or trial_errors(*args)
    )
    source = fastdit.PyramidConfig(density=0.2, **SMALL)
    ladder = {
        "skip": LADDER["skip"],
        "pyramid_0.2": source,
        "pyramid_0.3": LADDER["pyramid_0.3"],
        "kept": fastdit.CachedConfig(source=source, refresh_every=10, min_recall=None),
    }
    settings = {"call": CALL, "ladder": ladder, "phases": (0.5, 1.0), "num_measured": 2, "progress": False}

    def search():
        return fastdit.search(wan, PROMPTS, density=0.4, run_directory=tmp_path, on_run=labels.append, **settings)

    plan = search()
    # The rung that reuses, in three layers and two phases, with one prompt; others take what they were measured to err
    # least with, gains and later runs settle nothing.
    assert tried == ["measure 1"] * 6
    numbers, later = (np.load(tmp_path / f"measured_{prompt}.npz")["orders_0"] for prompt in range(2))
    pairs = set()
    for phase, part in enumerate(plan.phases):
        for layer, row in enumerate(part.modes[0]):
            for head, mode in enumerate(row):
                number = numbers[phase, layer, head, ["dense", *ladder].index(mode)]
                pair = None if part.orders is None else part.orders[0][layer][head]
                assert pair == (None if mode in ("dense", "skip") else source.order_pairs[number])
                pairs.add(pair)
    assert len(pairs - {None}) > 1
    # The second prompt is measured in the first part of the run.
    assert np.array_equal(later[0], numbers[0])
    assert (numbers[..., 2:] >= 0).all()
    assert (later[1] == -1).all()
    labels.clear()
    for path in tmp_path.glob("*.npz"):
        if path.name.startswith(("measured_1", "phase", "verify")):
            path.unlink()
    assert search() == plan
    assert "measure 1" not in labels
    assert len(tried) == 6


def test_a_promise_above_the_noise_floor_is_refused(wan):
    with pytest.raises(fastdit.ConfigError, match="noise floor"):
        find(wan, min_psnr=150.0)


def test_a_stopped_search_goes_on_to_the_same_plan(wan, tmp_path):
    whole = find(wan, tmp_path / "whole", min_psnr=45.0)
    runs = []

    def stopping(label):
        runs.append(label)
        if len(runs) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find(wan, tmp_path / "stopped", min_psnr=45.0, on_run=stopping)
    assert not hasattr(wan.transformer.blocks[0].attn1.processor, "slot")
    assert find(wan, tmp_path / "stopped", min_psnr=45.0) == whole


def test_a_run_directory_of_another_search_is_refused(wan, tmp_path):
    find(wan, tmp_path, density=0.4)
    with pytest.raises(fastdit.ConfigError, match="other settings"):
        fastdit.search(wan, PROMPTS, call=CALL, density=0.4, run_directory=tmp_path, progress=False)


def test_measuring_leaves_the_run_as_it_is_and_gains_are_of_each_layer(wan):
    dense = run_wan(wan, size=(64, 96))
    modes = {"dense": "dense", **LADDER}
    with ModeProbe(wan, [1, 2], modes, "adaptive_0.5") as probe:
        assert torch.equal(run_wan(wan, size=(64, 96)), dense)
    assert set(probe.errors) == {(0, layer, step) for layer in range(3) for step in (1, 2)}
    for place, errors in probe.errors.items():
        assert errors.shape == (2, 6)
        assert (errors[:, 0] == 0).all()
        assert (probe.densities[place][:, 1:] < 1).all()
        # More tiles err less.
        assert (errors[:, 2] > errors[:, 3]).all()
        assert (errors[:, 3] > errors[:, 4]).all()
    assert probe.gains.keys() == probe.errors.keys()
    assert min(probe.gains.values()) > 0
    assert not wan.transformer._forward_hooks


def test_gains_of_modes_are_those_of_all_layers_together():
    pipe, kept = build_tiny_wan(num_layers=1), fastdit.CachedConfig(source=LADDER["adaptive_0.2"], min_recall=None)
    modes = {"dense": "dense", **LADDER, "kept": kept}
    with ModeProbe(pipe, [0, 1], modes, "adaptive_0.5", build_steps=[0], joint_steps=[0]) as probe:
        run_wan(pipe, size=(64, 96))
    assert probe.joint.keys() == {(0, 0)}
    found = dict(zip(modes, probe.joint[0, 0], strict=True))
    assert found["dense"] == 1
    assert all(0 < value < 100 for value in found.values())
    # With one layer, all layers together are that layer.
    assert found["adaptive_0.5"] == pytest.approx(1)
    # Built in this very step, masks that are reused are those of their source.
    assert found["kept"] == found["adaptive_0.2"]


def test_cached_rungs_are_measured_with_masks_of_the_phase_s_first_step(wan):
    source = LADDER["adaptive_0.2"]
    kept = fastdit.CachedConfig(source=source, refresh_every=10, min_recall=None)
    modes = {"dense": "dense", "fresh": source, "kept": kept}
    call = {"size": (64, 96), "steps": 4}
    with ModeProbe(wan, [0, 2], modes, build_steps=[0]) as same:
        run_wan(wan, **call)
    # No sooner built than measured, it is its source; two steps later its masks are out of date.
    for (_, _, step), errors in same.errors.items():
        assert np.array_equal(errors[:, 1], errors[:, 2]) == (step == 0)
    plan = fastdit.search(
        wan, PROMPTS, density=0.6, call=CALL, ladder={"kept": kept}, phases=(0.5, 1.0), num_measured=1, progress=False
    )
    assert {name for table in plan.phases for row in table.modes[0] for name in row} == {"dense", "kept"}
    with fastdit.enable(wan, plan) as session:
        run_wan(wan, **call)
        assert "heads built anew" in session.summary()


def test_plans_keep_masks_in_all_phases_but_the_first(wan, tmp_path):
    fresh, kept = (find(wan, tmp_path, density=0.4, refresh_every=number) for number in (1, 2))
    assert [phase.refresh_every for phase in fresh.phases] == [1, 1]
    assert [phase.refresh_every for phase in kept.phases] == [1, 2]
    # The same modes by the same measurements, and other runs: what old masks err is verified.
    assert [phase.modes for phase in kept.phases] == [phase.modes for phase in fresh.phases]
    assert kept.measured["psnr"] != fresh.measured["psnr"]
    with fastdit.enable(wan, kept) as session:
        run_wan(wan, size=(64, 96), steps=4)
        assert "heads built anew" in session.summary()


def test_measuring_runs_end_early_and_leave_the_pipeline_as_it_was(wan):
    dense, calls = run_wan(wan, size=(64, 96)), []
    handle = wan.transformer.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(MeasuringDoneError), ModeProbe(wan, [1], {"dense": "dense", **LADDER}, stops=True) as probe:
        run_wan(wan, size=(64, 96))
    handle.remove()
    # Two branches in the first step, one in the second.
    assert len(calls) == 3
    assert {step for _, _, step in probe.errors} == {1}
    assert torch.equal(run_wan(wan, size=(64, 96)), dense)


def test_what_is_replayed_is_what_would_be_computed(wan, tmp_path):
    """Gains of phases take the dense calls before the phase from the measured run."""
    from fastdit.search.identity import describe_pipeline
    from fastdit.search.results import ResultFolder
    from fastdit.search.runs import SearchRuns
    from fastdit.search.settings import SearchSettings

    settings = SearchSettings(prompts=PROMPTS, density=0.5, call=CALL, ladder=LADDER, phases=(0.5, 1.0), gains="calls")
    late = fastdit.AdaptiveConfig(density=0.2, schedule=fastdit.Schedule(dense_steps=2, dense_layers=()), **TILES)
    results = ResultFolder(tmp_path, {"pipeline": describe_pipeline(wan)})
    runs, counted = SearchRuns(wan, settings, results, tqdm(disable=True)), []
    runs.measure(0)
    handle = wan.transformer.register_forward_hook(lambda *_: counted.append(1))
    block = wan.transformer.blocks[0].register_forward_hook(lambda *_: counted.append(100))
    replayed = runs.compare("replayed", late, settings.measured_runs[:1], replay_before=2)
    # All calls are heard of, those of two steps are not computed.
    assert sum(counted) == 8 + 4 * 100
    whole = runs.compare("whole", late, settings.measured_runs[:1])
    handle.remove()
    block.remove()
    assert whole["mse"] == replayed["mse"] > 0


def test_sampled_errors_are_those_of_all_rows(wan):
    """The figure that everything rests on, against the whole output of a layer."""
    from fastdit.attend import sdpa, sparse_step
    from fastdit.mask_cache import MaskCache
    from fastdit.mask_reuse import CallSite
    from fastdit.run_memory import RunMemory
    from fastdit.search.mode_figures import measure_modes
    from fastdit.search.trial_figures import ModeCall

    grid = fastdit.VideoGrid(frames=4, height=12, width=12)
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, grid.length, 3, 16, generator=rng) for _ in range(3))
    config = fastdit.AdaptiveConfig(density=0.3, schedule=ALL_SPARSE, min_tokens=0, q_tile=32, kv_tile=16)
    call = ModeCall(config, RunMemory(), CallSite(0, 0, "cond", 0))
    (found,) = measure_modes(q, k, v, grid, [call], MaskCache())
    exact, result = sdpa(q, k, v), sparse_step(q, k, v, grid, config, MaskCache())
    true = (result.out - exact).square().mean((0, 1, 3)).numpy()
    assert np.allclose(found.error, true, rtol=0.35)
    assert np.allclose(found.density, result.kept_pairs().numpy() / grid.length**2)
    assert np.allclose(found.recall, result.recall()[0].numpy(), atol=0.1)
    assert np.allclose(found.relative, true / exact.square().mean((0, 1, 3)).numpy(), rtol=0.5)


def test_a_run_directory_belongs_to_one_pipeline(wan, tmp_path):
    from fastdit.search.identity import describe_pipeline, hash_weights

    find(wan, tmp_path, density=0.4)
    found = describe_pipeline(build_tiny_wan(num_layers=3))
    assert found == describe_pipeline(wan)
    before = hash_weights(wan.transformer)
    with torch.no_grad():
        # Same configuration, other weights: what further training or a LoRA does.
        wan.transformer.blocks[1].attn1.to_q.weight += 0.01
    assert hash_weights(wan.transformer) != before
    with pytest.raises(fastdit.ConfigError, match=r"other settings \(pipeline\)"):
        find(wan, tmp_path, density=0.4)


def test_two_transformers_that_share_a_phase_are_both_measured_and_counted():
    """Wan 2.2: the first transformer leaves before the middle of the first phase."""
    pipe = build_tiny_wan(two_transformers=True)
    plan = fastdit.search(
        pipe,
        PROMPTS[:2],
        # Less than one step of four: no part of the run can stay dense as a whole.
        density=0.25,
        call=CALL,
        ladder=LADDER,
        phases=(0.75, 1.0),
        num_measured=1,
        progress=False,
    )
    shared, last = plan.phases
    for table in shared.modes:
        assert {name for row in table for name in row} != {"dense"}
    # In the last phase only the second one runs.
    assert {name for row in last.modes[0] for name in row} == {"dense"}
    assert {name for row in last.modes[1] for name in row} != {"dense"}
    assert plan.measured["density"] <= 0.25 + 0.03


def test_frames_that_are_not_numbers_are_refused(wan):
    with torch.no_grad():
        next(wan.vae.decoder.parameters()).fill_(float("nan"))
    with pytest.raises(fastdit.InvalidInputError, match="dense: the frames have NaN"):
        find(wan, density=0.4)


@pytest.mark.parametrize("floor", [None, 1.0, 1 + 1e-7])
def test_ssim_above_the_noise_floor_is_refused_too(wan, floor, monkeypatch):
    """Also where both kernels make the same frames, or rounding carries their SSIM over 1: some CPUs do."""
    if floor is not None:
        found = {"psnr": np.array([100.0]), "ssim": np.array([floor])}
        monkeypatch.setattr("fastdit.search.runs.SearchRuns.noise_floor", lambda self: found)
    with pytest.raises(fastdit.ConfigError, match="above the noise floor"):
        find(wan, min_ssim=1.0)


@pytest.mark.parametrize("module", ["tiny_hunyuan_video", "tiny_cogvideox"])
def test_joint_models_are_searched(module):
    """Text beside video: with padding that is left out (HunyuanVideo), or both guidance branches in a batch."""
    from importlib import import_module

    pipe = import_module(module).build()
    call = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2, "max_sequence_length": 16}
    if module == "tiny_hunyuan_video":
        template = {"template": "{}", "crop_start": 0}
        call |= {"prompt_template": template, "max_sequence_length": import_module(module).TEXT_LENGTH}
    plan = fastdit.search(
        pipe, PROMPTS[:2], density=0.9, call=call, ladder=LADDER, phases=(1.0,), num_measured=1, progress=False
    )
    assert 0 < plan.grid.text_length <= call["max_sequence_length"]
    assert plan.measured["density"] <= 0.95
    assert {name for row in plan.phases[0].modes[0] for name in row} != {"dense"}
