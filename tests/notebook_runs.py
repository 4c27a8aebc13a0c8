"""Notebooks, executed as a user does, with other values of the variables that they set."""

import re
from collections.abc import Mapping

import nbformat
from launching import environment
from nbclient import NotebookClient
from tiny import REPOSITORY

TIMEOUT_S = 600  # of a cell


def executed(name: str, variables: Mapping[str, object]) -> list[str]:
    """Run a notebook to its end in a kernel of its own; return the text that each cell printed.

    Args:
        name: of the file in `notebooks/`.
        variables: values by name; each must be set in the notebook, by `%env`.
    """
    notebook = nbformat.read(REPOSITORY / "notebooks" / name, as_version=4)
    unknown = set(variables)
    for cell in notebook.cells:
        for variable in re.findall(r"^%env (\w+)=", cell.source, re.MULTILINE):
            unknown.remove(variable)
            line = f"%env {variable}={variables[variable]}"
            cell.source = re.sub(
                rf"(?m)^%env {variable}=.*$", lambda _, line=line: line, cell.source
            )
    assert not unknown, unknown
    folder = {"metadata": {"path": str(REPOSITORY / "notebooks")}}
    NotebookClient(notebook, timeout=TIMEOUT_S, resources=folder).execute(env=environment())
    return [
        "".join(output.get("text", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]
