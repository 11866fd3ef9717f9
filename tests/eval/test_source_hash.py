"""Other code has another hash."""

from types import ModuleType

from fastdit_eval.source_hash import hash_sources


def test_other_code_has_another_hash(tmp_path):
    package = ModuleType("package")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "one.py").write_text("1")
    before = hash_sources([package])
    assert hash_sources([package]) == before
    (tmp_path / "one.py").write_text("2")
    assert hash_sources([package]) != before
