"""Configuration: the loader, the sections that jobs share, one file a job. Imports pydantic, never an engine."""
