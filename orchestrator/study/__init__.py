"""Studies: one list of jobs, varied along axes and over seeds, ending in a table."""
