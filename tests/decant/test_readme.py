import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def test_the_readme_example_prints_lines_like_those_it_shows(tiny_run):
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    place = next(
        place
        for place, (language, text) in enumerate(blocks)
        if language == "python" and "Recommender.load" in text
    )
    example, (language, shown) = blocks[place][1], blocks[place + 1]
    assert language == "text"
    assert "runs/demo" in example
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(example.replace("runs/demo", str(tiny_run)), str(README), "exec"), {})
    printed = said.getvalue().splitlines()
    assert len(printed) == len(shown.splitlines())
    for line in [*printed, *shown.splitlines()]:
        assert re.fullmatch(r"[01]\.\d\d  \S.{0,59}", line), line


@pytest.mark.parametrize(
    "text", [README, *sorted((ROOT / "docs").glob("*.md"))], ids=lambda text: text.name
)
def test_links_of_the_texts_go_somewhere(text):
    for link in re.findall(r"\]\(([^)\s]+)\)", text.read_text("utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        to = (text.parent / path).resolve() if path else text
        assert to.exists(), link
        assert not anchor or anchor in anchors(to), link


def anchors(text):
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text.read_text("utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
