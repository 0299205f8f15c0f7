"""The README's tree and the real one are the same, its commands exist, and its links lead somewhere."""

import re
import subprocess
from pathlib import Path

from django.core.management import get_commands

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
APPS = ("medsyn", "generation", "ratings", "training", "accounts")


def printed_tree() -> set[str]:
    """Every path of the README's tree. A line holds names, then two blanks, then a phrase; indentation nests."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)```\n<!-- /tree -->", README, re.DOTALL).group(1)
    folders: list[tuple[int, str]] = []
    paths = set()
    for line in block.splitlines():
        indent = len(line) - len(line.lstrip())
        names = re.split(r"\s{2,}", line.strip())[0].split()
        if indent > 20:  # a phrase that went on in a second line: names of the folder above
            names = line.split()
        else:
            while folders and folders[-1][0] >= indent:
                folders.pop()
        above = folders[-1][1] if folders else ""
        paths |= {above + name for name in names}
        if names[0].endswith("/"):
            folders.append((indent, above + names[0]))
            phrase = line.strip()[len(" ".join(names)) :].split()
            paths |= {above + names[0] + word for word in phrase if word.endswith(".py") and "/" not in word}
    return {path for path in paths if path.startswith("tests/") is False or path == "tests/"}


def tracked_modules() -> set[str]:
    """Python modules of the apps that git knows, migrations and package markers aside."""
    listing = subprocess.run(["git", "ls-files", *APPS], cwd=ROOT, capture_output=True, text=True, check=True)
    return {
        name
        for name in listing.stdout.splitlines()
        if name.endswith(".py") and not name.endswith("__init__.py") and "/migrations/" not in name
    }


def test_every_path_of_the_tree_exists():
    assert [path for path in sorted(printed_tree()) if not (ROOT / path).exists()] == []


def test_every_module_stands_in_the_tree():
    assert sorted(tracked_modules() - printed_tree()) == []


def test_every_command_of_the_readme_exists():
    named = set(re.findall(r"python manage\.py (\w+)", README))
    assert named and named <= set(get_commands())


def test_every_own_command_stands_in_the_readme_or_in_start_sh():
    own = {name for name, app in get_commands().items() if app in APPS}
    text = README + (ROOT / "start.sh").read_text() + (ROOT / "docs" / "loop-on-real-images.md").read_text()
    assert sorted(name for name in own if name not in text) == []


def test_every_link_leads_somewhere():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert targets and [target for target in targets if not (ROOT / target).exists()] == []
