"""Hands the extension to CMake; everything else about the package stands in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures and builds with Ninja, then installs the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        package_root = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cmake = [sys.executable, "-m", "cmake"]
        subprocess.run(
            [
                *cmake,
                *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
                f"-DPython_EXECUTABLE={sys.executable}",
            ],
            check=True,
        )
        subprocess.run([*cmake, "--build", str(build)], check=True)
        subprocess.run([*cmake, "--install", str(build), "--prefix", str(package_root)], check=True)


setup(ext_modules=[Extension("fastconv._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
