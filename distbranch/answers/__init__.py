"""What a run answers on its data: predictions as a table, and what follows from them for whoever acts on the answers."""
