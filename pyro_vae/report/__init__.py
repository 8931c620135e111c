"""What a person looks at: plots, image grids, tables and the page of a run; matplotlib is here."""
