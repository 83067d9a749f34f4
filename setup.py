"""What pyproject.toml cannot say: a wheel carries claims.yml and the records it is settled by."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithRecords(build_py):
    """Builds the package with a folder ``packaged``, which ``companion.paths`` reads."""

    def run(self) -> None:
        """Copy them beside the modules; an editable installation reads the checkout's own."""
        super().run()
        if self.editable_mode:
            return
        packaged = Path(self.build_lib, "companion", "packaged")
        shutil.rmtree(packaged, ignore_errors=True)  # of an earlier build
        for file in [Path("claims.yml"), *Path("results").glob("*/*/*")]:
            if file.name in ("claims.yml", "table.csv", "provenance.json"):  # no journal, no lock
                (packaged / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, packaged / file)


setup(cmdclass={"build_py": WithRecords})
