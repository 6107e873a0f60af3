"""What people see of a run: progress, plans, tables, one sample's chain. Nothing here computes."""
