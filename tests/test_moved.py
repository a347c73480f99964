"""Scripts written for release 0.1 import its modules by their old names."""

import subprocess
import sys
from importlib import import_module

import pytest

from fgvclib.moved import MOVED


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_old_name_gives_the_module(old, new, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    module = import_module(new)
    with pytest.warns(DeprecationWarning, match=f"^{old} is now {new}.$"):
        found = import_module(old)
    public = [name for name in vars(module) if not name.startswith("_")]
    assert public and all(getattr(found, name) is getattr(module, name) for name in public)
    script = {}
    exec(f"from {old} import *", script)
    assert set(public) <= script.keys()


def test_a_name_that_is_nowhere_is_refused():
    with pytest.raises(ImportError, match="no_such_photo"):
        exec("from fgvclib.photos import no_such_photo")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_module("fgvclib.no_such_module")


def test_a_script_of_release_0_1(tmp_path):
    """Its imports work, the warning names the script's own line, and nothing waits for torch before it must."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from fgvclib import synthbirds\n"
        "from fgvclib.manifest import code_state\n"
        "import fgvclib.losses\n"
        "assert 'torch' not in sys.modules\n"
        "print(synthbirds.generate.__module__, code_state()['commit'], fgvclib.losses.localisation_loss.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", script], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "synthbirds" in done.stdout and "fgvclib.model.losses" in done.stdout
    assert f"{script}:4: DeprecationWarning: fgvclib.losses is now fgvclib.model.losses." in done.stderr
