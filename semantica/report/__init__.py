"""The pages of a report: charts, galleries, tables. No mathematics."""
