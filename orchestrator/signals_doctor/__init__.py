"""`stillhouse doctor --signals`: does every number that a job learns from tell the truth?

Runs a job's own models on a sample of its own data in one process. `findings.Finding` is a row of
the result, `examine.examine` makes all of them, `table.as_table` draws them; each other file is one
check, or what several share. Nothing heavy at import.
"""
