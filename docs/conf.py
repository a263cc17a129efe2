"""Settings of the documentation.

    python -P -m sphinx -W -n docs build/docs

builds it; twopass has to be installed with the extra ``docs``. Tables of ratios and of passes are
made from the files and objects that hold them (measured.py), so no number is written twice.
"""

import pathlib
import re
import sys

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

import twopass

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # measured.py

project = "twopass"
author = "the twopass developers"
version = release = twopass.__version__
copyright = author  # noqa: A001

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.extlinks",
    "numpydoc",
    "measured",
]
exclude_patterns = ["build", "_build"]
nitpicky = True
# Single backticks in docstrings are objects, which become links, but also parameters and values.
default_role = "py:obj"
nitpick_ignore_regex = [("py:obj", ".*")]
extlinks = {"doi": ("https://doi.org/%s", "doi:%s")}

autosummary_generate = False
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

myst_heading_anchors = 3

html_theme = "furo"
html_title = "twopass"
html_static_path = ["_static"]
html_css_files = ["twopass.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False


class FoldersAsText(SphinxTransform):
    """Links to folders, in files of the repository that pages include, become plain text."""

    default_priority = 1

    def apply(self, **options):
        """Replace each such link by what it says."""
        for link in list(self.document.findall(pending_xref)):
            if link.get("reftype") == "myst" and str(link.get("reftarget", "")).endswith("/"):
                link.replace_self(nodes.literal("", link.astext()))


class PlainCitations(SphinxPostTransform):
    """References that numpydoc made unique, [R1aeb7215d3ea-1], are shown as written: [1]."""

    default_priority = 900

    def run(self, **options):
        """Shorten the text of each such reference."""
        for link in self.document.findall(nodes.reference):
            for text in list(link.findall(nodes.Text)):
                shorter = re.sub(r"\bR[0-9a-f]{8,}-(\d+)", r"\1", text)
                if shorter != text:
                    text.parent.replace(text, nodes.Text(shorter))


def setup(app):
    """Register the transforms."""
    app.add_transform(FoldersAsText)
    app.add_post_transform(PlainCitations)
