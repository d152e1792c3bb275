"""gemm_ladder under the name deep_gemm. Each program runs in a process of its own, as it changes imports."""

from __future__ import annotations

import collections
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gemm_ladder as gl
import numpy as np
import pytest
import torch
from gemm_ladder import utils
from gemm_ladder.errors import InputError
from gemm_ladder.production import fast_path
from gemm_ladder.testing import assert_bitwise_equal, count_bytes, get_arch_major, ignore_env, test_filter
from no_distribution import HIDE
from repository import REPOSITORY
from torch.fx.experimental.proxy_tensor import make_fx

INSTALL = "import gemm_ladder; gemm_ladder.install_as_deep_gemm(); "


def run(program: str, *folders: Path, hidden: bool = True) -> str:
    """What a program prints, with more folders to import from; `hidden`: where deep_gemm's distribution is
    not seen."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders))}
    whole = HIDE + program if hidden else program
    found = subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, env=environment, check=False
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def package(folder: Path, name: str, **files: str) -> Path:
    """Make a package of these modules, and return the folder that it is in."""
    for module, text in {"__init__": "", **files}.items():
        path = folder / name / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_one_set_of_modules():
    """A setting that is made through one name is seen through the other, whichever is imported first."""
    program = (
        "from deep_gemm.settings import set_num_sms; set_num_sms(7);"
        "import deep_gemm, deep_gemm.utils.layout;"
        "assert gemm_ladder.get_num_sms() == deep_gemm.get_num_sms() == 7 and deep_gemm is gemm_ladder;"
        "assert deep_gemm.utils is gemm_ladder.utils and deep_gemm.utils.layout is gemm_ladder.utils.layout;"
        "assert gemm_ladder.utils.__spec__.name == gemm_ladder.utils.__name__ == 'gemm_ladder.utils'"
    )
    run(INSTALL + program)
    run("import gemm_ladder.settings, gemm_ladder.utils;" + INSTALL + program)
    run(INSTALL + INSTALL + program)


def test_the_submodules_of_deep_gemm():
    run(
        INSTALL + "import deep_gemm.testing.bench, deep_gemm.testing.numeric;"
        "from deep_gemm.utils.math import align, ceil_div, per_channel_cast_to_fp8;"
        "from deep_gemm.utils.layout import get_mn_major_tma_aligned_tensor;"
        "from deep_gemm.testing.bench import bench, bench_kineto;"
        "from deep_gemm.testing import bench as function, calc_diff, count_bytes;"
        "from deep_gemm import align as of_the_package;"
        "assert function is bench is deep_gemm.testing.bench is gemm_ladder.testing.bench;"
        "assert of_the_package(5, 4) == 8"
    )


def test_names_that_only_another_deep_gemm_has(tmp_path: Path):
    """They come from its own package, or from the copy in vLLM's wheel; ours are not replaced."""
    own = package(
        tmp_path / "own", "deep_gemm", __init__="from . import utils\nbf16_gemm_nt, fp8_gemm_nt = 1, 2"
    )
    package(
        own / "deep_gemm", "utils", __init__="from .dist import init_dist\nalign = None", dist="init_dist = 3"
    )
    program = (
        "import deep_gemm; assert deep_gemm.bf16_gemm_nt == 1 and callable(deep_gemm.fp8_gemm_nt);"
        "assert deep_gemm.utils.init_dist == 3 and deep_gemm.utils.align(5, 4) == 8;"
        "assert not hasattr(deep_gemm, 'nonsense')"
    )
    run(INSTALL + program, own)
    vllm = package(tmp_path / "vllm", "vllm")
    package(vllm / "vllm", "third_party")
    (own / "deep_gemm").rename(vllm / "vllm" / "third_party" / "deep_gemm")
    run(INSTALL + program, vllm)
    run(INSTALL + "import sys, vllm.third_party.deep_gemm;" + program, vllm)


def test_names_that_none_has(tmp_path: Path):
    for folders in (
        (),
        (package(tmp_path, "deep_gemm", __init__="raise OSError('built for another torch')"),),
    ):
        printed = run(
            INSTALL + "import deep_gemm\n"
            "for module in (deep_gemm, deep_gemm.utils):\n"
            "    assert not hasattr(module, 'bf16_gemm_nt')\n"
            "try: deep_gemm.utils.init_dist\n"
            "except AttributeError as error: print(error)",
            *folders,
        )
        assert printed == (
            "deep_gemm.utils is GEMM Ladder's here and has no init_dist; no other DeepGEMM is installed that "
            "could have it"
        )
    assert not hasattr(utils, "init_dist"), "nor is any looked for in a process that did not ask"


def test_it_comes_too_late(tmp_path: Path):
    folder = package(tmp_path, "deep_gemm")
    printed = run(
        "import deep_gemm, gemm_ladder\n"
        "try: gemm_ladder.install_as_deep_gemm()\n"
        "except gemm_ladder.errors.InputError as error: print(error)",
        folder,
    )
    assert printed.endswith("this call is needed before that") and str(folder) in printed


def test_submodules_that_only_another_deep_gemm_has(tmp_path: Path) -> None:
    """They are imported as its own are, and it may import deep_gemm itself."""
    folder = package(tmp_path, "deep_gemm", __init__="from . import mega", utils="")
    package(folder / "deep_gemm", "mega", __init__="from deep_gemm.utils import align", moe="name = 'moe'")
    run(
        INSTALL + "import deep_gemm.mega.moe, deep_gemm.utils.math\n"
        "assert deep_gemm.mega.moe.name == 'moe' and deep_gemm.mega.align(5, 4) == 8\n"
        "assert deep_gemm.utils.math is gemm_ladder.utils.math\n"
        "try: import deep_gemm.utils.nonsense\n"
        "except ModuleNotFoundError as error: assert error.name == 'deep_gemm.utils.nonsense'\n"
        "else: assert False",
        folder,
    )


@pytest.mark.slow
def test_the_distribution(tmp_path: Path):
    """With it `import deep_gemm` works in any process, a spawned one too, and another DeepGEMM that is
    installed in the same folder keeps its files."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for file in (REPOSITORY / "kernels" / "deep_gemm").glob("*.*"):  # a build leaves folders behind
        (source / file.name).write_text(file.read_text())
    package(target, "deep_gemm", __init__="bf16_gemm_nt, fp8_gemm_nt = 1, 2")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", target, source], check=True)
    (tmp_path / "sitecustomize.py").write_text(f"import site; site.addsitedir({str(target)!r})")
    for program in (
        "import deep_gemm.utils, gemm_ladder; assert deep_gemm is gemm_ladder",
        "from deep_gemm.settings import set_num_sms; set_num_sms(5); import deep_gemm as d;"
        "assert d.get_num_sms() == 5 and d.__name__ == 'gemm_ladder'",
        "import sys; assert 'gemm_ladder' not in sys.modules, 'a process that asks for nothing pays for it'",
        "import importlib.util as u; assert u.find_spec('deep_gemm').origin.endswith('kernels/__init__.py')",
        "import deep_gemm; assert deep_gemm.bf16_gemm_nt == 1 and callable(deep_gemm.fp8_gemm_nt)",
    ):
        run(program, tmp_path, hidden=False)
    script = tmp_path / "server.py"
    script.write_text(
        "import multiprocessing\n"
        "def work(queue):\n"
        "    import deep_gemm\n"
        "    queue.put(deep_gemm.__name__)\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        "    process = context.Process(target=work, args=(queue,))\n"
        "    process.start()\n"
        "    assert queue.get(timeout=120) == 'gemm_ladder'\n"
        "    process.join()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, script], env=environment, check=True)


# ----------------------------------------------------------------------------------- what the submodules add


def test_per_channel_cast():
    """It is the cast by rows, of the transpose."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((300, 40)).astype(np.float32))
    codes, scales = utils.per_channel_cast_to_fp8(x, use_ue8m0=True)
    expected, of_rows = utils.per_token_cast_to_fp8(x.T, use_ue8m0=True)
    assert codes.is_contiguous() and scales.is_contiguous() and scales.shape == (3, 40)
    assert torch.equal(codes.float(), expected.T.float()) and torch.equal(scales, of_rows.T)
    with pytest.raises(InputError, match="matrix is needed"):
        utils.per_channel_cast_to_fp8(x[0])


def test_cast_with_scales_for_some_dimensions():
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 5, 128)).astype(np.float32))
    codes, scales = utils.per_custom_dims_cast_to_fp8(x, (0, 1), use_ue8m0=True)
    expected, of_rows = utils.per_token_cast_to_fp8(x.view(15, 128), use_ue8m0=True)
    assert torch.equal(codes.float().view(15, 128), expected.float()) and torch.equal(
        scales.view(15, 1), of_rows
    )
    assert utils.per_custom_dims_cast_to_fp8(x, ())[1].shape == ()
    with pytest.raises(InputError, match="dims has 3; a dimension from 0 to 2 is needed"):
        utils.per_custom_dims_cast_to_fp8(x, (3,))


@pytest.mark.parametrize(("k", "gran_k"), [(300, 128), (64, 32), (512, 128)])
def test_casting_back(k: int, gran_k: int) -> None:
    """Each number times its scale, also where the scales are packed."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((5, k)).astype(np.float32))
    for packed in (False, True):
        codes, scales = utils.per_token_cast_to_fp8(x, True, gran_k, use_packed_ue8m0=packed)
        assert scales.dtype == (torch.int32 if packed else torch.float32)
        found = utils.cast_back_from_fp8(codes, scales, gran_k, use_packed_ue8m0=packed)
        plain = utils.per_token_cast_to_fp8(x, True, gran_k)[1].repeat_interleave(gran_k, dim=1)[:, :k]
        assert torch.equal(found, codes.float() * plain) and (found - x).abs().max() < 0.1 * x.abs().max()
    with pytest.raises(InputError, match="use_packed_ue8m0 is given without use_ue8m0"):
        utils.per_token_cast_to_fp8(x, use_packed_ue8m0=True)
    with pytest.raises(InputError, match=r"^sf has shape .*; .* is needed: "):
        utils.cast_back_from_fp8(codes, scales[:3], gran_k, use_packed_ue8m0=True)
    with pytest.raises(InputError, match="x_fp8 is float32; float8_e4m3fn is needed"):
        utils.cast_back_from_fp8(x, scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ceil_to_ue8m0(dtype: torch.dtype) -> None:
    x = torch.tensor([1.0, 1.01, 2.0**-14, 3.0, torch.inf], dtype=dtype)
    assert utils.ceil_to_ue8m0(x).tolist() == [1.0, 2.0, 2.0**-14, 4.0, torch.inf]
    with pytest.raises(InputError, match=r"x is torch.int32; a float32, bfloat16 or float16 tensor is"):
        utils.ceil_to_ue8m0(x.int())


def test_packed_exponents():
    x = torch.tensor([[1.0, 2.0, 0.5, 2.0**127, 0.0, 2.0**-126], [4.0] * 6, [8.0] * 6])
    packed = utils.pack_ue8m0_to_int(x[:, :4])
    assert (
        packed.shape == (3, 1) and packed[0, 0] == 127 | 128 << 8 | 126 << 16 | torch.tensor(254 << 24).int()
    )
    assert torch.equal(utils.unpack_ue8m0_from_int(packed), x[:, :4])
    found = utils.get_mn_major_tma_aligned_packed_ue8m0_tensor(x)
    assert found.shape == (3, 2) and found.stride() == (1, 4) and found.dtype == torch.int32
    assert torch.equal(utils.unpack_ue8m0_from_int(found)[:, :6], x)
    assert not utils.unpack_ue8m0_from_int(found)[:, 6:].any()
    groups = utils.get_mn_major_tma_aligned_packed_ue8m0_tensor(x[None].expand(2, 3, 6))
    assert groups.stride() == (8, 1, 4) and torch.equal(groups[1], found)
    for wrong, message in ((x * 3, "no power of two"), (-x, "no power of two"), (x.half(), "float32")):
        with pytest.raises(InputError, match=message):
            utils.get_mn_major_tma_aligned_packed_ue8m0_tensor(wrong)


def test_count_bytes():
    x = torch.empty(3, 4)
    assert count_bytes(x, None, (x.half(), [x.to(torch.float8_e4m3fn)])) == 48 + 24 + 12
    with pytest.raises(InputError, match="is no tensor"):
        count_bytes(x, 3)


X, SF = torch.ones(3, 128), torch.ones(3, 1)
MISTAKEN: dict[str, tuple[Callable[[], object], str]] = {
    "recipe": (
        lambda: gl.transform_sf_into_required_layout(SF, 3, 128, None),
        "recipe is of type NoneType; a tuple of two or three ints is needed",
    ),
    "mn": (
        lambda: gl.transform_sf_into_required_layout(SF, "3", 128, (1, 128)),
        "mn is of type str; an int is needed",
    ),
    "element_size": (
        lambda: gl.get_tma_aligned_size(5, None),
        "element_size is of type NoneType; an int is needed",
    ),
    "gran_k": (
        lambda: utils.per_token_cast_to_fp8(X, gran_k=2.5),
        "gran_k is of type float; an int is needed",
    ),
    "layout": (
        lambda: utils.per_block_cast_to_fp8(X.to_sparse()),
        "x has layout torch.sparse_coo; a dense tensor (torch.strided) is needed",
    ),
    "dims": (
        lambda: utils.per_custom_dims_cast_to_fp8(X, "a"),
        "dims is 'a'; a tuple of dimensions is needed",
    ),
    "alpha": (
        lambda: gl.fp8_gemm_nt((X, SF), (X, SF), X, alpha=SF),
        "alpha is of type Tensor; 1 or None is needed: the product is not scaled as a whole on Hopper",
    ),
}


@pytest.mark.parametrize("name", MISTAKEN)
def test_mistaken_arguments(name: str) -> None:
    call, message = MISTAKEN[name]
    with pytest.raises(InputError) as refused:
        call()
    assert str(refused.value) == message


def test_recipes_of_tensors() -> None:
    with pytest.raises(InputError, match=r"^recipe is \(1, tensor.*\); \(1, 128, 128\) or None is needed$"):
        gl.fp8_gemm_nt((X, SF), (X, SF), X, recipe=(1, SF, 128))


def test_nothing_to_pack() -> None:
    for shape in ((3, 0), (0, 4)):
        assert utils.pack_ue8m0_to_int(torch.empty(shape)).shape == (shape[0], shape[1] // 4)


def test_equal_bits() -> None:
    x = torch.arange(6.0).view(2, 3)
    y = x.clone()
    assert_bitwise_equal(x, y)
    assert_bitwise_equal(x[:0], y[:0])
    y[1, 0] = -1
    with pytest.raises(AssertionError, match=r"^1 of 6 .* of d differ, the first at \[1, 0\]: 3.0 and -1.0"):
        assert_bitwise_equal(x, y, "d")
    with pytest.raises(AssertionError, match="of 1 elements differ"):  # though they compare as equal
        assert_bitwise_equal(torch.tensor([0.0]), torch.tensor([-0.0]))
    for other in (x.half(), x[0]):
        with pytest.raises(AssertionError, match="the types differ"):
            assert_bitwise_equal(x, other)


def test_decorators(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("SOME_VARIABLE", "here")

    def seen() -> str | None:
        return os.environ.get("SOME_VARIABLE")

    assert ignore_env("SOME_VARIABLE", lambda: True)(seen)() is None
    assert ignore_env("SOME_VARIABLE", lambda: False)(seen)() == "here" == seen()
    assert test_filter(lambda: True)(seen)() == "here"
    assert test_filter(lambda: False)(seen)() is None and "seen is left out" in capsys.readouterr().out


def test_get_arch_major():
    if torch.cuda.is_available():
        assert get_arch_major() == torch.cuda.get_device_capability()[0]
    else:
        with pytest.raises(InputError, match="no CUDA device"):
            get_arch_major()


# ------------------------------------------------------------------------------ what else callers rely on


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((4096, 1), (1, 4096)),
        ((5, 1), (1, 8)),
        ((1, 3), (1, 4)),
        ((2, 6, 1), (8, 1, 8)),
        ((1, 5, 2), (16, 1, 8)),
    ],
)
def test_strides_of_scales(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """Those of DeepGEMM, of dimensions of size 1, too, which some callers look at."""
    sf = torch.arange(np.prod(shape), dtype=torch.float32).view(shape)
    found = utils.get_mn_major_tma_aligned_tensor(sf)
    assert found.stride() == strides and torch.equal(found, sf)
    assert utils.get_mn_major_tma_aligned_tensor(found).data_ptr() == found.data_ptr()


Named = collections.namedtuple("Named", "matrix scales")


@pytest.mark.parametrize("kind", ["dense", "contiguous", "masked", "psum"])
def test_lists_and_named_tuples_as_pairs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach the fast path as plain tuples."""
    asked = []

    def queue(*arguments: object) -> bool | None:
        asked.append(arguments)
        return None if type(arguments[0]) is type(arguments[1]) is tuple else False

    monkeypatch.setitem(fast_path.queue, kind, queue)
    a, sfa, b, sfb, d, rows = (torch.empty(0) for _ in range(6))
    function, *more = {
        "dense": (gl.fp8_gemm_nt,),
        "contiguous": (gl.m_grouped_fp8_gemm_nt_contiguous, rows),
        "masked": (gl.m_grouped_fp8_gemm_nt_masked, rows, 3),
        "psum": (
            lambda *given: gl.m_grouped_fp8_gemm_nt_contiguous(
                *given[:4], use_psum_layout=True, expected_m_for_psum_layout=given[4]
            ),
            *(rows, 3),
        ),
    }[kind]
    for lhs, rhs in (([a, sfa], [b, sfb]), ((a, sfa), [b, sfb]), (Named(a, sfa), (b, sfb))):
        function(lhs, rhs, d, *more)
        assert asked.pop() == ((a, sfa), (b, sfb), d, *more) and len(asked) == 1
        asked.clear()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tensors_that_stand_for_others(device: str) -> None:
    """Those of torch.func's transforms are refused by name, and nothing is written. (Those of FakeTensorMode
    have an answer: test_ops.py.)"""
    a, b = (torch.zeros(rows, 256, device=device).to(torch.float8_e4m3fn) for rows in (64, 136))
    lhs, rhs = (a, torch.ones(64, 2, device=device)), (b, torch.ones(2, 2, device=device))
    out = torch.full((64, 136), 7, dtype=torch.bfloat16, device=device)
    if device == "cuda":
        gl.fp8_gemm_nt(lhs, rhs, out.clone())  # so that there is a plan for the fast path

    def refused(name: str, function: Callable[[], object]) -> None:
        with pytest.raises(InputError, match=rf"^\w+ is a.* {name}.* is needed$"):
            function()
        assert (out == 7).all()

    func = torch.func
    functionalized = func.functionalize(lambda d: gl.fp8_gemm_nt(lhs, rhs, d))
    refused("torch.func.functionalize", lambda: functionalized(out))
    refused("torch.func.vmap", lambda: func.vmap(lambda x: gl.fp8_gemm_nt((x, lhs[1]), rhs, out))(a[None]))
    refused("torch.func.grad", lambda: func.grad(lambda s: gl.fp8_gemm_nt((a, s), rhs, out))(lhs[1]))
    refused("torch.func.vmap", lambda: func.vmap(gl.get_mn_major_tma_aligned_tensor)(lhs[1][None]))
    refused("torch.func.functionalize", lambda: make_fx(functionalized)(out))  # a mode sees that call
    func.vmap(lambda x: gl.fp8_gemm_nt(lhs, rhs, out) or x)(torch.ones(3))  # plain tensors, beside others
    assert not out.any()


def test_settings_without_effect() -> None:
    for number in (80, 100):
        gl.set_tc_util(number)
        assert gl.get_tc_util() == number
    with pytest.raises(InputError, match="new_tc_util is 101; at most 100, in percent, is needed"):
        gl.set_tc_util(101)
    for value in (False, True):
        gl.set_pdl(value)
        assert gl.get_pdl() is value
    gl.set_ignore_compile_dims(True)
    gl.use_deterministic_algorithms()
    gl.set_block_size_multiple_of((64, 64))
