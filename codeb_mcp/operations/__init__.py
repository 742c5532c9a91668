"""What callers can ask for: each operation is declared once, in the catalog."""
