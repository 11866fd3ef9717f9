"""`fastdit bench e2e` on a CPU: shrunken models, labelled so."""

import json

from fastdit.cli import main


def test_shrunken_steps_are_labelled_and_refused_sizes_named(tmp_path, capsys):
    words = ["bench", "e2e", "--models", "wan-1.3b", "--resolution", "480p", "720p", "--methods", "adaptive"]
    words += ["--densities", "0.5", "--repeats", "1", "--tokens", "300", "--device", "cpu"]
    assert main([*words, "--json", "--output", str(tmp_path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "e2e.json").read_text()) == report
    small, large = report["runs"]
    assert "released for 480p" in large["skipped"]
    assert small["skipped"] is None
    assert small["shrunken"]["layers"] == [2, 30]
    assert small["shrunken"]["tokens"][1] == 32_760
    assert small["dense_backend"]["name"] == "native"
    (case,) = small["cases"]
    assert case["projection"]["is_projection"] is True
    assert 0.3 < case["density"] < 0.7
    # So few tokens do not pay on a CPU, or just so: what matters is that a slower one was announced.
    assert case["forecast"]["attention_speedup"][0] > 0
    for share in ("select_share", "move_share"):
        assert 0 <= case["operator"][share] <= 1
    assert report["environment"]["commit"] is None or len(report["environment"]["commit"]) == 40


def test_wrong_usage_is_named(capsys):
    assert main(["bench", "e2e", "--models", "wan-2b"]) == 2
    assert "'wan-1.3b'" in capsys.readouterr().err
    assert main(["bench", "e2e", "--resolution", "4k"]) == 2
    assert "'480p', '720p'" in capsys.readouterr().err
