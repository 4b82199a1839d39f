"""Pictures, tables and the page that show what a run did; the only home of matplotlib."""
