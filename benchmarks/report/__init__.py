"""What the committed rows say: a page with plots, tables in texts, a spreadsheet."""
