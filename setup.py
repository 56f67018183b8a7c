"""What pyproject.toml cannot say: `presets/` and the example go into the package, as `enginerouter/presets`."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPresets(build_py):
    """An editable installation reads them where they are."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return
        target = Path(self.build_lib) / "enginerouter" / "presets"
        self.mkpath(str(target))
        here = Path(__file__).parent
        for file in (*sorted(here.glob("presets/*")), here / "config.example.yaml"):
            self.copy_file(str(file), str(target / file.name))


setup(cmdclass={"build_py": BuildWithPresets})
