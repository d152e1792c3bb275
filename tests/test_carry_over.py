"""Carrying recorded measurements over to the digest of tokens, in a small repository."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from gemm_ladder.build import digest, toolchain
from gemm_ladder.casts.kernel import Kernel
from gemm_ladder.errors import GemmLadderError, ToolchainError
from gemm_ladder.layers import choosing, combining, placing, scattering, silu_backward, turning
from gemm_ladder.measure import carry_over, same_code
from gemm_ladder.production.config import Config

A, FFMA = "// words\nint a;\n", "# words\nx = 1\n"


def git(repository: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *arguments], cwd=repository, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with measurements of its only commit, tagged "measured"; ffma.py has moved since."""
    files = {
        "kernels/stages/a.cu": A,
        "kernels/ffma.py": FFMA,
        "kernels/host/probe.cu": "int b;\n",  # counted by the earlier rule alone
        "kernels/cli.py": "x = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "-m", "a")
    git(tmp_path, "tag", "measured")
    hashed = b""
    for name in ("ffma.py", "host/probe.cu", "stages/a.cu"):
        content = files[f"kernels/{name}"].encode()
        hashed += f"{name}\0{len(content)}\0".encode() + content
    earlier = hashlib.sha256(hashed).hexdigest()
    data = tmp_path / "figures" / "data"
    data.mkdir(parents=True)
    (data / "one.json").write_text(json.dumps({"meta": {"sources": earlier, "note": earlier}}, indent=4))
    (data / "two.json").write_text(
        json.dumps({"code": [{"sources": earlier}], "meta": {"sources": "f" * 64}})
    )
    (data / "old.json").write_text(json.dumps({"meta": {"sources": "f" * 64}}))
    (tmp_path / "kernels" / "sass").mkdir()
    (tmp_path / "kernels" / "ffma.py").rename(tmp_path / "kernels" / "sass" / "ffma.py")
    return tmp_path


def recorded(repository: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (repository / "figures" / "data").iterdir()}


def test_digest_is_replaced_where_only_words_changed(repository: Path) -> None:
    (repository / "kernels/stages/a.cu").write_text("// plainer words\nint a;\n")
    (repository / "kernels/host/probe.cu").write_text("int c;\n")
    before = recorded(repository)
    earlier = json.loads(before["one.json"])["meta"]["note"]
    present = digest.digest_of({"a.cu": A, "ffma.py": FFMA})
    changed, replaced, kept = carry_over.carry_over(repository, "measured")
    assert [path.name for path in replaced] == ["one.json", "two.json"] and not kept and not changed
    after = recorded(repository)
    for name in before:
        expected = before[name].replace(f'"sources": "{earlier}"', f'"sources": "{present}"')
        assert after[name] == expected, "nothing else has changed"
    assert after["old.json"] == before["old.json"], "of other sources"
    assert carry_over.carry_over(repository, "measured") == ([], [], {}), "once is enough"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stages/a.cu", "int b;\n"),
        ("stages/a.cu", None),
        ("stages/new.cu", "int c;\n"),
        ("sass/ffma.py", "x = 2\n"),
    ],
)
def test_refuses_where_a_token_changed(repository: Path, name: str, text: str | None) -> None:
    path, before = repository / "kernels" / name, recorded(repository)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(GemmLadderError, match=rf"since measured, more than .* has changed in {path.name}\.$"):
        carry_over.carry_over(repository, "measured")
    assert recorded(repository) == before


def test_machine_code_decides_where_it_is_compared(repository: Path) -> None:
    """The comparison is given the earlier sources, and asked only if tokens differ."""
    asked = []

    def differing(folder: Path, file: str | None) -> list[str]:
        assert file is None, "no other recorded file is there"
        asked.append((folder / "stages" / "a.cu").read_text())
        return ["a"] if len(asked) == 1 else []

    assert carry_over.carry_over(repository, "measured", differing).replaced and not asked
    (repository / "kernels/stages/a.cu").write_text("int renamed;\n")
    before = recorded(repository)
    with pytest.raises(GemmLadderError, match=r"since measured, the machine code of a has changed\.$"):
        carry_over.carry_over(repository, "measured", differing)
    assert recorded(repository) == before and asked == [A]
    changed, replaced, _ = carry_over.carry_over(repository, "measured", differing)
    assert changed == ["a.cu"] and [path.name for path in replaced] == ["one.json", "two.json"]
    present = digest.digest_of({"a.cu": "int renamed;\n", "ffma.py": FFMA})
    assert all(f'"sources": "{present}"' in path.read_text() for path in replaced)


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize(
    ("changed", "touched"),
    [
        ("casts/cast.cuh", {"casts.json"}),
        ("training/gemm.cuh", {"training.json"}),
        ("include/ptx.cuh", {"casts.json", "training.json"}),
    ],
)
def test_files_of_other_kernels(repository: Path, changed: str, touched: set[str], compared: bool) -> None:
    """They stay as they are where their own sources, or what all include, have other tokens or, if that is
    compared, other machine code."""
    data = repository / "figures" / "data"
    for name in ("casts.json", "training.json"):
        (data / name).write_text((data / "one.json").read_text())
    (repository / "kernels" / changed).parent.mkdir()
    (repository / "kernels" / changed).write_text("int added;\n")
    before, asked = recorded(repository), []

    def compare(folder: Path, file: str | None) -> list[str]:
        asked.append(file)
        return ["one", "two"] if file == "casts.json" else []

    if "include" in changed and not compared:
        with pytest.raises(GemmLadderError, match=r"has changed in ptx\.cuh\.$"):
            carry_over.carry_over(repository, "measured")
        assert recorded(repository) == before
        return
    found = carry_over.carry_over(repository, "measured", compare if compared else None)
    kept = {"casts.json"} if compared else touched
    assert {path.name for path in found.kept} == kept and found.changed == [Path(changed).name]
    why = "the machine code of one, two has changed" if compared else "its kernels' sources have changed"
    assert set(found.kept.values()) == {why}
    rest = {"one.json", "two.json", "casts.json", "training.json"} - kept
    assert {path.name for path in found.replaced} == rest
    assert all(recorded(repository)[name] == before[name] for name in kept)
    rungs_too = [None] if "include" in changed else []
    assert asked == ([*rungs_too, "casts.json", "training.json"] if compared else [])


def test_every_list_belongs_to_a_recorded_file() -> None:
    assert set(same_code.LISTS) == set(carry_over._FOLDERS)
    for file in same_code.LISTS:
        assert (digest.KERNELS.parent / "figures" / "data" / file).is_file()
        names = {one.name for one in same_code.LISTS[file](same_code.GPUS[-1])}
        assert len(names) > 5 and all(name.startswith(("fp8_", *OWN)) for name in names)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new", "differing"),
    [
        ("stages/s4_tma.cu", "tiles_m", "rows_of_tiles", []),
        ("stages/s4_tma.cu", "% tiles_m", "% (tiles_m + 1)", ["s4_tma"]),
        ("production/scheduler.cuh", "units_m_", "units_down_", []),
        (
            "production/scheduler.cuh",
            "tile.rows = tile.padded = rows_ - row",
            "tile.rows = tile.padded = rows_ - row - 1",
            ["production"],
        ),
        ("include/layout.cuh", "(thread % 32) / 4", "(thread % 32) / 2", ["s4_tma", "production"]),
    ],
)
def test_machine_code_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, differing: list[str]
) -> None:
    """A renamed variable changes no instruction, another expression does, also in a header."""
    try:
        toolchain.find_cuda()
    except ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")
    source = Config.of("masked", 512, 512, 64, 64).source()
    monkeypatch.setattr(same_code, "_rungs", lambda: iter([("s4_tma", "stages/s4_tma.cu")]))
    monkeypatch.setattr(same_code, "_production", lambda: iter([("production", source)]))
    for name in ("stages", "include", "production"):
        shutil.copytree(digest.KERNELS / name, tmp_path / name)
    path = tmp_path / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert same_code.differing_kernels(tmp_path) == differing


OWN = [one.KERNEL.name for one in (choosing, combining, scattering, silu_backward, turning)]
OWN += [kernel.name for kernel in placing.KERNELS]
CAST = Kernel("per_token", "nothing", torch.bfloat16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edits", "differing"),
    [
        ({"casts/cast_numbers.cuh": ("kToken", "kRow"), "casts/kernel.py": ("kToken", "kRow")}, []),
        ({"casts/cast_start.cuh": ("start_cast(", "start_a_cast(")}, [CAST.name]),
        ({"casts/kernel.py": ("class Kernel(", "class Cast(")}, [CAST.name]),
        ({"layers/turn_codes.cuh": ("quad ^ 4 * chunk", "quad ^ 2 * chunk")}, ["turn_codes"]),
    ],
)
def test_other_kernels_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edits: dict[str, tuple[str, str]], differing: list[str]
) -> None:
    """A renamed kind of cast changes no instruction, as the earlier kernel.py names it for the earlier
    headers. What does not build, or has no text, differs."""
    try:
        toolchain.find_cuda()
    except ToolchainError as error:
        pytest.skip(f"needs nvcc: {error}")
    monkeypatch.setattr(same_code, "LISTS", {"casts.json": lambda _: [CAST, turning.KERNEL]})
    for name in same_code.ROOMS:
        shutil.copytree(digest.KERNELS / name, tmp_path / name)
    for name, (old, new) in edits.items():
        path = tmp_path / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    if "casts/cast_numbers.cuh" in edits:
        path = tmp_path / "casts" / "cast_start.cuh"
        path.write_text(path.read_text().replace("kToken", "kRow"))
    assert same_code.differing_kernels(tmp_path, "casts.json") == differing


def test_unknown_commit(repository: Path) -> None:
    with pytest.raises(GemmLadderError, match=r"git ls-tree .* fails: .*nowhere"):
        carry_over.carry_over(repository, "nowhere")


def test_command(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(digest, "KERNELS", repository / "kernels")
    assert carry_over.main(["measured"]) == 0
    assert capsys.readouterr().out == (
        "figures/data/one.json has the present digest\n"
        "figures/data/two.json has the present digest\n"
        "2 files carried over\n"
    )
    (repository / "kernels/stages/a.cu").write_text("int b;\n")
    assert carry_over.main(["measured"]) == 1
    assert "has changed in a.cu." in capsys.readouterr().err


def test_changed_python_is_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where something is carried over, in the folders whose Python takes part in what is timed; not those of
    which comments alone have changed."""
    files = ("api.py", "casts/a.py", "layers/b.py", "lab/c.py", "measure/d.py")
    for name in files:
        (repository / "kernels" / name).parent.mkdir(exist_ok=True)
        (repository / "kernels" / name).write_text("x = 1  # words\n")
    git(repository, "add", "kernels")
    git(repository, "commit", "--quiet", "-m", "b")
    data = repository / "figures/data/one.json"
    recorded_then = data.read_text()
    monkeypatch.setattr(digest, "KERNELS", repository / "kernels")
    assert carry_over.changed_python(repository, "HEAD") == []
    (repository / "kernels/api.py").write_text("x = 1  # others\n")
    (repository / "kernels/lab/c.py").write_text("x = 2\n")
    assert carry_over.changed_python(repository, "HEAD") == []
    (repository / "kernels/casts/a.py").write_text("x = 2\n")
    (repository / "kernels/layers/b.py").unlink()
    assert carry_over.changed_python(repository, "HEAD") == ["kernels/casts/a.py", "kernels/layers/b.py"]
    assert carry_over.main(["measured"]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    added = "kernels/api.py, kernels/casts/a.py, kernels/measure/d.py have changed since measured"
    assert said == f"Read whether the same is measured: {added}"
    assert carry_over.main(["measured"]) == 0, "nothing is carried over a second time"
    assert capsys.readouterr().out == "0 files carried over\n" and data.read_text() != recorded_then
