"""Sample networks, and scripts that train them. A script here imports its neighbours by their bare names."""
