"""The queryable table of versions: log segments, snapshots, the local DuckDB copy, queries."""
