"""What pyproject.toml cannot say: the top-level folder `presets/` goes into the package, as `enginerouter/presets`."""

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
        for preset in sorted(Path(__file__).parent.glob("presets/*")):
            self.copy_file(str(preset), str(target / preset.name))


setup(cmdclass={"build_py": BuildWithPresets})
