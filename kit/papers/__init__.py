"""The five papers as data: what they print, claim, set and draw.

    from kit import papers
    papers.table("vir", 1)                 # a printed table
    papers.claims("mail")                  # claims, with a verdict where printed means decide it
    papers.resolution("clirat", 1)         # on how many images the means can rest
    papers.copied_cells()                  # rows that share more cells than chance would let them
    papers.text_against_table("mail")      # numbers in prose against the tables
    papers.settings("vir", table=1, method="vir-at")  # printed settings, and the run with them

These say what is printed, and what follows from that alone. What finished runs measure stands
beside it:

    papers.needs("vir", 1)                 # the runs that a table takes
    papers.measured("vir", 1)              # printed and measured cells side by side
    papers.compare("vir")                  # claims, with a verdict from what is finished here
    papers.scoreboard()                    # claims by scale, from the record that is committed
"""

from kit.core.lazy import lazy_exports

_PLACES = {
    **dict.fromkeys(
        (
            "PAPERS",
            "Paper",
            "figures",
            "hyper_parameters",
            "results",
            "table",
            "tables",
            "unmatched",
        ),
        "printed_data",
    ),
    **dict.fromkeys(("copied_cells", "resolution", "spread", "text_against_table"), "consistency"),
    **dict.fromkeys(("checks", "claims", "value"), "printed_rules"),
    **dict.fromkeys(("grid", "needs"), "table_runs"),
    **dict.fromkeys(("compare", "report"), "verdicts"),
    **dict.fromkeys(("read_record", "scoreboard"), "record"),
    **dict.fromkeys(("check_rules", "check_stability"), "rule_checks"),
    "measured": "measured_cells",
    **dict.fromkeys(("compare_settings", "settings"), "printed_settings"),
}
__all__ = sorted(_PLACES)
__getattr__, __dir__ = lazy_exports(__name__, _PLACES)
