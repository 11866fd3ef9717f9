"""Total scores of VBench and VBench-2.0, what is refused, and the submission."""

import json
import zipfile

import pytest
from vbench_runs import GOLDEN, official_results, planned_run

from fastdit.errors import ConfigError
from fastdit_eval.vbench.dimensions import DIMENSIONS, GROUPS_2
from fastdit_eval.vbench.files import VBenchError, sha256_of
from fastdit_eval.vbench.pack import pack_results
from fastdit_eval.vbench.score import score_results, score_run, totals, totals_2


@pytest.fixture
def whole(tmp_path):
    run, manifest = planned_run(tmp_path / "run")
    official_results(run, manifest)
    return run, manifest


def change(run, name, edit, seal=True):
    """Edit a result; `seal` makes the meta data agree, so that only the edit itself can be refused."""
    path = run.results / f"{name}_eval_results.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    if seal:
        change_meta(run, name, result_sha256=sha256_of(path))


def change_meta(run, name, **values):
    meta = json.loads(run.meta.read_text())
    meta["dimensions"][name].update(values)
    run.meta.write_text(json.dumps(meta))


def test_the_golden_vector():
    found = totals(GOLDEN)
    assert found["quality"] == pytest.approx(0.8382939809293769, abs=1e-15)
    assert found["semantic"] == pytest.approx(0.7618691628668871, abs=1e-15)
    assert found["total"] == pytest.approx(0.823009017316879, abs=1e-15)


def test_every_published_dimension_is_known():
    assert GOLDEN.keys() == DIMENSIONS.keys()
    assert sum(item.group == "quality" for item in DIMENSIONS.values()) == 7
    assert [name for name, item in DIMENSIONS.items() if not item.networks] == ["temporal_flickering"]
    outside = {name for name, item in DIMENSIONS.items() if not item.custom}
    assert outside == {
        "object_class",
        "multiple_objects",
        "color",
        "spatial_relationship",
        "scene",
        "appearance_style",
    }


def test_a_whole_run_has_a_total(whole):
    report = score_run(*whole)
    assert report["total"] == pytest.approx(0.823009017316879, abs=1e-15)
    assert report["vbench_mean5_raw"] == pytest.approx((0.965 + 0.968 + 0.985 + 0.61 + 0.66) / 5)
    assert report["dimensions"]["scene"]["normalised"] == pytest.approx(0.5 / 0.8222)
    assert report["notes"] == []


def test_a_missing_dimension_has_no_total(whole):
    run, manifest = whole
    (run.results / "scene_eval_results.json").unlink()
    with pytest.raises(VBenchError, match="missing: scene"):
        score_run(run, manifest)
    report = score_run(run, manifest, partial=True)
    assert report["total"] is None
    assert report["vbench_mean5_raw"] is not None
    assert "scene" not in report["dimensions"]
    with pytest.raises(VBenchError, match="missing: scene"):
        totals({name: score for name, score in GOLDEN.items() if name != "scene"})


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("color", lambda data: data["color"].__setitem__(0, float("nan")), "color is nan"),
        ("color", lambda data: data["color"][1][2].update(video_results=float("nan")), "is not a number"),
        ("color", lambda data: data["color"].__setitem__(0, 1.5), "between 0 and 1"),
        ("imaging_quality", lambda data: data["imaging_quality"].__setitem__(0, 66.0), "between 0 and 1"),
        ("color", lambda data: data.update(color=0.5), r"is not \[score"),
        ("color", lambda data: data.update(colour=data.pop("color")), "no dimension of this benchmark"),
        ("color", lambda data: data.update(scene=[0.5, []]), "keep one"),
        ("color", lambda data: data["color"][1].pop(), "4 of 5 clips"),
        ("color", lambda data: data["color"][1].clear(), "does not list its clips"),
        ("color", lambda data: data["color"][1][0].update(video_path="x/a dog-0.mp4"), "not planned"),
        ("color", lambda data: data["color"][1].append(data["color"][1][0]), "twice"),
        (
            "temporal_flickering",
            lambda data: data["temporal_flickering"][1].append(
                {"video_path": "x/a cat, temporal_flickering-24.mp4", "video_results": 0.9}
            ),
            "unfiltered set of 25",
        ),
    ],
)
def test_odd_results_are_refused(whole, partial, name, edit, message):
    run, manifest = whole
    change(run, name, edit)
    with pytest.raises(VBenchError, match=message):
        score_run(run, manifest, partial=partial)


def test_stray_changed_and_foreign_files_are_refused(whole):
    run, manifest = whole
    stray = run.results / "vbench_meta.json"
    stray.write_text('{"mine": 1}')
    with pytest.raises(VBenchError, match="pollute the total"):
        score_run(run, manifest)
    stray.rename(run.results / "mine_eval_results.json")
    with pytest.raises(VBenchError, match="is not"):
        score_run(run, manifest)
    (run.results / "mine_eval_results.json").unlink()
    change(run, "color", lambda data: data["color"].__setitem__(0, 0.99), seal=False)
    with pytest.raises(VBenchError, match="was changed"):
        score_run(run, manifest)
    meta = json.loads(run.meta.read_text())
    del meta["dimensions"]["color"]
    run.meta.write_text(json.dumps(meta))
    with pytest.raises(VBenchError, match="not made by this run"):
        score_run(run, manifest)


@pytest.mark.parametrize("weights", ["random", "wrong"])
def test_other_weights_are_refused(whole, weights):
    run, manifest = whole
    change_meta(run, "motion_smoothness", weights=weights)
    for partial in (False, True):
        with pytest.raises(VBenchError, match=f"{weights} weights"):
            score_run(run, manifest, partial=partial)


def test_partial_coverage_other_modes_and_unfiltered_flicker_have_no_total(whole):
    run, manifest = whole
    change_meta(run, "color", coverage=[1, 5, 2])
    with pytest.raises(VBenchError, match="2 of 5 clips"):
        score_run(run, manifest, partial=True)
    change_meta(run, "color", coverage=[1, 5, 5], mode="custom_input")
    with pytest.raises(VBenchError, match="needs vbench_standard"):
        score_run(run, manifest)
    change_meta(run, "color", mode="vbench_standard")
    change_meta(run, "temporal_flickering", static_filter=None)
    with pytest.raises(VBenchError, match="did not pass VBench's static filter"):
        score_run(run, manifest)
    assert "frozen videos score higher" in score_run(run, manifest, partial=True)["notes"][0]


def test_the_submission_holds_the_official_files_only(whole, tmp_path):
    run, manifest = whole
    target = tmp_path / "out" / "eval_results.zip"
    assert pack_results(run, manifest, target)["total"] == pytest.approx(0.823009017316879)
    with zipfile.ZipFile(target) as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}_eval_results.json" for name in DIMENSIONS)
        for name in archive.namelist():
            assert archive.read(name) == (run.results / name).read_bytes()
    first = target.read_bytes()
    pack_results(run, manifest, target)
    assert target.read_bytes() == first
    official_results(run, manifest, edition="vbench-long")
    target.unlink()
    with pytest.raises(VBenchError, match=r"under 5\.0 s belong to VBench"):
        pack_results(run, manifest, target)
    assert "not comparable" in score_run(run, manifest)["notes"][0]
    change_meta(run, "color", weights="random")
    with pytest.raises(VBenchError, match="random weights"):
        pack_results(run, manifest, target)
    assert not any(target.parent.iterdir())


def test_vbench_2_is_the_mean_of_its_groups(tmp_path):
    names = [name for group in GROUPS_2.values() for name in group]
    assert len(names) == len(set(names)) == 18
    scores = {name: number / 20 for number, name in enumerate(names)}
    found = totals_2(scores)
    assert found["creativity"] == pytest.approx(0.5 / 20)
    assert found["physics"] == pytest.approx((14 + 15 + 16 + 17) / 4 / 20)
    assert found["total"] == pytest.approx(sum(found[group] for group in GROUPS_2) / 5)
    for name, score in scores.items():
        (tmp_path / f"{name}_eval_results.json").write_text(json.dumps({name: [score, [{"prompt_id": 1}]]}))
    assert score_results(tmp_path, "vbench-2.0")["total"] == found["total"]
    with pytest.raises(ConfigError, match="eval vbench run"):
        score_results(tmp_path, "vbench")
    (tmp_path / "Diversity_eval_results.json").unlink()
    with pytest.raises(VBenchError, match="all 18 dimensions; missing: Diversity"):
        score_results(tmp_path, "vbench-2.0")
    assert score_results(tmp_path, "vbench-2.0", partial=True)["total"] is None


def test_vbench_long_results_may_be_triples(tmp_path):
    for name, score in GOLDEN.items():
        triple = [score, [{"video_path": "a/b_000.mp4", "video_results": score}], {"b.mp4": score}]
        (tmp_path / f"{name}_eval_results.json").write_text(json.dumps({name: triple}))
    report = score_results(tmp_path, "vbench-long")
    assert report["total"] == pytest.approx(0.823009017316879)
    assert "not checked" in report["notes"][0]
