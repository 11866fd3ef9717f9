"""Parts of the search that need no pipeline: settings, cost, tables, kept results."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fastdit
from fastdit import ConfigError
from fastdit.plan import TransformerIdentity
from fastdit.search.cost import CostModel
from fastdit.search.ladder import check_ladder, default_ladder
from fastdit.search.results import ResultFolder
from fastdit.search.rounds import CLOSE_WHEN_VERIFIED, rounds_until_kept
from fastdit.search.runs import first_part
from fastdit.search.settings import SearchSettings
from fastdit.search.tables import SearchTables, build_tables, measured_steps, steps_in_phases, steps_of_phases

ONE = TransformerIdentity(class_name="Some", config_hash="0" * 64, num_layers=1, num_heads=2)


TWO_MODES = ["dense", fastdit.AdaptiveConfig(density=0.1)]


def test_phases_divide_the_steps_as_plans_do():
    assert [list(steps) for steps in steps_of_phases((0.17, 0.5, 1.0), 12)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8, 9, 10, 11],
    ]
    assert measured_steps(steps_in_phases((0.17, 0.5, 1.0), ran(12))) == [[1], [4], [9]]
    assert measured_steps(steps_in_phases((0.1, 0.2, 1.0), ran(1))) == [[0], [None], [None]]


def test_cached_rungs_cannot_be_kept_twice():
    kept = fastdit.CachedConfig(source=check_ladder(default_ladder())["pyramid_0.2"], min_recall=None)
    with pytest.raises(ConfigError, match="refresh_every=2: the ladder has cached rungs"):
        SearchSettings(prompts=["a"], density=0.2, ladder={"kept": kept}, refresh_every=2)
    costly = CostModel(selection={"pyramid": 0.1})
    for refresh_every, cached in ((1, True), (2, False)):
        settings = SearchSettings(prompts=["a"], density=0.2, cost_model=costly, refresh_every=refresh_every)
        assert any(isinstance(mode, fastdit.CachedConfig) for mode in settings.modes.values()) is cached


def test_further_prompts_are_measured_early_or_in_the_first_phase_alone():
    assert first_part([[1, None], [4, None], [None, 9]], 12) == [[1, None], [None, None], [None, None]]
    assert first_part([[1, None], [4, None], [None, 9]], 20) == [[1, None], [4, None], [None, None]]
    assert first_part([[None, None], [5, None], [9, 9]], 12) == [[None, None], [5, None], [None, None]]


def test_each_transformer_is_measured_in_the_middle_of_its_own_steps():
    executed = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], bool)
    assert measured_steps(steps_in_phases((0.2, 1.0), executed)) == [[1, None], [2, 4]]


def ran(steps):
    """One transformer that runs in all steps."""
    return np.ones((1, steps), bool)


def measured(error, density=None, gain=1.0):
    error = np.asarray(error, float)[:, None]
    density = np.full_like(error, 0.1) if density is None else np.asarray(density, float)[:, None]
    return {
        "error_0": error,
        "density_0": density,
        "recall_0": np.exp(-error),
        "gain_0": np.full(error.shape[:2], gain),
        "orders_0": np.full(error.shape, -1),
        "joint_0": np.ones(error.shape[-1]),
    }


def test_tables_weigh_errors_by_gains_and_costs_by_steps():
    # Two phases of 1 and 3 steps, two heads, dense and one sparse mode.
    error = [[[0, 1], [0, 2]], [[0, 3], [0, 4]]]
    density = [[[1, 0.1], [1, 0.2]], [[1, 0.1], [1, 0.2]]]
    tables = build_tables(
        [measured(error, density, 2.0) | {"joint_0": np.array([1, 3])}],
        [10, 100],
        [ONE],
        TWO_MODES,
        (0.25, 1.0),
        ran(4),
        CostModel(),
    )
    assert tables.error.tolist() == [[0, 60], [0, 120], [0, 1800], [0, 2400]]
    assert tables.cost == pytest.approx(np.array([[1, 0.1], [1, 0.2], [3, 0.3], [3, 0.6]]) / 8)
    phases = tables.phase_tables(np.array([0, 1, 1, 0]), TABLE_MODES, (0.25, 1.0))
    assert [phase.modes for phase in phases] == [((("dense", "some"),),), ((("some", "dense"),),)]
    assert [phase.density for phase in phases] == [(((1.0, 0.2),),), (((0.1, 1.0),),)]
    assert [phase.error for phase in phases] == [(((0.0, 120.0),),), (((1800.0, 0.0),),)]
    assert [phase.orders for phase in phases] == [None, None]


TABLE_MODES = {"dense": "dense", "some": fastdit.AdaptiveConfig(density=0.1, order="auto")}


def test_phases_have_the_orders_that_the_first_prompt_settled_on():
    first, other = measured([[[0, 1], [0, 2]], [[0, 3], [0, 4]]]), measured([[[0, 1], [0, 2]], [[0, 3], [0, 4]]])
    first["orders_0"] = np.array([[[-1, 4], [-1, 1]], [[-1, 0], [-1, -1]]])[:, None]
    modes = list(TABLE_MODES.values())
    tables = build_tables([first, other], [1, 1], [ONE], modes, (0.25, 1.0), ran(4), CostModel())
    sparse, mixed = (tables.phase_tables(np.array(c), TABLE_MODES, (0.25, 1.0)) for c in ([1, 1, 1, 1], [0, 1, 0, 1]))
    assert sparse[0].orders == (((("gilbert", "score"), ("raster", "raster")),),)
    assert sparse[1].orders == (((("gilbert", "gilbert"), None),),)
    assert mixed[0].orders == (((None, ("raster", "raster")),),)
    assert mixed[1].orders is None


def test_a_transformer_that_is_idle_in_a_phase_stays_dense_and_costs_nothing_there():
    """Two transformers share the second phase, which the first one leaves after one step of three."""
    executed = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)
    one, other = measured([[[0, 1], [0, 2]]] * 2), measured([[[np.nan] * 2] * 2, [[0, 3], [0, 6]]])
    arrays = {**one, **{name.replace("_0", "_1"): array for name, array in other.items()}}
    tables = build_tables([arrays], [1, 1], [ONE, ONE], TWO_MODES, (0.25, 1.0), executed, CostModel())
    # Costs are shares of 16 = 4 steps of 2 heads, twice: idle steps are nobody's.
    assert tables.cost[:, 0] == pytest.approx(np.array([1, 1, 0, 0, 1, 1, 2, 2]) / 8)
    assert tables.error[4:, 1] == pytest.approx([1 / 3, 2 / 3, 2, 4])
    choice = fastdit.search.allocate(tables.error, tables.cost, max_error=100.0)
    assert choice.tolist() == [1, 1, 0, 0, 1, 1, 1, 1]
    assert total_cost(tables, np.zeros(8, int)) == pytest.approx(1)


def total_cost(tables, choice):
    return tables.cost[np.arange(len(choice)), choice].sum()


def test_cost_counts_efficiency_and_selection(tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"cases": [{"speedup": 8, "density": 0.1}, {"speedup": 3.5, "density": 0.2}]}))
    model = CostModel.from_bench(path)
    assert model.efficiency == pytest.approx(0.75)
    assert model.cost(0.15, "adaptive") == pytest.approx(0.2 + model.selection["adaptive"])
    assert model.cost(0.15, "dense") == 1
    for text in ("", "{}", '{"cases": []}', '{"cases": [{"speedup": "x", "density": 1}]}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match="no kernel timings"):
            CostModel.from_bench(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "no aim given"),
        ({"min_psnr": 30, "density": 0.2}, "min_psnr and density given"),
        ({"min_psnr": -1}, "min_psnr=-1"),
        ({"density": 1.5}, "density=1.5"),
        ({"min_psnr": 30, "prompts": []}, "prompts"),
        ({"min_psnr": 30, "prompts": ["a", " "]}, "prompts"),
        ({"min_psnr": 30, "phases": (0.5,)}, "phases"),
        ({"min_psnr": 30, "phases": (0.5, 0.5, 1.0)}, "phases"),
        ({"min_psnr": 30, "ladder": {}}, "no sparse mode"),
        ({"min_psnr": 30, "ladder": {"a": fastdit.AdaptiveConfig()}}, "schedule or min_tokens"),
        ({"min_psnr": 30, "ladder": {"a": fastdit.CachedConfig(min_recall=0.9)}}, "min_recall=None"),
        ({"min_psnr": 30, "ladder": "long"}, 'accepted are "wide"'),
        ({"min_psnr": 30, "num_screening": 0}, "num_screening=0"),
        ({"min_psnr": 30, "call": {"generator": 1, "prompt": "b"}}, "call has generator, prompt"),
        ({"min_psnr": 30, "num_measured": 0}, "num_measured=0"),
        ({"min_psnr": 30, "margin": float("nan")}, "margin=nan"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SearchSettings(**{"prompts": ["a"], **settings})


def test_prompts_that_verify_were_not_measured():
    settings = SearchSettings(prompts=["a", "b", "c"], min_psnr=30, seed=5)
    assert settings.measured_runs == [("a", 5)]
    assert settings.verified_runs == [("b", 6), ("c", 7)]
    assert SearchSettings(prompts=list("abcde"), min_psnr=30).verified_runs == [("c", 2), ("d", 3), ("e", 4)]
    # Half of many would be dear to measure, and those that verify are never too many.
    many = SearchSettings(prompts=list("abcdefghijkl"), min_psnr=30, num_screening=3)
    assert [len(runs) for runs in (many.measured_runs, many.screening_runs, many.verified_runs)] == [4, 3, 8]
    assert SearchSettings(prompts=["a", "b", "c"], min_psnr=30, num_measured=2).verified_runs == [("c", 2)]
    single = SearchSettings(prompts=["a"], min_psnr=30)
    assert single.measured_runs == [("a", 0)]
    assert single.verified_runs == [("a", 1)]


def test_the_default_ladder_can_stand_in_a_plan():
    assert next(iter(check_ladder(default_ladder()))) == "dense"
    assert check_ladder(default_ladder(cached=True)) == default_ladder(cached=True)


def test_the_ladder_has_every_kind_of_rung():
    ladder = default_ladder(cached=True, wide=True)
    densities = {
        method: [mode.density for mode in ladder.values() if getattr(mode, "method", "") == method]
        for method in ("adaptive", "pyramid")
    }
    assert min(densities["adaptive"]) == 0.02
    assert min(densities["pyramid"]) <= 0.03
    assert {"dense", "skip", "window", "same_place"} <= ladder.keys()
    cached = {name.removeprefix("cached_"): mode for name, mode in ladder.items() if name.startswith("cached_")}
    assert {ladder[name] for name in cached} == {mode.source for mode in cached.values()}
    assert len(cached) == len(densities["adaptive"] + densities["pyramid"])


def test_rungs_whose_errors_one_step_does_not_show_are_left_out_unless_asked_for():
    default = default_ladder()
    adaptive = {f"adaptive_{density:g}" for density in (0.02, 0.06, 0.2, 0.5)}
    left_out = {"skip", "window", "same_place", "pyramid_0.03", *adaptive}
    assert default_ladder(wide=True).keys() - default.keys() == left_out
    asked = SearchSettings(prompts=["a"], min_psnr=30, ladder="wide").modes
    assert asked.keys() - SearchSettings(prompts=["a"], min_psnr=30).modes.keys() == left_out
    assert default.items() <= default_ladder(wide=True).items()


def test_cached_rungs_join_where_selecting_has_a_cost():
    free, dear = (
        SearchSettings(prompts=["a"], min_psnr=30, cost_model=CostModel(selection=selection)).modes
        for selection in ({}, {"pyramid": 0.1})
    )
    assert not [name for name in free if name.startswith("cached")]
    assert [name for name in dear if name.startswith("cached")]


def test_reused_masks_share_out_what_selecting_costs():
    """A phase of one step and one of three: equal errors, so that the price alone decides."""
    source = fastdit.AdaptiveConfig(density=0.1)
    modes = ["dense", source, fastdit.CachedConfig(source=source, refresh_every=10_000, min_recall=None)]
    error = [[[0, 1, 1], [0, 1, 1]]] * 2
    density = [[[1, 0.1, 0.1]] * 2] * 2
    model = CostModel(selection={"adaptive": 0.06})
    tables = build_tables([measured(error, density)], [1, 1], [ONE], modes, (0.25, 1.0), ran(4), model)
    assert tables.cost[0] * 8 == pytest.approx([1, 0.16, 0.16])
    assert tables.cost[2] * 8 == pytest.approx([3, 3 * 0.16, 3 * 0.12])


def test_results_are_kept_and_those_of_another_search_are_refused(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"x": np.arange(3.0)}

    folder = tmp_path / "run"
    assert ResultFolder(folder, {"a": 1}).get("part", compute)["x"].tolist() == [0, 1, 2]
    assert ResultFolder(folder, {"a": 1}).get("part", compute)["x"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["part.npz", "settings.json"]
    with pytest.raises(ConfigError, match=r"other settings \(a\)"):
        ResultFolder(folder, {"a": 2})
    (folder / "part.npz").write_bytes(b"PK damaged")
    with pytest.raises(ConfigError, match="is damaged: remove it"):
        ResultFolder(folder, {"a": 1}).get("part", compute)


def test_a_failed_computation_leaves_nothing(tmp_path):
    results = ResultFolder(tmp_path, {})
    with pytest.raises(KeyboardInterrupt):
        results.get("part", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]
    assert results.get("part", lambda: {"x": np.ones(1)})["x"] == 1


def test_results_count_modes_by_place_so_another_order_is_another_search(tmp_path):
    modes = default_ladder()
    one, other = (
        SearchSettings(prompts=["a"], min_psnr=30, ladder=dict(items)).to_dict()
        for items in (list(modes.items()), list(modes.items())[::-1])
    )
    ResultFolder(tmp_path, one)
    with pytest.raises(ConfigError, match=r"other settings \(ladder\)"):
        ResultFolder(tmp_path, other)


def test_arguments_of_the_call_are_told_apart_by_their_contents(tmp_path):
    def settings(image, latents):
        return SearchSettings(prompts=["a"], min_psnr=30, call={"image": image, "latents": latents}).to_dict()

    zeros, large = np.zeros((8, 8, 3), np.uint8), torch.zeros(64, 64)
    ResultFolder(tmp_path, settings(Image.fromarray(zeros), large))
    ResultFolder(tmp_path, settings(Image.fromarray(zeros), large.clone()))
    changed = large.clone()
    changed[30, 30] = 1
    for image, latents in ((zeros + 1, large), (zeros, changed)):
        with pytest.raises(ConfigError, match=r"other settings \(call\)"):
            ResultFolder(tmp_path, settings(Image.fromarray(image), latents))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe"])
def test_damaged_settings_are_refused(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        ResultFolder(tmp_path, {"a": 1})


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + b"\0" * 40])
def test_damaged_results_are_refused(tmp_path, content):
    (tmp_path / "part.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged: remove it"):
        ResultFolder(tmp_path, {"a": 1}).get("part", dict)


def rounds_of(surplus_of_error, error, cost, first_bound, max_rounds=6, offset=0.0):
    """Rounds where the quality is a function of the true error, here that of the tables; all prompts are `offset` dB
    better than those that are screened."""
    error, cost = np.asarray(error, float), np.asarray(cost, float)
    tables = SearchTables(error, cost, cost, cost, ((1, len(error)),), 1)
    runs = []

    def verify(choice):
        runs.append(tuple(choice))
        return None, surplus(choice)

    def surplus(choice):
        return float(surplus_of_error(error[np.arange(len(choice)), choice].sum()))

    def verify_all(choice):
        return None, surplus(choice) + offset

    rounds = rounds_until_kept(tables, verify, verify_all, first_bound, max_rounds)
    assert len(set(runs)) == len(runs) <= max_rounds
    assert all(one.verified for one in rounds)
    return rounds, runs


def test_the_bound_closes_in_on_the_promise():
    """As if quality fell by 10 dB per tenfold error, off by a factor of 30 that the search does not know."""
    sizes = np.geomspace(1, 1e-3, 30)[None] * np.random.default_rng(0).uniform(1e-5, 1e-3, (100, 1))
    error = np.concatenate([np.zeros((100, 1)), sizes], 1)
    cost = np.concatenate([np.ones((100, 1)), np.tile(np.geomspace(0.02, 0.9, 30), (100, 1))], 1)
    rounds, runs = rounds_of(lambda e: -10 * np.log10(e * 30 + 1e-12) - 30.0, error, cost, 1e-3)
    assert 0 <= rounds[-1].surplus <= CLOSE_WHEN_VERIFIED
    assert len(runs) <= 3


COARSE = ([[0, 1e-3], [0, 4e-3], [0, 0.5]], [[1, 0.1]] * 3)


SIZES = np.geomspace(1, 1e-3, 30)[None] * np.random.default_rng(0).uniform(1e-5, 1e-3, (100, 1))
FINE = (
    np.concatenate([np.zeros((100, 1)), SIZES], 1),
    np.concatenate([np.ones((100, 1)), np.tile(np.geomspace(0.02, 0.9, 30), (100, 1))], 1),
)


@pytest.mark.parametrize("offset", [-2.0, 1.3])
def test_few_prompts_that_are_easier_or_harder_are_allowed_for(offset):
    """Verification tells by how much, so that the second verified plan keeps the promise closely."""
    rounds, runs = rounds_of(lambda e: -10 * np.log10(e * 3 + 1e-12) - 30.0, *FINE, first_bound=1e-3, offset=offset)
    assert 0 <= rounds[-1].surplus <= CLOSE_WHEN_VERIFIED
    assert len(rounds) <= 3
    assert len(runs) <= 4


def test_a_step_that_changes_no_head_does_not_end_the_search():
    """Few heads and modes: bounds far apart give the same plan, and the one that keeps the promise lies beyond."""
    rounds, runs = rounds_of(lambda e: 3.0 if e < 2e-3 else -0.2, *COARSE, first_bound=0.1)
    assert max(rounds, key=lambda one: one.bound if one.surplus >= 0 else 0).choice.tolist() == [0, 0, 1][::-1]
    assert len(runs) <= 4
    rounds, runs = rounds_of(lambda e: 5.0 if e < 5e-2 else -9.0, *COARSE, first_bound=1e-3)
    assert [1, 1, 0] in [one.choice.tolist() for one in rounds if one.surplus >= 0]


def test_what_the_cheapest_plan_keeps_takes_one_run_more():
    rounds, runs = rounds_of(lambda e: 70.0, *COARSE, first_bound=1e-3)
    assert rounds[-1].choice.tolist() == [1, 1, 1]
    assert len(runs) == 2


def test_what_only_dense_keeps_ends_with_dense():
    rounds, runs = rounds_of(lambda e: 70.0 if e == 0 else -20.0, *COARSE, first_bound=1e-3)
    assert [0, 0, 0] in [one.choice.tolist() for one in rounds if one.surplus >= 0]
    assert len(runs) <= 4


def test_what_nothing_keeps_ends():
    rounds, _ = rounds_of(lambda e: -20.0, *COARSE, first_bound=1e-3)
    assert all(one.surplus < 0 for one in rounds)


def test_quality_that_does_not_fall_evenly_leads_upwards_from_what_is_kept():
    """Fails at small errors, keeps at larger ones: the cheaper plan that keeps the promise is what counts."""
    error = np.concatenate([np.zeros((40, 1)), np.full((40, 1), 1e-3)], 1)
    cost = np.tile([1.0, 0.1], (40, 1))
    rounds, _ = rounds_of(lambda e: 5.0 if 0.009 < e < 0.021 else -1.0, error, cost, 0.01)
    kept = [one for one in rounds if one.surplus >= 0]
    assert max(one.choice.sum() for one in kept) >= 15
