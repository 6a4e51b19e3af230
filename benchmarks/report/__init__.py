"""What the committed rows say: pages with plots, the README's tables, a spreadsheet."""
