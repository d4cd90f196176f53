"""The parts of a run are found to belong together, or the run is refused before anything is computed."""

import json
from pathlib import Path
from types import SimpleNamespace

from flanjax.run import is_described


def test_a_description_that_was_cut_short_is_none(tmp_path: Path) -> None:
    run, path = SimpleNamespace(model_dir=str(tmp_path)), tmp_path / "config.json"
    assert not is_described(run)
    whole = json.dumps({"model": {"mlp_dim": 32}})
    path.write_text(whole)
    assert is_described(run)
    for cut in range(len(whole)):
        path.write_text(whole[:cut])
        assert not is_described(run)
