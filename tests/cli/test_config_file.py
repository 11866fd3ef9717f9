"""Methods and settings from a JSON file instead of options."""

import json

import pytest

from fastdit import AdaptiveConfig, CachedConfig, ConfigError, MixedConfig, PyramidConfig, Schedule, StaticConfig
from fastdit.cli import main
from fastdit.cli.sparse_options import SparseOptions
from fastdit.config import config_from_file


def written(folder, data):
    path = folder / "config.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


@pytest.mark.parametrize(
    "config",
    [
        PyramidConfig(level_mass={0: 0.5, 2: 0.3}, min_similarity={2: 0.6}, order="raster"),
        PyramidConfig(search="top_down", beam=12, num_levels=8, schedule=Schedule(dense_steps=3, dense_layers=(0, -1))),
        CachedConfig(source=PyramidConfig(level_shares={0: 0.1, 3: 0.2}), refresh_every=7),
        MixedConfig(heads={0: "dense", (3, 1): StaticConfig(pattern="window:1,3,3")}, default=AdaptiveConfig(rho=True)),
    ],
)
def test_what_a_config_writes_is_read_back(tmp_path, config):
    path = written(tmp_path, config.to_dict())
    assert config_from_file(path) == config
    options = SparseOptions(config=path)
    assert options.choose_method(None, "adaptive") == config.method
    assert options.build(config.method, {"density": 0.5}) == config


def test_tables_of_levels_may_be_objects(tmp_path):
    path = written(tmp_path, {"method": "pyramid", "level_shares": {"3": 0.2, "0": 0.1}})
    assert config_from_file(path) == PyramidConfig(level_shares={0: 0.1, 3: 0.2})


def test_search_and_beam_are_options():
    built = SparseOptions(search="top_down", beam=9).build("pyramid", {})
    assert built == PyramidConfig(search="top_down", beam=9)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{not json", "is no JSON"),
        ("[1]", "accepted is a dict with 'method'"),
        ({"method": ["pyramid"]}, "accepted is a dict with 'method'"),
        ({"method": "magic"}, "method='magic': accepted are 'adaptive'"),
        ({"method": "pyramid", "top_p": 0.9}, "top_p: method 'pyramid' has no such setting"),
        ({"method": "pyramid", "level_shares": {"fine": 0.1}}, "table of levels"),
        ({"method": "pyramid", "level_shares": {"7": 0.1}}, "level 7"),
        ({"method": "adaptive", "schedule": {"steps": 1}}, "schedule"),
    ],
)
def test_a_bad_file_is_named_with_its_fault(tmp_path, data, message):
    path = written(tmp_path, data)
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        config_from_file(path)
    assert message in str(caught.value)


@pytest.mark.parametrize("command", ["generate", "judge"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=/no/such/file.json"], "/no/such/file.json cannot be read"),
        (["--config={path}", "--method=pyramid"], "leave out --method"),
        (["--config={path}", "--density=0.3"], "density=0.3 with --config: write all settings into the file"),
    ],
)
def test_wrong_usage_is_one_clear_line(tmp_path, capsys, command, words, message):
    path = written(tmp_path, {"method": "pyramid"})
    given = ["--prompt=a red circle", f"--output={tmp_path / 'out'}"] if command == "generate" else []
    assert main([command, *given, *(word.format(path=path) for word in words)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("fastdit: error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()
