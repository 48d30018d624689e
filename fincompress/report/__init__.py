"""From the records of finished runs to one table, one verdict and a few charts; measures nothing."""
