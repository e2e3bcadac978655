"""Small repairs of the theme's pages, references by author and year, and API pages without fields of named tuples."""

from pybtex.plugin import register_plugin
from pybtex.richtext import Text
from pybtex.style.formatting.unsrt import Style
from pybtex.style.labels.alpha import LabelStyle


def forget_kernel(app, pagename, templatename, context, doctree):
    """Results pages are executed Markdown, not notebooks to open: a Colab button would open a .md."""
    if str(app.env.doc2path(pagename)).endswith(".md"):
        app.env.metadata[pagename].pop("kernelspec", None)


def quiet_console(app, pagename, templatename, context, doctree):
    """Start in the reader's own colour mode, and drop the scripts of thebe, which the book does not use.

    Without a mode the theme logs an error on every page; thebe's script is inserted twice, which is another.
    """
    context["default_mode"] = "auto"
    context["script_files"] = [
        one
        for one in context["script_files"]
        if "thebe" not in f"{one} {getattr(one, 'attributes', '')}".lower()
    ]


def no_aliases(app, what, name, obj, skip, options):
    """A field of a named tuple without a docstring of its own says "Alias for field number n" and nothing else."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


class AuthorYearLabels(LabelStyle):
    """Labels of the list as the text cites: "Chen et al., 2022"."""

    def format_label(self, entry):
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        names = [" ".join([*p.prelast_names, *p.last_names]) for p in people]
        if len(names) > 2:
            names = [f"{names[0]} et al."]
        label = f"{' and '.join(names) or entry.fields.get('title', entry.key)}, {entry.fields.get('year', 'n.d.')}"
        return Text.from_latex(label).render_as("text")


class AuthorYear(Style):
    """The list sorted by name and year, under the labels above."""

    default_label_style = AuthorYearLabels
    default_sorting_style = "author_year_title"


register_plugin("pybtex.style.formatting", "authoryear", AuthorYear)


def setup(app):
    # before the theme's own handler (priority 500), which takes a page with a kernel for a notebook
    app.connect("html-page-context", forget_kernel, priority=100)
    app.connect("html-page-context", quiet_console, priority=900)
    app.connect("autodoc-skip-member", no_aliases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
