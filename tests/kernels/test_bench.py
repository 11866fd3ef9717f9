"""The bench refuses wrong kernels, and its figures follow from its times."""

import pytest
import torch

from fastdit_kernels import bench
from fastdit_kernels.bench_check import WrongResultError, random_pooled_mask
from fastdit_kernels.bench_shapes import MODEL_SHAPES, ModelShape
from fastdit_kernels.implementations import torch_gather

TINY = (ModelShape("tiny", 2, 300, 32),)


def test_a_wrong_kernel_is_not_timed(monkeypatch):
    attend = torch_gather.attend
    monkeypatch.setattr(torch_gather, "attend", lambda *args: tuple(1.01 * part for part in attend(*args)))
    monkeypatch.setattr(bench, "time_together", lambda *_: pytest.fail("timed"))
    with pytest.raises(WrongResultError, match="is not timed"):
        bench.run_bench(device=torch.device("cpu"), shapes=TINY, quick=True)


def test_a_kernel_that_is_wrong_on_pooled_tiles_alone_is_not_timed(monkeypatch):
    attend = torch_gather.attend

    def takes_pooled_tokens_for_single_ones(query, key, value, row_members, *rest):
        return attend(query, key, value, row_members.clamp(max=1), *rest)

    monkeypatch.setattr(torch_gather, "attend", takes_pooled_tokens_for_single_ones)
    with pytest.raises(WrongResultError, match="pooled tiles"):
        bench.run_bench(device=torch.device("cpu"), shapes=TINY, quick=True)


def test_the_pooled_mask_of_the_check_uses_every_level_and_no_token_twice():
    mask = random_pooled_mask((1, 2, 1000, 32), 32)
    mask.validate()
    levels = mask.kv_layout.tile_levels()[mask.to_dense().nonzero()[:, -1]]
    assert levels.unique().tolist() == [0, 1, 2]


def test_figures_follow_from_the_times(monkeypatch):
    def times(runs, repeats, device):
        for run in runs.values():
            run()
        return {name: [1.0, 1.0] if name == "sparse" else [4.0, 2.0] for name in runs}

    monkeypatch.setattr(bench, "time_together", times)
    steps = []
    report = bench.run_bench(
        device=torch.device("cpu"), shapes=TINY, quick=True, tile=32, progress=lambda *step: steps.append(step)
    )
    assert steps[-1][:2] == (4, 4)
    assert report["environment"]["torch"] == torch.__version__
    for case in report["cases"]:
        assert case["speedup"] == 3.0
        assert case["speedup_range"] == [2.0, 4.0]
        assert case["fraction_of_dense"] == pytest.approx(3.0 * case["density"])
        assert case["best_dense_tflops"] == pytest.approx(4 * 32 * 2 * 300**2 / 3 / 1e12)
        assert case["sparse_kept_tflops"] == pytest.approx(4 * 32 * 2 * 300**2 * case["density"] / 1e12)


def test_every_family_has_shapes():
    names = " ".join(shape.name for shape in MODEL_SHAPES)
    for family in (
        "CogVideoX-2B",
        "CogVideoX-5B",
        "CogVideoX1.5",
        "Wan2.1-1.3B",
        "Wan2.1-14B",
        "HunyuanVideo ",
        "HunyuanVideo-1.5",
        "LTX",
        "Mochi",
    ):
        assert family in names
