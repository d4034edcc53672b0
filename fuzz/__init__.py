"""Fuzz targets for every byte a peer can send; `make fuzz` runs them under atheris."""
