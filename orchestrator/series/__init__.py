"""Many jobs as one: what a study and a search share. A folder, a journal, drivers."""
