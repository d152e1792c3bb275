"""GEMM Ladder under DeepGEMM's name: `import deep_gemm` gives the package gemm_ladder itself.

gemm_ladder.drop_in has the details.
"""

from gemm_ladder import drop_in

drop_in.take_the_name()
