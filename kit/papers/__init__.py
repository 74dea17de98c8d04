"""The five papers as data: what they print, claim, set and draw, and what follows from the printed numbers alone.

    from kit import papers
    papers.table("vir", 1)                 # a printed table
    papers.claims("mail")                  # claims, with a verdict where printed means decide it
    papers.resolution("clirat", 1)         # on how many images the means can rest
    papers.copied_cells()                  # rows that share more cells than chance would let them
    papers.text_against_table("mail")      # numbers in prose against the tables

These say what is printed and nothing else. Beside it, what finished runs measure:

    papers.needs("vir", 1)                 # the runs that a table takes
    papers.measured("vir", 1)              # printed and measured cells side by side
    papers.compare("vir")                  # claims, with a verdict from the measured cells
"""

from kit.papers.compare import compare, report
from kit.papers.grid import grid, needs
from kit.papers.load import PAPERS, Paper, figures, hyper_parameters, results, table, tables, unmatched
from kit.papers.measured import measured
from kit.papers.printed import copied_cells, resolution, spread, text_against_table
from kit.papers.rules import checks, claims, value

__all__ = [
    "PAPERS", "Paper", "checks", "claims", "compare", "copied_cells", "figures", "grid", "hyper_parameters", "measured",
    "needs", "report", "resolution", "results", "spread", "table", "tables", "text_against_table", "unmatched", "value"]
