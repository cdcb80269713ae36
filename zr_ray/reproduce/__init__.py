"""The paper's table, row by row, as runs of the ordinary jobs.

    plan       configuration -> the runs to make, as command lines; which of them are finished, interrupted or missing
    anchors    a copy of the data whose training labels have no half-points
    compare    runs' predictions -> values, intervals, paired differences, verdicts (pure)
    page       tables in Markdown, the page with curves
    launch     the order of things
"""
