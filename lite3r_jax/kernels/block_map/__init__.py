"""Which key blocks a query block attends to: definition, selection in bounded memory, tables."""
