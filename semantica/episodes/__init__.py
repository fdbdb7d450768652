"""First stage of the flow, page -> episode: `sources/` reads pages, `ingest` turns them into episodes and a quarantine table."""
