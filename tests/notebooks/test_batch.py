"""A notebook in a batch: its kernel is a fork, and it says how far it is and what it has drawn."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from kit.core.errors import KitError
from kit.jobs import batch_tasks
from kit.jobs.batch_kernels import can_fork
from kit.jobs.tasks import worker_environment
from kit.notebook.journal import Journal, journal_path, note_cell, note_pictures, read_journal

PRINTS = """import os, sys
words = [os.getpid(), os.getppid(), os.environ["KIT_STAMP"], os.getcwd(), list(sys.modules)]
print(json.dumps(words))
"""


def write_notebook(path: Path, *cells: str) -> None:
    """A notebook of a parameters cell and these."""
    first = {"tags": ["parameters"]}
    book = {
        "cells": [
            {
                "cell_type": "code",
                "id": f"c{i}",
                "execution_count": None,
                "metadata": first if i == 0 else {},
                "outputs": [],
                "source": source,
            }
            for i, source in enumerate(["import json", *cells])
        ],
        "metadata": {"kernelspec": {"display_name": "P", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    path.write_text(json.dumps(book))


def run_in_worker(folder: Path, names: list[str]) -> list[list]:
    """Run notebooks one after the other in one worker; [what the second cell of each printed]."""
    context = multiprocessing.get_context("spawn")
    with worker_environment(2), ProcessPoolExecutor(1, mp_context=context) as pool:
        for name in names:
            words = str(folder / f"{name}.ipynb"), str(folder / f"{name}-run.ipynb")
            pool.submit(batch_tasks.run_notebook, *words, {}, str(folder), f"of {name}").result()
    books = [json.loads((folder / f"{name}-run.ipynb").read_text()) for name in names]
    return [json.loads("".join(book["cells"][1]["outputs"][0]["text"])) for book in books]


@pytest.mark.skipif(os.name == "nt", reason="no forks there")
def test_kernels_of_a_worker_are_forks_of_one_server_and_know_nothing_of_each_other(tmp_path):
    for name in ("first", "second"):
        write_notebook(tmp_path / f"{name}.ipynb", PRINTS + f"os.{name} = sys.{name} = 1")
    first, second = run_in_worker(tmp_path, ["first", "second"])
    assert first[0] != second[0] and first[1] == second[1], "two forks of one server"
    assert (first[2], second[2]) == ("of first", "of second")
    assert first[3] == second[3] == str(tmp_path)
    assert "torch" in first[4] and "kit.notebook.study" in first[4]
    cells = [line for line in journal_path(tmp_path, "second").read_text().split("\n") if line]
    assert cells == ["cell 1 of 2", "cell 2 of 2"]


@pytest.mark.skipif(os.name == "nt", reason="no forks there")
def test_a_cell_that_fails_and_a_kernel_that_dies_in_a_worker(tmp_path):
    write_notebook(tmp_path / "fails.ipynb", "1 / 0")
    write_notebook(tmp_path / "dies.ipynb", "import os; os._exit(1)")
    with pytest.raises(KitError, match="cell 2: ZeroDivisionError"):
        run_in_worker(tmp_path, ["fails"])
    with pytest.raises(Exception, match="died"):
        run_in_worker(tmp_path, ["dies"])


def test_only_workers_fork():
    assert not can_fork(), "this process runs one notebook and ends, or is a debugger's"


def test_a_journal_is_read_while_it_is_written(tmp_path):
    path = journal_path(tmp_path, "02")
    assert read_journal(path) == Journal()
    note_cell(path, 1, 3)
    note_pictures(path, [tmp_path / "a b.png"])
    note_cell(path, 2, 3)
    with open(path, "a") as file:
        file.write("cell 3 o")
    assert read_journal(path) == Journal("cell 2 of 3", (f"{tmp_path / 'a b.png'}",))
