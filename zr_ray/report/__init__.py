"""What a person reads afterwards: pages, figures, tables, model cards."""
