"""The fuzzer finds nothing in the CPU implementation, and finds what is planted."""

import pytest
import torch

from fastdit_kernels import fuzz
from fastdit_kernels.implementations import torch_gather

ATTEND = torch_gather.attend


@pytest.mark.slow
def test_two_thousand_random_cases_agree_with_the_reference():
    assert fuzz.run_cases(2000, seed=0) is None


def test_cases_reach_every_dtype_layout_level_and_mask():
    cases = [fuzz.draw_case(seed) for seed in range(200)]
    assert {case.dtype for case in cases} == set(fuzz.DTYPES)
    assert {case.strides for case in cases} == set(fuzz.STRIDES)
    assert {case.keep for case in cases} == set(fuzz.KEEP)
    assert {case.num_levels for case in cases} == {1, 2, 3, 5}
    assert {len(case.kv_segments) for case in cases} == {1, 2}
    assert fuzz.draw_case(7) == cases[7]


def drop_last_entry(*args):
    query, key, value, members, indices, counts, *rest = args
    return ATTEND(query, key, value, members, indices, (counts - 1).clamp(min=0), *rest)


def forget_member_counts(*args):
    query, key, value, members, *rest = args
    return ATTEND(query, key, value, None if members is None else (members > 0).long(), *rest)


def leave_an_element_unwritten(*args):
    out, lse = ATTEND(*args)
    poisoned = torch.empty_like(out)
    poisoned[..., 1:, :] = out[..., 1:, :]
    return poisoned, lse


def round_to_half(*args):
    out, lse = ATTEND(*args)
    return out.half().to(out.dtype), lse


@pytest.mark.parametrize("fault", [drop_last_entry, forget_member_counts, leave_an_element_unwritten, round_to_half])
def test_a_planted_fault_is_found_and_can_be_repeated(fault, monkeypatch, capsys):
    monkeypatch.setattr(torch_gather, "attend", fault)
    assert fuzz.main(["--num-cases", "60"]) == 1
    text = capsys.readouterr().out
    seed = text.split("--seed ")[1].split()[0]
    assert fuzz.main(["--num-cases", "1", "--seed", seed]) == 1
    monkeypatch.undo()
    assert fuzz.main(["--num-cases", "1", "--seed", seed]) == 0
