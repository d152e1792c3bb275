"""Makes `import deep_gemm` give the package gemm_ladder itself, in every process of an environment.

gemm_ladder_as_deep_gemm.pth has Python import this module when it starts, so nothing else is imported here.
There is no folder called deep_gemm, because it would replace the files of a DeepGEMM that is installed beside
it, as SGLang asks for one. gemm_ladder.drop_in has the details.
"""

import sys


class Finder:
    """Finds deep_gemm by handing over to gemm_ladder.drop_in's own finder."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):
        if fullname != "deep_gemm":
            return None
        from gemm_ladder import drop_in

        sys.meta_path.remove(Finder)
        drop_in.take_the_name()
        return sys.meta_path[0].find_spec(fullname, path, target)


sys.meta_path.insert(0, Finder)
