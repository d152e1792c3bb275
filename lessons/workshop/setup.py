# Installs gemm_ladder where it is missing, on Colab for example. Where it is there, this cell does nothing.
import importlib.util

if importlib.util.find_spec("gemm_ladder") is None:
    import os
    import shutil
    import site
    import subprocess
    import sys

    if not shutil.which("g++"):
        raise RuntimeError(
            "The kernels are compiled on this machine: install g++ first (apt-get install g++)."
        )
    address = os.environ.get("GEMM_LADDER_REPOSITORY") or input("This repository's address, for git clone: ")
    subprocess.run(["git", "clone", "--depth", "1", address, "gemm-ladder"], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--editable", "gemm-ladder"], check=True
    )
    for folder in site.getsitepackages():  # this process started before pip wrote there
        site.addsitedir(folder)
    importlib.invalidate_caches()
