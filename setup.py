"""Hands the extension to CMake; everything else about the package stands in pyproject.toml.

The environment variables FASTCONV_CUDA (on, off or auto), FASTCONV_CUDA_ARCHS and FASTCONV_ISAS go with it; what they
mean stands in CMakeLists.txt.
"""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
OPTIONS = {"FASTCONV_CUDA": "auto", "FASTCONV_CUDA_ARCHS": "", "FASTCONV_ISAS": ""}


class CMakeBuild(build_ext):
    """Configures and builds with Ninja, then installs the module where setuptools expects it."""

    def build_extension(self, ext: Extension) -> None:
        package_root = Path(self.get_ext_fullpath(ext.name)).resolve().parent.parent
        build = ROOT / "build" / "cmake"
        configure = ["-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-D{name}={os.environ.get(name, default)}" for name, default in OPTIONS.items()]
        self._cmake(*configure)
        self._cmake("--build", build)
        # An editable install runs from the source tree, which needs everything CMake installs beside the module.
        for prefix in (package_root, *([ROOT] if self.editable_mode else [])):
            self._cmake("--install", build, "--prefix", prefix)

    @staticmethod
    def _cmake(*arguments: object) -> None:
        subprocess.run([sys.executable, "-m", "cmake", *map(str, arguments)], check=True)


setup(ext_modules=[Extension("fastconv._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
