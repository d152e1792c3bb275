"""Puts the .pth file beside the module, for which pyproject.toml has no words."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithPth(build_py):
    def run(self) -> None:
        super().run()
        self.copy_file("gemm_ladder_as_deep_gemm.pth", self.build_lib)


setup(cmdclass={"build_py": BuildWithPth})
