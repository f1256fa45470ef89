"""HTML reports: one base template (`page.html.j2`), filled in and written."""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from jax_rele.io import write_text


def write_html(path: str | Path, template: str, *, package: str = "jax_rele.evaluation", **values: object) -> None:
    """Writes a self-contained page: one file that needs no script, no network and no other file.

    Args:
      path: the file to write.
      template: the name of a template that extends `page.html.j2`.
      package: the package that holds the template.
      values: what the template shows; everything but `Markup` is escaped.

    Raises:
      UserError: the file cannot be written.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader("jax_rele.evaluation", ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(values)
    # A lone surrogate, which JSON can carry, has no UTF-8 form.
    write_text(path, text.encode(errors="replace").decode())
