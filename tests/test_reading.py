"""What leads a reader through the lessons: the glossary and the links to it, their heads, the paths."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gemm_ladder.figures import hopper_map, lessons, sheet

lessons.find()
from workshop import course, glossary, texts  # noqa: E402

PAGE = (lessons.FOLDER / glossary.PAGE).read_text()
TERMS = glossary.terms(PAGE)
PATHS = ("12 sessions of 1 to 2 hours", "Further sessions")  # of course.PATHS: together, all lessons
each_lesson = pytest.mark.parametrize("path", texts.paths(), ids=lambda path: path.stem)


def prose(path: Path) -> list[str]:
    """A lesson's Markdown cells."""
    return [cell.markdown for cell in texts.cells(path.read_text())[1] if cell.is_text]


@each_lesson
def test_cells_are_the_whole_file(path: Path) -> None:
    text = path.read_text()
    head, cells = texts.cells(text)
    assert texts.joined(head, cells) == text
    for cell in (cell for cell in cells if cell.is_text):
        assert cell.rewritten(cell.markdown) == cell
        assert "\n".join(texts.paragraphs(cell.markdown)) == cell.markdown


def test_glossary() -> None:
    assert len({term.anchor for term in TERMS}) == len(TERMS) > 50
    headings = re.findall(r"^### (.+)$", PAGE, re.M)
    assert [term.name for term in TERMS] == headings
    assert all(len(line) <= 120 for line in PAGE.splitlines())
    for entry in re.split(r"^### ", PAGE, flags=re.M)[1:]:
        lines = [line for line in entry.split("\n## ")[0].splitlines()[1:] if not line.startswith("*Also:")]
        assert any(line.strip() for line in lines), f"{entry.splitlines()[0]} is not explained"


def test_links_of_the_glossary_and_of_the_contents_lead_somewhere() -> None:
    for name in (glossary.PAGE, "README.md"):
        links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", (lessons.FOLDER / name).read_text())
        assert links
        assert [link for link in links if "://" not in link and not (lessons.FOLDER / link).exists()] == []


@each_lesson
def test_first_use_of_each_term_is_a_link_to_the_glossary(path: Path) -> None:
    """And no other use is one."""
    found = [glossary.links(text) for text in prose(path)]
    wanted = glossary.first_uses([plain for plain, _ in found], TERMS)
    assert [uses for _, uses in found] == wanted, "python lessons/workshop/glossary.py sets the links"
    assert sum(map(len, wanted)) >= 5


def test_every_term_is_used() -> None:
    used = {use.anchor for path in texts.paths() for text in prose(path) for use in glossary.links(text)[1]}
    assert used == {term.anchor for term in TERMS}


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("A warp. Two warps.", "A [warp](glossary.md#warp). Two warps."),
        ("Shared\nmemory is", "[Shared\nmemory](glossary.md#shared-memory) is"),
        ("`warp` and $warp$ and [a warp](x.md)", "`warp` and $warp$ and [a warp](x.md)"),
        ("# A warp\n\n> a warp\n\n| warp |", "# A warp\n\n> a warp\n\n| warp |"),
        ("warpgroups", "[warpgroups](glossary.md#warpgroup)"),
        ("the async proxy", "the [async proxy](glossary.md#proxy)"),
        ("a two-warp thing, **warp**", "a two-warp thing, **[warp](glossary.md#warp)**"),
    ],
)
def test_what_is_a_first_use(text: str, links: str) -> None:
    linked = glossary.linked(text, glossary.first_uses([text], TERMS)[0])
    assert linked == links
    assert glossary.links(linked) == (text, glossary.first_uses([text], TERMS)[0])


def test_links_are_set_and_moved() -> None:
    before = "# %% [markdown]\n# A block of k.\n\n# %% [markdown]\n# The [warp](glossary.md#warp) waits.\n"
    one = "# A [block of k](glossary.md#k-block).\n"
    assert glossary.relinked(before, TERMS) == before.replace("# A block of k.\n", one)
    earlier = before.replace("A block of k.", "A warp.")
    moved = glossary.relinked(earlier, TERMS)
    assert moved.count("glossary.md") == 1 and "A [warp](glossary.md#warp)." in moved
    assert glossary.relinked(moved, TERMS) == moved


def test_heads_and_paths_are_what_course_py_writes() -> None:
    for path, text in course.written(course.lessons()).items():
        assert path.read_text() == text, "python lessons/workshop/course.py writes them"


def test_every_lesson_needs_what_is_there() -> None:
    every = course.lessons()
    assert {*course.NEEDS} == {*course.SECONDS} == {*every}
    needed = {one for of in course.NEEDS.values() for one in of}
    assert needed <= {*every} and {*course.OPTIONAL} < {*every}
    for name in {*every} - {*course.OPTIONAL}:
        assert not {*course.NEEDS[name]} & {*course.OPTIONAL}, name
    done: set[str] = set()
    order = list(course.NEEDS)
    for name in order:  # the table is in the order of reading
        assert {*course.NEEDS[name]} <= done, name
        done.add(name)


def test_a_lesson_that_is_not_in_the_tables() -> None:
    every = course.lessons()
    with pytest.raises(ValueError, match="14_new: NEEDS and SECONDS"):
        course.written({**every, "new": every["tma"]._replace(stem="14_new")})


def test_an_optional_lesson_that_another_one_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head says which one."""
    every = course.lessons()
    lesson, more = every["ffma_interleave"], {**every, "more": every["tma"]._replace(stem="99_more")}

    def head() -> str:
        return " ".join(course.head(lesson, more).replace("> ", "").split())

    assert "all of it: no other lesson needs it; lesson [13]" in head()
    monkeypatch.setattr(course, "NEEDS", {**course.NEEDS, "more": ("ffma_interleave",)})
    assert "all of it: no lesson needs it, but for [99](99_more.ipynb); lesson [13]" in head()


def test_the_paths_have_every_lesson() -> None:
    """A lesson is in the twelve sessions, or it is optional and in the further ones."""
    steps = [step.name for name in PATHS for session in course.PATHS[name][1] for step in session]
    assert sorted(steps) == sorted(course.lessons())


def test_the_sessions_have_every_lesson_that_others_need() -> None:
    steps = [step.name for session in course.PATHS["12 sessions of 1 to 2 hours"][1] for step in session]
    assert len(course.PATHS["12 sessions of 1 to 2 hours"][1]) == 12
    assert {*steps} >= {*course.lessons()} - {*course.OPTIONAL}
    place = {name: index for index, name in enumerate(steps)}
    assert all(place[need] < place[name] for name in steps for need in course.NEEDS[name])


@pytest.mark.parametrize(("length", "most"), [("40 minutes", 45), ("3 hours", 200)])
def test_a_short_path_is_short(length: str, most: float) -> None:
    every = course.lessons()
    steps = [step for session in course.PATHS[length][1] for step in session]
    assert most / 2 < sum(sum(course.minutes(every[step.name], step)) for step in steps) <= most


def test_the_sessions_take_the_hours_that_readme_says() -> None:
    every = course.lessons()
    steps = [step for session in course.PATHS["12 sessions of 1 to 2 hours"][1] for step in session]
    least, most = course.SESSIONS
    assert least <= sum(sum(course.minutes(every[step.name], step)) for step in steps) / 60 <= most
    said = f"the twelve sessions come to the {least} to {most} hours"
    assert said in " ".join((lessons.FOLDER / "README.md").read_text().split())


def test_a_path_names_sections_that_are_there() -> None:
    lesson = course.lessons()["tma"]
    with pytest.raises(ValueError, match=r"06_tma has no section No such thing"):
        course.minutes(lesson, course.Step("tma", only=("No such thing",)))
    whole, part = (course.minutes(lesson, course.Step("tma", without=of)) for of in ((), ("Exercises",)))
    exercises = sum("exercises.check(" in cell.body for cell in lesson.cells)
    assert whole[0] > part[0] and whole[1] - part[1] == exercises * course.EXERCISE


def test_the_map_is_what_draw_py_writes() -> None:
    written = (lessons.FOLDER.parent / "figures" / "hopper.svg").read_text()
    assert written == hopper_map.svg(), "python figures/draw.py writes it"
    with pytest.raises(ValueError, match="L3"):
        hopper_map.svg(["L3"])


@pytest.mark.parametrize("marked", [(), hopper_map.PIECES])
def test_the_map_is_legible_and_marks_every_piece(marked: tuple[str, ...]) -> None:
    root = ElementTree.fromstring(hopper_map.svg(marked))
    name = "{http://www.w3.org/2000/svg}"
    assert float(root.get("width")) <= sheet.SHOWN_WIDTH
    words = root.findall(f"{name}text")
    assert min(float(text.get("font-size")) for text in words) >= sheet.SMALLEST
    for text in words:  # a letter of this face is about 0.62 of its size wide, a bold one 0.7
        size, x = float(text.get("font-size")), float(text.get("x"))
        width = len(text.text) * size * (0.7 if text.get("font-weight") == "bold" else 0.62)
        begin = x - width * {"start": 0, "middle": 0.5, "end": 1}[text.get("text-anchor")]
        assert begin >= 0 and begin + width <= hopper_map.WIDTH, text.text
    edges = [box.get("stroke") for box in root.findall(f"{name}rect")]
    assert (edges.count(hopper_map.MARK_EDGE) > len(hopper_map.PIECES)) == bool(marked)


def test_every_lesson_marks_its_pieces_and_every_piece_has_one() -> None:
    marked = set()
    for path in texts.paths():
        calls = re.findall(r"^drawing\.where\((.+)\)$", path.read_text(), re.M)
        assert len(calls) == 1, path.stem
        here = set(re.findall(r'"([^"]+)"', calls[0]))
        assert here and here <= {*hopper_map.PIECES}
        marked |= here
    assert marked == {*hopper_map.PIECES}
