"""The networks and their configs; nothing here knows of files or of sampling."""
