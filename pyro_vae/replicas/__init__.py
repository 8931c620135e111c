"""Train several programs of one structure as one graph; a single run never comes here."""
