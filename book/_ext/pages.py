"""Three small repairs of the theme's pages."""


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


def setup(app):
    # before the theme's own handler (priority 500), which takes a page with a kernel for a notebook
    app.connect("html-page-context", forget_kernel, priority=100)
    app.connect("html-page-context", quiet_console, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
