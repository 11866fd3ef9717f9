import pytest
import torch

from fastdit import ConfigError, InvalidInputError, OutputError, VideoGrid
from fastdit.capture import AttentionCapture, load_calls, save_calls
from fastdit_eval.captured_heads import captured_heads

GRID = VideoGrid(frames=3, height=2, width=3)


def watch(seen):
    """Notes what the fused attention of a layer is given."""
    original = torch.nn.functional.scaled_dot_product_attention

    def attention(query, key, value, *args, **kwargs):
        if query.shape[2] == key.shape[2] == GRID.length:
            seen.append((query, key, value))
        return original(query, key, value, *args, **kwargs)

    return attention


def test_values_that_the_stored_type_cannot_hold_are_refused(tiny_wan, run):
    attention = tiny_wan.transformer.blocks[1].attn1
    with torch.no_grad():
        attention.to_v.weight.mul_(1e9)
    with pytest.raises(ConfigError, match=r"float16.*bfloat16"), AttentionCapture(tiny_wan, [1], dtype=torch.float16):
        run(tiny_wan)
    with AttentionCapture(tiny_wan, [1], [1], [1], torch.bfloat16) as probe:
        run(tiny_wan)
    assert probe.calls[0].value.shape[0] == 1
    assert probe.calls[0].value.abs().max() > 65_504


def test_it_keeps_what_the_dense_layers_saw(tiny_wan, run, monkeypatch):
    before = [block.attn1.processor for block in tiny_wan.transformer.blocks]
    plain = run(tiny_wan)
    seen = []
    with AttentionCapture(tiny_wan, [1, 3], [1]) as probe:
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch(seen))
        captured = run(tiny_wan)
        monkeypatch.undo()
    torch.testing.assert_close(captured, plain, atol=1e-4, rtol=1e-4)
    assert [block.attn1.processor for block in tiny_wan.transformer.blocks] == before
    assert [(call.layer, call.step) for call in probe.calls] == [(1, 1), (1, 3)]
    call = probe.calls[0]
    assert call.grid == GRID
    assert call.query.shape == (2, GRID.length, 12)
    matches = [
        all(torch.equal(a[0], b) for a, b in zip(s, (call.query, call.key, call.value), strict=True)) for s in seen
    ]
    assert sum(matches) == 1


def test_files_come_back_as_they_were(tiny_wan, run, tmp_path):
    with AttentionCapture(tiny_wan, [0, 2]) as probe:
        run(tiny_wan)
    path = tmp_path / "deep" / "heads.pt"
    save_calls(probe.calls, path)
    loaded = load_calls(path)
    assert len(loaded) == 4
    for call, kept in zip(loaded, probe.calls, strict=True):
        assert (call.layer, call.step, call.branch, call.grid) == (kept.layer, kept.step, kept.branch, kept.grid)
        assert torch.equal(call.value, kept.value)
    groups = captured_heads(loaded)
    assert [group.name for group in groups] == ["layer 0", "layer 1"]
    assert groups[1].query.shape == (1, 4, GRID.length, 12)
    assert torch.equal(groups[1].key[0, 2:], loaded[3].key)


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "other.pt"
    torch.save({"format": "else"}, path)
    with pytest.raises(InvalidInputError, match="fastdit bench capture"):
        load_calls(path)
    path.write_text("text")
    with pytest.raises(InvalidInputError, match="fastdit bench capture"):
        load_calls(path)
    with pytest.raises(InvalidInputError, match="No such file"):
        load_calls(tmp_path / "missing.pt")
    with pytest.raises(OutputError, match="cannot be written"):
        save_calls([], path / "below.pt")
    with pytest.raises(ConfigError, match="no captured"):
        captured_heads([])
